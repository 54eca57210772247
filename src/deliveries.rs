//! The audit log of webhook deliveries: list, one with its payload, process again. A delivery names the
//! repository that it is about, so its callers are admins.

use uuid::Uuid;

use crate::publish::{Committed, PublishError, Publisher};
use crate::sources::github::{RepoMap, reprocessing_unit};
use crate::store::{Store, StoreError, deliveries};

pub use crate::store::deliveries::Delivery;

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
    repos: &RepoMap,
    id: &str,
) -> Result<Delivery, DeliveryError> {
    let (delivery, payload) = get(store, id).await?;
    let payload = payload.ok_or(DeliveryError::PayloadGone)?;
    let (unit, _) = reprocessing_unit(delivery.id, &delivery.event, &payload, repos, store.now());
    if publisher.commit(unit).await? == Committed::Refused {
        return Err(DeliveryError::AlreadyProcessed);
    }
    Ok(get(store, id).await?.0)
}
