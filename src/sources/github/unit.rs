//! From a delivery to a unit of work: its row in the audit log, the changes it makes, and the events that are
//! published for it. A delivery that cannot be interpreted becomes a row with its error.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::interpret::{Interpretation, Outcome, interpret};
use super::payload::PayloadError;
use super::repo_map::RepoMap;
use crate::domain::channel::ChannelName;
use crate::domain::delivery::{DeliveryId, DeliveryStatus};
use crate::domain::event::{NewEvent, Time, envelope};
use crate::domain::workflow::{EventDraft, StateChange};
use crate::publish::{Apply, Dedup, UnitOfWork, Verdict};
use crate::store::deliveries::{self, NewDelivery, Payload};
use crate::store::{self, Transaction};

/// A delivery whose signature was found right.
#[derive(Debug)]
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

/// The unit of work for a delivery, and the status of the delivery.
pub fn unit_of(received: Received<'_>, map: &RepoMap) -> std::io::Result<(UnitOfWork, DeliveryStatus)> {
    let interpreted = Interpreted::of(received.event, received.payload, map, received.received_at);
    let status = interpreted.status;
    let delivery = NewDelivery {
        id: Uuid::now_v7(),
        delivery_id: received.delivery_id,
        event: received.event.to_owned(),
        action: interpreted.action,
        repo: interpreted.repo,
        payload: Payload::pack(received.payload.as_bytes())?,
        status,
        error: interpreted.error,
        received_at: received.received_at,
    };
    let apply = (!interpreted.changes.is_empty())
        .then(|| Box::new(StateChanges(interpreted.changes)) as Box<dyn Apply>);
    let dedup = Dedup::Delivery(Box::new(delivery));
    Ok((
        UnitOfWork { dedup, apply, accepted: received.accepted, ..UnitOfWork::of(interpreted.events) },
        status,
    ))
}

/// The unit of work that processes a stored delivery again. It refuses if the delivery was processed
/// already, so its events are published only once.
pub fn reprocessing_unit(
    id: Uuid,
    event: &str,
    payload: &str,
    map: &RepoMap,
    now: Time,
) -> (UnitOfWork, DeliveryStatus) {
    let interpreted = Interpreted::of(event, payload, map, now);
    let status = interpreted.status;
    let reprocess = Reprocess {
        id,
        status,
        error: interpreted.error,
        repo: interpreted.repo,
        action: interpreted.action,
        changes: StateChanges(interpreted.changes),
    };
    let apply = Some(Box::new(reprocess) as Box<dyn Apply>);
    (UnitOfWork { apply, ..UnitOfWork::of(interpreted.events) }, status)
}

struct Interpreted {
    status: DeliveryStatus,
    error: Option<String>,
    action: Option<String>,
    repo: Option<String>,
    changes: Vec<StateChange>,
    events: Vec<NewEvent>,
}

impl Interpreted {
    fn of(event: &str, payload: &str, map: &RepoMap, at: Time) -> Self {
        let result = interpret(event, payload.as_bytes(), map)
            .and_then(|interpreted| Ok((events_of(&interpreted.events, at)?, interpreted)));
        match result {
            Ok((events, Interpretation { action, repo, outcome, changes, .. })) => {
                let (status, error) = match outcome {
                    Outcome::Handled => (DeliveryStatus::Processed, None),
                    Outcome::Ignored(reason) => (DeliveryStatus::Ignored, Some(reason.to_owned())),
                };
                let repo = repo.map(|repo| format!("{}/{}", repo.owner, repo.name));
                Self { status, error, action, repo, changes, events }
            }
            Err(problem) => Self {
                status: DeliveryStatus::Failed,
                error: Some(problem.to_string()),
                action: None,
                repo: None,
                changes: Vec::new(),
                events: Vec::new(),
            },
        }
    }
}

/// Each draft becomes one event on `repo:` and one on `org:`, with the same id.
fn events_of(drafts: &[EventDraft], at: Time) -> Result<Vec<NewEvent>, PayloadError> {
    let mut events = Vec::with_capacity(2 * drafts.len());
    let bad_name = |_| PayloadError::new("repository", "has a name that cannot be a channel");
    for draft in drafts {
        let id = Uuid::now_v7();
        let full_name = draft.repo.as_ref().map(|name| format!("{}/{name}", draft.owner));
        let data: Arc<str> = envelope(id, draft.kind, at, full_name.as_deref(), &draft.data);
        if let Some(name) = &draft.repo {
            let channel = ChannelName::repo(&draft.owner, name).map_err(bad_name)?;
            events.push(NewEvent::new(channel, id, draft.kind, data.clone()));
        }
        let channel = ChannelName::org(&draft.owner).map_err(bad_name)?;
        events.push(NewEvent::new(channel, id, draft.kind, data));
    }
    Ok(events)
}

/// The changes of a delivery, applied in their order: repository before run before job.
struct StateChanges(Vec<StateChange>);

impl StateChanges {
    fn repository(&self) -> i64 {
        self.0.first().map_or(0, |change| match change {
            StateChange::RepoUpdated(repo)
            | StateChange::Run { repo, .. }
            | StateChange::Job { repo, .. } => repo.github_id,
            StateChange::RepoRemoved { github_id } | StateChange::WebhookEnabled { github_id, .. } => {
                *github_id
            }
        })
    }

    async fn write(&self, tx: &mut Transaction<'_>) -> store::Result<()> {
        for change in &self.0 {
            match change {
                StateChange::RepoUpdated(repo) => {
                    tx.upsert_repo(repo);
                }
                StateChange::RepoRemoved { github_id } => tx.remove_repo(*github_id).await?,
                StateChange::WebhookEnabled { github_id, enabled } => {
                    tx.webhook_enabled(*github_id, *enabled).await?
                }
                StateChange::Run { repo, run } => tx.upsert_run(repo, run),
                StateChange::Job { repo, job } => tx.upsert_job(repo, job),
            }
        }
        Ok(())
    }
}

impl Apply for StateChanges {
    fn order(&self) -> i64 {
        self.repository()
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            self.write(tx).await?;
            Ok(Verdict::Proceed)
        })
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
    fn order(&self) -> i64 {
        self.changes.repository()
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            let (error, repo, action) = (self.error.as_deref(), self.repo.as_deref(), self.action.as_deref());
            if !deliveries::settle(tx.conn, self.id, self.status, error, repo, action, tx.now).await? {
                return Ok(Verdict::Refuse);
            }
            self.changes.write(tx).await?;
            Ok(Verdict::Proceed)
        })
    }
}
