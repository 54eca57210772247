//! Webhook deliveries: accept one, and their audit log, which lists them, shows one with its payload and
//! processes one again. A delivery names the repository that it is about, so who asks for it is an admin.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::domain::delivery::{DeliveryId, DeliveryStatus};
use crate::domain::workflow::RepoUpdate;
use crate::publish::{Committed, PublishError, Publisher};
use crate::sources::github::{
    About, BadBody, Received, RepoMap, about, body_text, is_about_an_account, reprocessing_unit, unit_of,
};
use crate::store::{self, Store, StoreError, deliveries, repos};

pub use crate::store::deliveries::Delivery;

/// The most repositories that one delivery changes without naming them, because they are one transaction.
/// The rest change when they are heard of again.
const MAX_KNOWN: u32 = 2000;
/// Names that are held; with more they are learned anew.
const MAX_NAMES: usize = 100_000;

/// A delivery as it came over HTTP, after its signature was found right.
pub struct Incoming<'a> {
    pub id: DeliveryId,
    /// The type of its event, such as `workflow_run`.
    pub event: &'a str,
    pub content_type: Option<&'a str>,
    pub body: Vec<u8>,
    /// When it came, for the latency metrics.
    pub arrived: Instant,
}

/// What became of an accepted delivery.
pub enum Accepted {
    New(DeliveryStatus),
    /// It was accepted before.
    Duplicate,
}

/// Why a delivery is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error(transparent)]
    BadBody(#[from] BadBody),
    #[error("the payload cannot be compressed: {0}")]
    Pack(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Commits a delivery with all that follows from it. Success means that it is durable.
pub async fn accept(
    publisher: &Publisher,
    store: &Store,
    (map, names): (&RepoMap, &Names),
    incoming: Incoming<'_>,
) -> Result<Accepted, AcceptError> {
    let Incoming { id, event, content_type, body, arrived } = incoming;
    let payload = body_text(content_type, &body)?;
    let known = known(store, event, &payload).await?;
    let received =
        Received { delivery_id: id, event, payload: &payload, received_at: store.now(), accepted: arrived };
    let (mut unit, status, repo) = unit_of(received.clone(), map, &known)?;
    let renamed = match &repo {
        Some(repo) if known.is_empty() && !is_about_an_account(event) && !names.are(repo) => {
            let known = read_known(store, repos::Of::Repository(repo.github_id)).await?;
            known
                .first()
                .is_some_and(|known| (&known.owner, &known.name) != (&repo.owner, &repo.name))
                .then_some(known)
        }
        _ => None,
    };
    if let Some(known) = renamed {
        (unit, ..) = unit_of(received, map, &known)?;
    }
    // The payload lives on in the unit, compressed.
    drop(payload);
    drop(body);
    let committed = publisher.commit(unit).await?;
    if let Some(repo) = repo {
        names.learn(repo);
    }
    Ok(match committed {
        Committed::Duplicate(_) => Accepted::Duplicate,
        _ => Accepted::New(status),
    })
}

/// How repositories are called, as far as this node has heard: so that the store is asked only about one that
/// comes under another name than before, or for the first time.
#[derive(Default)]
pub struct Names(Mutex<HashMap<i64, (String, String)>>);

impl Names {
    fn are(&self, repo: &RepoUpdate) -> bool {
        let names = self.names();
        let known = names.get(&repo.github_id);
        known.is_some_and(|(owner, name)| *owner == repo.owner && *name == repo.name)
    }

    fn learn(&self, repo: RepoUpdate) {
        if self.are(&repo) {
            return;
        }
        let mut names = self.names();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(repo.github_id, (repo.owner, repo.name));
    }

    fn names(&self) -> MutexGuard<'_, HashMap<i64, (String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The repositories that a delivery is about without naming them.
async fn known(store: &Store, event: &str, payload: &str) -> store::Result<Vec<RepoUpdate>> {
    let of = match about(event, payload) {
        None => return Ok(Vec::new()),
        Some(About::Owner(owner)) => repos::Of::Owner(owner),
        Some(About::Installation(id)) => repos::Of::Installation(id),
        Some(About::Repository(id)) => repos::Of::Repository(id),
    };
    let found = read_known(store, of).await?;
    if found.len() == MAX_KNOWN as usize {
        tracing::warn!(
            event,
            repositories = MAX_KNOWN,
            "this delivery is about more repositories than are told"
        );
    }
    Ok(found)
}

async fn read_known(store: &Store, of: repos::Of) -> store::Result<Vec<RepoUpdate>> {
    let read = store.read(move |tx| Box::pin(async move { repos::known(tx.conn, of, MAX_KNOWN).await }));
    read.await
}

/// Why a delivery is not shown or not processed again.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error("there is no such delivery")]
    Missing,
    #[error("the payload has expired")]
    PayloadGone,
    #[error("this delivery has been processed already, and its events were published once")]
    AlreadyProcessed,
    #[error("a stored payload is not UTF-8: {0}")]
    BadPayload(#[from] std::string::FromUtf8Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// The newest `limit` deliveries before `before`, and where the list goes on, unless this is its end.
pub async fn list(
    store: &Store,
    before: Option<Uuid>,
    limit: u32,
) -> Result<(Vec<Delivery>, Option<Uuid>), StoreError> {
    let read =
        store.read(move |conn| Box::pin(async move { deliveries::list(conn, before, limit + 1).await }));
    let mut found = read.await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = found.last().filter(|_| more).map(|delivery| delivery.id);
    Ok((found, next))
}

/// The delivery `id` with its payload, which is dropped for age before its row is.
pub async fn get(store: &Store, id: &str) -> Result<(Delivery, Option<String>), DeliveryError> {
    let id = Uuid::try_parse(id).map_err(|_| DeliveryError::Missing)?;
    let found = store.read(move |conn| Box::pin(async move { deliveries::get(conn, id).await })).await?;
    let (delivery, payload) = found.ok_or(DeliveryError::Missing)?;
    let payload = payload.map(|payload| payload.unpack()).transpose()?;
    Ok((delivery, payload.map(String::from_utf8).transpose()?))
}

/// Processes a delivery again that failed or was ignored; returns what became of it.
pub async fn process(
    publisher: &Publisher,
    store: &Store,
    map: &RepoMap,
    id: &str,
) -> Result<Delivery, DeliveryError> {
    let (delivery, payload) = get(store, id).await?;
    let payload = payload.ok_or(DeliveryError::PayloadGone)?;
    let known = known(store, &delivery.event, &payload).await?;
    let (unit, _) = reprocessing_unit(delivery.id, &delivery.event, &payload, map, &known, store.now());
    if publisher.commit(unit).await? == Committed::Refused {
        return Err(DeliveryError::AlreadyProcessed);
    }
    Ok(get(store, id).await?.0)
}
