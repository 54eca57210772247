//! The publisher: the only way to publish an event. A unit of work is committed as a whole or not
//! at all, and its caller gets the result only after the commit. Units that are queued together share
//! one transaction and one sync (group commit); when such a batch fails, its units are tried one by
//! one, so that a bad unit fails alone. A batch that neither stores nor changes anything does not
//! use the store, so that ephemeral events do not depend on it.

mod apply;
mod group_commit;
mod metrics;
mod reaction;
mod request;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::bus::{Bus, EventHandler};
use crate::domain::channel::ChannelName;
use crate::domain::event::{NewEvent, Time};
use crate::domain::position::Position;
use crate::store::deliveries::NewDelivery;
use crate::store::log::IdempotencyKey;
use crate::store::{Store, StoreError, Ts};
use group_commit::GroupCommit;

pub use crate::store::log::Version;
pub use apply::{Apply, Verdict};
pub use metrics::Metrics;
pub use reaction::{NewRow, Reaction};
pub use request::{PublishRequest, RequestError, is_key};

/// The most queued units; one more is refused with [`PublishError::Busy`].
pub const QUEUE: usize = 4096;
/// The longest idempotency key, in bytes.
pub const MAX_KEY: usize = 255;
/// How long an idempotency key is known (protocol §13).
const KEY_WINDOW: Duration = Duration::from_secs(300);

/// One change: its deduplication, its effect on the state, and its events. Either all of it is
/// committed or nothing.
pub struct UnitOfWork {
    /// How a repetition is recognised.
    pub dedup: Dedup,
    /// The change of state, if there is one beside the events.
    pub apply: Option<Box<dyn Apply>>,
    /// The events, in the order in which they are appended. Their channels are locked together.
    pub events: Vec<NewEvent>,
    /// Which state of its channel the first event shows; one that is not newer counts as a repeat.
    pub version: Option<Version>,
    /// Rows that are inserted after the events. [`Reaction`]s add theirs.
    pub rows: Vec<Box<dyn NewRow>>,
    /// When it arrived here, for the latency metrics.
    pub accepted: Instant,
}

/// How the repetition of a unit is recognised.
pub enum Dedup {
    /// Not at all: each unit is a new one.
    None,
    /// By the delivery's id. The delivery becomes a row of the audit log.
    Delivery(Box<NewDelivery>),
    /// By a key of the publisher's.
    Key(IdempotencyKey),
}

impl Dedup {
    /// By `key`, which is known on `channel` for five minutes from `now`.
    pub fn by_key(channel: ChannelName, key: String, now: Time) -> Self {
        let expires_at = Ts::from(now).plus(KEY_WINDOW);
        Self::Key(IdempotencyKey { channel, key, expires_at })
    }
}

/// How a unit of work ended. In every case what it had for the store is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It took place; the positions of its kept events, in their order.
    Done(Vec<Position>),
    /// It was known and changed nothing; where the event is, if its key says so, or else the head
    /// of a channel that knows a version as new. What is not kept is at offset 0.
    Duplicate(Option<Position>),
    /// Its change of state refused.
    Refused,
}

/// A unit of work that was not, or perhaps not, committed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// Too many units wait: nothing was changed, try again later.
    #[error("the publisher's queue is full")]
    Busy,
    /// The store did not confirm. A retry with the same delivery id or key is safe.
    #[error("the store did not confirm: {0}")]
    Unconfirmed(String),
    /// The unit cannot be committed; nothing was changed.
    #[error("the unit of work cannot be committed: {0}")]
    Failed(Arc<StoreError>),
}

/// Units that share their transaction, whatever else is in it.
struct Request {
    units: Vec<Arc<UnitOfWork>>,
    reply: oneshot::Sender<Result<Vec<Committed>, PublishError>>,
}

/// A handle on the publisher; cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Request>,
    reactions: Arc<[Box<dyn Reaction>]>,
    metrics: Arc<Metrics>,
    /// The store whose deadline limits the wait of callers, where the publisher's own task may be
    /// blocked by a disk that does not answer.
    clock: Option<Store>,
}

impl Publisher {
    /// A publisher and its task, which ends when the last handle is dropped and the queue is empty.
    /// `on_event` gets what was committed, for this node; `bus` carries it to the others.
    pub fn new(
        store: Store,
        bus: Bus,
        on_event: EventHandler,
        reactions: Vec<Box<dyn Reaction>>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let clock = store.writing_thread().is_some().then(|| store.clone());
        let committer = GroupCommit { store, bus, on_event, metrics: metrics.clone() };
        (Self { queue, reactions: reactions.into(), metrics, clock }, committer.run(requests))
    }

    /// Commits `unit`; returns when it is durable. It goes on even if the caller stops waiting.
    pub async fn commit(&self, unit: UnitOfWork) -> Result<Committed, PublishError> {
        let committed = self.commit_all(vec![unit]).await?;
        Ok(committed.into_iter().next().expect("each unit has its answer"))
    }

    /// Commits `units` in one transaction, and so all of them or none; each ends in its own way.
    pub async fn commit_all(&self, mut units: Vec<UnitOfWork>) -> Result<Vec<Committed>, PublishError> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        for unit in &mut units {
            let UnitOfWork { events, rows, .. } = unit;
            for reaction in self.reactions.iter() {
                rows.extend(events.iter().flat_map(|event| reaction.react(event)));
            }
        }
        let (reply, answer) = oneshot::channel();
        let request = Request { units: units.into_iter().map(Arc::new).collect(), reply };
        self.queue.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Busy,
            mpsc::error::TrySendError::Closed(_) => PublishError::Unconfirmed("shutting down".into()),
        })?;
        self.metrics.publish_queue_length.inc();
        let answer = match &self.clock {
            Some(store) => {
                store.wait_for(answer).await.map_err(|error| PublishError::Unconfirmed(error.to_string()))?
            }
            None => answer.await,
        };
        answer.unwrap_or_else(|_| Err(PublishError::Unconfirmed("the publisher stopped".into())))
    }
}

impl UnitOfWork {
    /// A unit of events alone.
    pub fn of(events: Vec<NewEvent>) -> Self {
        Self {
            dedup: Dedup::None,
            apply: None,
            events,
            version: None,
            rows: Vec::new(),
            accepted: Instant::now(),
        }
    }

    /// Whether nothing of it has to be stored.
    fn is_ephemeral(&self) -> bool {
        self.apply.is_none()
            && self.rows.is_empty()
            && matches!(self.dedup, Dedup::None)
            && self.events.iter().all(|event| !event.kept)
    }

    fn delivery(&self) -> Option<&NewDelivery> {
        match &self.dedup {
            Dedup::Delivery(delivery) => Some(delivery),
            Dedup::None | Dedup::Key(_) => None,
        }
    }

    fn key(&self) -> Option<&IdempotencyKey> {
        match &self.dedup {
            Dedup::Key(key) => Some(key),
            Dedup::None | Dedup::Delivery(_) => None,
        }
    }
}
