//! From a delivery to a unit of work: its row in the audit log, the changes it makes, and the
//! events that stand for it. What cannot be interpreted becomes a row with its error.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::interpret::{Interpretation, Outcome, interpret};
use super::payload::Uninterpretable;
use super::repo_map::RepoMap;
use crate::domain::channel::ChannelName;
use crate::domain::delivery::{DeliveryId, DeliveryStatus};
use crate::domain::event::{NewEvent, Time, envelope};
use crate::domain::facts::{Change, EventFact};
use crate::publish::{Apply, Once, UnitOfWork, Verdict};
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

/// The unit of work for a delivery, and what becomes of it.
pub fn unit_of(received: Received<'_>, map: &RepoMap) -> std::io::Result<(UnitOfWork, DeliveryStatus)> {
    let meaning = Meaning::of(received.event, received.payload, map, received.received_at);
    let status = meaning.status;
    let delivery = NewDelivery {
        id: Uuid::now_v7(),
        delivery_id: received.delivery_id,
        event: received.event.to_owned(),
        action: meaning.action,
        repo: meaning.repo,
        payload: Payload::pack(received.payload.as_bytes())?,
        status,
        error: meaning.error,
        received_at: received.received_at,
    };
    let apply = (!meaning.changes.is_empty()).then(|| Box::new(Changes(meaning.changes)) as Box<dyn Apply>);
    let once = Once::Delivery(Box::new(delivery));
    Ok((UnitOfWork { once, apply, accepted: received.accepted, ..UnitOfWork::of(meaning.events) }, status))
}

/// The unit of work that processes a stored delivery again. It refuses when the delivery was
/// processed already, so its events are told once.
pub fn unit_again(
    id: Uuid,
    event: &str,
    payload: &str,
    map: &RepoMap,
    now: Time,
) -> (UnitOfWork, DeliveryStatus) {
    let meaning = Meaning::of(event, payload, map, now);
    let status = meaning.status;
    let again = Again {
        id,
        status,
        error: meaning.error,
        repo: meaning.repo,
        action: meaning.action,
        changes: Changes(meaning.changes),
    };
    let apply = Some(Box::new(again) as Box<dyn Apply>);
    (UnitOfWork { apply, ..UnitOfWork::of(meaning.events) }, status)
}

struct Meaning {
    status: DeliveryStatus,
    error: Option<String>,
    action: Option<String>,
    repo: Option<String>,
    changes: Vec<Change>,
    events: Vec<NewEvent>,
}

impl Meaning {
    fn of(event: &str, payload: &str, map: &RepoMap, at: Time) -> Self {
        let meant = interpret(event, payload.as_bytes(), map)
            .and_then(|meaning| Ok((events_of(&meaning.events, at)?, meaning)));
        match meant {
            Ok((events, Interpretation { action, repo, outcome, changes, .. })) => {
                let (status, error) = match outcome {
                    Outcome::Meaningful => (DeliveryStatus::Processed, None),
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

/// One fact is one event on `repo:` and one on `org:`, with the same id.
fn events_of(facts: &[EventFact], at: Time) -> Result<Vec<NewEvent>, Uninterpretable> {
    let mut events = Vec::with_capacity(2 * facts.len());
    let bad_name = |_| Uninterpretable::new("repository", "has a name that cannot be a channel");
    for fact in facts {
        let id = Uuid::now_v7();
        let full_name = fact.repo.as_ref().map(|name| format!("{}/{name}", fact.owner));
        let data: Arc<str> = envelope(id, fact.kind, at, full_name.as_deref(), &fact.data);
        if let Some(name) = &fact.repo {
            let channel = ChannelName::repo(&fact.owner, name).map_err(bad_name)?;
            events.push(NewEvent::new(channel, id, fact.kind, data.clone()));
        }
        let channel = ChannelName::org(&fact.owner).map_err(bad_name)?;
        events.push(NewEvent::new(channel, id, fact.kind, data));
    }
    Ok(events)
}

/// The changes of a delivery, applied in their order: repository before run before job.
struct Changes(Vec<Change>);

impl Changes {
    fn repository(&self) -> i64 {
        self.0.first().map_or(0, |change| match change {
            Change::RepoSeen(repo) | Change::Run { repo, .. } | Change::Job { repo, .. } => repo.github_id,
            Change::RepoRemoved { github_id } | Change::WebhookEnabled { github_id, .. } => *github_id,
        })
    }

    async fn make(&self, tx: &mut Transaction<'_>) -> store::Result<()> {
        for change in &self.0 {
            match change {
                Change::RepoSeen(repo) => {
                    tx.saw(repo);
                }
                Change::RepoRemoved { github_id } => tx.removed(*github_id).await?,
                Change::WebhookEnabled { github_id, enabled } => {
                    tx.webhook_enabled(*github_id, *enabled).await?
                }
                Change::Run { repo, run } => tx.ran(repo, run),
                Change::Job { repo, job } => tx.worked(repo, job),
            }
        }
        Ok(())
    }
}

impl Apply for Changes {
    fn order(&self) -> i64 {
        self.repository()
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            self.make(tx).await?;
            Ok(Verdict::Proceed)
        })
    }
}

/// A delivery that is interpreted once more.
struct Again {
    id: Uuid,
    status: DeliveryStatus,
    error: Option<String>,
    repo: Option<String>,
    action: Option<String>,
    changes: Changes,
}

impl Apply for Again {
    fn order(&self) -> i64 {
        self.changes.repository()
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>> {
        Box::pin(async move {
            let (error, repo, action) = (self.error.as_deref(), self.repo.as_deref(), self.action.as_deref());
            if !deliveries::settle(tx.conn, self.id, self.status, error, repo, action, tx.now).await? {
                return Ok(Verdict::Refuse);
            }
            self.changes.make(tx).await?;
            Ok(Verdict::Proceed)
        })
    }
}
