//! From a delivery to a unit of work: its row in the audit log, the changes it makes, and the events that are
//! published for it. A delivery that cannot be interpreted becomes a row with its error.

use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::interpret::interpret_with;
use super::interpretation::Interpretation;
use super::payload::PayloadError;
use super::repo_map::RepoMap;
use super::rows::WorkflowRows;
use crate::domain::channel::ChannelName;
use crate::domain::delivery::{DeliveryId, DeliveryStatus};
use crate::domain::event::{NewEvent, Time, envelope};
use crate::domain::workflow::{EventDraft, RepoUpdate, StateChange};
use crate::publish::{Apply, Dedup, UnitOfWork, Verdict};
use crate::store::deliveries::{self, NewDelivery, Payload};
use crate::store::{self, LockKey, Table, Transaction};

/// A delivery whose signature was found right.
#[derive(Debug, Clone)]
pub struct Received<'a> {
    /// `X-GitHub-Delivery`.
    pub delivery_id: DeliveryId,
    /// `X-GitHub-Event`.
    pub event: &'a str,
    /// The payload: JSON text, kept verbatim.
    pub payload: &'a str,
    /// When it came, by the store's clock.
    pub received_at: Time,
    /// When it came, for the latency metrics.
    pub accepted: Instant,
}

/// The unit of work for a delivery, the status of the delivery, and the repository that it names. `known` are the
/// repositories that it is [about](super::about) without naming them, or this one, as it was called so far.
pub fn unit_of(
    received: Received<'_>,
    map: &RepoMap,
    known: &[RepoUpdate],
) -> std::io::Result<(UnitOfWork, DeliveryStatus, Option<RepoUpdate>)> {
    let (interpretation, events) = read(received.event, received.payload, map, known, received.received_at);
    let (status, error) = interpretation.status();
    let delivery = NewDelivery {
        id: Uuid::now_v7(),
        delivery_id: received.delivery_id,
        event: received.event.to_owned(),
        repo: interpretation.repo_name(),
        action: interpretation.action.clone(),
        payload: Payload::pack(received.payload.as_bytes())?,
        status,
        error,
        received_at: received.received_at,
    };
    let changes = interpretation.changes;
    let apply = (!changes.is_empty()).then(|| Box::new(StateChanges(changes)) as Box<dyn Apply>);
    let dedup = Dedup::Delivery(Box::new(delivery));
    let unit = UnitOfWork { dedup, apply, accepted: received.accepted, ..UnitOfWork::of(events) };
    Ok((unit, status, interpretation.repo))
}

/// The unit of work that processes a stored delivery again. It refuses if the delivery was processed
/// already, so its events are published only once.
pub fn reprocessing_unit(
    id: Uuid,
    event: &str,
    payload: &str,
    map: &RepoMap,
    known: &[RepoUpdate],
    now: Time,
) -> (UnitOfWork, DeliveryStatus) {
    let (interpretation, events) = read(event, payload, map, known, now);
    let (status, error) = interpretation.status();
    let reprocess = Reprocess {
        id,
        status,
        error,
        repo: interpretation.repo_name(),
        action: interpretation.action,
        changes: StateChanges(interpretation.changes),
    };
    (UnitOfWork { apply: Some(Box::new(reprocess)), ..UnitOfWork::of(events) }, status)
}

/// What a delivery means, and the events to publish for it.
fn read(
    event: &str,
    payload: &str,
    map: &RepoMap,
    known: &[RepoUpdate],
    at: Time,
) -> (Interpretation, Vec<NewEvent>) {
    interpret_with(event, payload.as_bytes(), map, known)
        .and_then(|interpretation| {
            let events = events_of(&interpretation.events, at)?;
            Ok((interpretation, events))
        })
        .unwrap_or_else(|error| (Interpretation::failed(error), Vec::new()))
}

/// Each draft becomes one event on `repo:` and one on `org:`, with the same id, and on those of a former name.
fn events_of(drafts: &[EventDraft], at: Time) -> Result<Vec<NewEvent>, PayloadError> {
    let mut events = Vec::with_capacity(2 * drafts.len());
    let bad_name = |_| PayloadError::new("repository", "has a name that cannot be a channel");
    for draft in drafts {
        let id = Uuid::now_v7();
        let full_name = draft.repo.as_ref().map(|name| format!("{}/{name}", draft.owner));
        let data: Arc<str> = envelope(id, draft.kind, at, full_name.as_deref(), &draft.data);
        let names = [(&draft.owner, &draft.repo)].into_iter();
        let names = names.chain(draft.former.iter().map(|former| (&former.owner, &former.repo)));
        let mut told: Option<&str> = None;
        for (owner, repo) in names {
            if let Some(name) = repo {
                let channel = ChannelName::repo(owner, name).map_err(bad_name)?;
                events.push(NewEvent::new(channel, id, draft.kind, data.clone()));
            }
            if told != Some(owner) {
                let channel = ChannelName::org(owner).map_err(bad_name)?;
                events.push(NewEvent::new(channel, id, draft.kind, data.clone()));
            }
            told = Some(owner);
        }
    }
    Ok(events)
}

/// The changes of a delivery, applied in their order: repository before run before job.
struct StateChanges(Vec<StateChange>);

impl StateChanges {
    fn add_to(&self, tx: &mut Transaction<'_>) {
        let rows: &mut WorkflowRows = tx.buffer();
        self.0.iter().for_each(|change| rows.add(change));
    }
}

impl Apply for StateChanges {
    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        self.add_to(tx);
        Box::pin(ready(Ok(Verdict::Proceed)))
    }
}

/// Processes a stored delivery again.
struct Reprocess {
    id: Uuid,
    status: DeliveryStatus,
    error: Option<String>,
    repo: Option<String>,
    action: Option<String>,
    changes: StateChanges,
}

impl Apply for Reprocess {
    fn locks(&self) -> Vec<LockKey> {
        vec![LockKey::of(Table::Deliveries, self.id)]
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            let (error, repo, action) = (self.error.as_deref(), self.repo.as_deref(), self.action.as_deref());
            if !deliveries::settle(tx.conn, self.id, self.status, error, repo, action, tx.now).await? {
                return Ok(Verdict::Refuse);
            }
            self.changes.add_to(tx);
            Ok(Verdict::Proceed)
        })
    }
}
