//! The publisher: the only way to publish an event. A unit of work is committed as a whole or not
//! at all, and its caller gets the result only after the commit. Units that are queued together share
//! one transaction and one sync (group commit); when such a batch fails, its units are tried one by
//! one, so that a bad unit fails alone. A batch that neither stores nor changes anything does not
//! use the store, so that ephemeral events do not depend on it.
//!
//! Order of locks in a transaction: delivery ids, then state rows by each unit's `order`, then all
//! channel heads by name, then events and keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rand::RngExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::bus::{Announcement, Bus, Content, HubEvent};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, NewEvent};
use crate::domain::position::{Epoch, Position};
use crate::store::deliveries::{self, NewDelivery};
use crate::store::log::{self, Append, Appended, IdempotencyKey, Version};
use crate::store::{self, Conn, Store, StoreError, Transaction, Ts};
use crate::telemetry::metrics::{Counter, Gauge, Histogram, durations, metrics};

/// The most queued units; one more is refused with [`PublishError::Busy`].
pub const QUEUE: usize = 4096;
/// Units in one transaction.
const BATCH: usize = 256;
/// How often a transaction that conflicted with another is retried.
const RETRIES: u32 = 5;

metrics! {
    Metrics("") {
        /// From the arrival of a unit of work at the publisher to its commit.
        publish_seconds: Histogram = durations(),
        /// Duration of one transaction.
        commit_seconds: Histogram = durations(),
        /// Units of work in one transaction.
        commit_batch_size: Histogram = Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
        /// Events appended to the log.
        events: Counter,
        /// Units of work that wait for the publisher.
        publish_queue_length: Gauge,
    }
}

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

/// A change of state that is committed with its events. It may run more than once (each time in a
/// new transaction, the earlier one rolled back), so it has no effect but in `tx`.
pub trait Apply: Send + Sync {
    /// What decides the order among the units of a transaction: the owner of the rows that it
    /// locks, such as a repository's number. Units of one owner lock in a fixed order.
    fn order(&self) -> i64;

    /// Changes rows. To refuse, answer [`Verdict::Refuse`] before anything was changed.
    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>>;
}

/// What a change of state says about its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on: append the events.
    Proceed,
    /// The state does not allow it: append nothing.
    Refuse,
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
    metrics: Arc<Metrics>,
    /// The store whose deadline limits the wait of callers, where the publisher's own task may be
    /// blocked by a disk that does not answer.
    clock: Option<Store>,
}

impl Publisher {
    /// A publisher and its task, which ends when the last handle is dropped and the queue is empty.
    pub fn new(store: Store, bus: Bus, metrics: Arc<Metrics>) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, requests) = mpsc::channel(QUEUE);
        let clock = store.writing_thread().is_some().then(|| store.clone());
        let committer = BatchCommitter { store, bus, metrics: metrics.clone() };
        (Self { queue, metrics, clock }, committer.run(requests))
    }

    /// Commits `unit`; returns when it is durable. It goes on even if the caller stops waiting.
    pub async fn commit(&self, unit: UnitOfWork) -> Result<Committed, PublishError> {
        let committed = self.commit_all(vec![unit]).await?;
        Ok(committed.into_iter().next().expect("each unit has its answer"))
    }

    /// Commits `units` in one transaction, and so all of them or none; each ends in its own way.
    pub async fn commit_all(&self, units: Vec<UnitOfWork>) -> Result<Vec<Committed>, PublishError> {
        if units.is_empty() {
            return Ok(Vec::new());
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

struct BatchCommitter {
    store: Store,
    bus: Bus,
    metrics: Arc<Metrics>,
}

impl BatchCommitter {
    /// One transaction at a time: what arrives meanwhile makes the next batch. On Postgres two at
    /// once were measured slower, because they wait for each other's channels in smaller batches.
    async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(BATCH);
        while requests.recv_many(&mut waiting, BATCH).await > 0 {
            let mut rest = std::mem::take(&mut waiting).into_iter().peekable();
            // A request with many units gets a transaction almost for itself.
            while rest.peek().is_some() {
                let (mut batch, mut units) = (Vec::new(), 0);
                while units < BATCH
                    && let Some(request) =
                        rest.next_if(|request| units == 0 || units + request.units.len() <= BATCH)
                {
                    units += request.units.len();
                    batch.push(request);
                }
                self.metrics.publish_queue_length.dec_by(batch.len() as i64);
                self.process_batch(batch).await;
            }
        }
    }

    /// Commits a batch, announces it and answers its callers.
    async fn process_batch(&self, batch: Vec<Request>) {
        let units: Arc<[Arc<UnitOfWork>]> =
            batch.iter().flat_map(|request| request.units.iter().cloned()).collect();
        let ephemeral = units.iter().all(|unit| unit.is_ephemeral());
        let settled = if ephemeral {
            Ok(units.iter().map(|_| Committed::Done(Vec::new())).collect())
        } else {
            self.transact(&units).await
        };
        match settled {
            Ok(outcomes) => {
                self.announce(&units, &outcomes);
                let mut outcomes = outcomes.into_iter();
                for request in batch {
                    for unit in &request.units {
                        self.metrics.publish_seconds.observe(unit.accepted.elapsed().as_secs_f64());
                    }
                    let _ = request.reply.send(Ok(outcomes.by_ref().take(request.units.len()).collect()));
                }
            }
            Err(StoreError::Unavailable(reason)) => self.unconfirmed(batch, &reason),
            Err(error) if batch.len() == 1 => {
                tracing::warn!(%error, "a unit of work failed");
                let error = PublishError::Failed(Arc::new(error));
                batch.into_iter().for_each(|request| drop(request.reply.send(Err(error.clone()))));
            }
            Err(error) => {
                tracing::debug!(%error, units = batch.len(), "a batch failed; its units are tried one by one");
                for request in batch {
                    Box::pin(self.process_batch(vec![request])).await;
                }
            }
        }
    }

    /// One transaction, retried while it conflicts with others.
    async fn transact(&self, units: &Arc<[Arc<UnitOfWork>]>) -> store::Result<Vec<Committed>> {
        let started = Instant::now();
        self.metrics.commit_batch_size.observe(units.len() as f64);
        let mut tries = 0;
        loop {
            let (work, appended, store) = (units.clone(), units.clone(), self.store.clone());
            // The generation is asked for when the connection is there: a new one may have found
            // that the server is another one now.
            let done = self
                .store
                .append(
                    move |conn| {
                        async move { commit(conn, &work, &store.generation(), store.timestamp()).await }
                            .boxed()
                    },
                    move |outcomes| heads(&appended, outcomes),
                )
                .await;
            if matches!(done, Err(StoreError::Contended)) && tries < RETRIES {
                tries += 1;
                let pause = rand::rng().random_range(1..=4u64 << tries);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                continue;
            }
            self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
            return done;
        }
    }

    /// It is unknown whether the batch was committed: its channels are compared with the log.
    fn unconfirmed(&self, batch: Vec<Request>, reason: &str) {
        tracing::error!(reason, units = batch.len(), "a commit was not confirmed");
        let units = batch.iter().flat_map(|request| &request.units);
        let touched = units.flat_map(|unit| &unit.events).filter(|event| event.kept);
        let mut channels: Vec<ChannelName> = touched.map(|event| event.channel.clone()).collect();
        channels.sort();
        channels.dedup();
        self.bus.publish(HubEvent::Check(channels));
        for request in batch {
            let _ = request.reply.send(Err(PublishError::Unconfirmed(reason.to_owned())));
        }
    }

    fn announce(&self, units: &[Arc<UnitOfWork>], outcomes: &[Committed]) {
        let mut logged: BTreeMap<(&ChannelName, Epoch), (Vec<Event>, Instant)> = BTreeMap::new();
        let mut announcements = Vec::new();
        for (unit, outcome) in units.iter().zip(outcomes) {
            let Committed::Done(positions) = outcome else { continue };
            self.metrics.events.inc_by(positions.len() as u64);
            let mut positions = positions.iter();
            for event in &unit.events {
                if !event.kept {
                    announcements.push(Announcement {
                        channel: event.channel.clone(),
                        content: Content::Ephemeral(vec![event.at(0)]),
                        accepted: Some(unit.accepted),
                    });
                } else if let Some(position) = positions.next() {
                    let (events, _) = logged
                        .entry((&event.channel, position.epoch.clone()))
                        .or_insert_with(|| (Vec::new(), unit.accepted));
                    events.push(event.at(position.offset));
                }
            }
        }
        announcements.extend(logged.into_iter().map(|((channel, epoch), (events, accepted))| Announcement {
            channel: channel.clone(),
            content: Content::Logged { epoch, events },
            accepted: Some(accepted),
        }));
        if !announcements.is_empty() {
            self.bus.publish(HubEvent::Appended(announcements));
        }
    }
}

/// The new heads of the channels whose events were stored.
fn heads(units: &[Arc<UnitOfWork>], outcomes: &[Committed]) -> Vec<(ChannelName, Position)> {
    let done = units.iter().zip(outcomes).filter_map(|(unit, outcome)| match outcome {
        Committed::Done(positions) => Some((unit, positions)),
        Committed::Duplicate(_) | Committed::Refused => None,
    });
    done.flat_map(|(unit, positions)| {
        let kept = unit.events.iter().filter(|event| event.kept);
        kept.zip(positions).map(|(event, position)| (event.channel.clone(), position.clone()))
    })
    .collect()
}

/// The body of the transaction.
async fn commit(
    conn: &mut Conn,
    units: &[Arc<UnitOfWork>],
    generation: &Epoch,
    now: Ts,
) -> store::Result<Vec<Committed>> {
    let mut outcomes: Vec<Option<Committed>> = units.iter().map(|_| None).collect();

    let delivered: Vec<&NewDelivery> = units.iter().filter_map(|unit| unit.delivery()).collect();
    if !delivered.is_empty() {
        let mut new = deliveries::insert_new(conn, &delivered).await?;
        for (unit, outcome) in units.iter().zip(&mut outcomes) {
            // `remove`, because a batch may hold one delivery twice: the first is the new one.
            if unit.delivery().is_some_and(|delivery| !new.remove(delivery.delivery_id.as_str())) {
                *outcome = Some(Committed::Duplicate(None));
            }
        }
    }

    let changing = || units.iter().enumerate().filter(|(_, unit)| unit.apply.is_some());
    let keys: Vec<&IdempotencyKey> = changing().filter_map(|(_, unit)| unit.key()).collect();
    let known = log::known_keys(conn, &keys, now).await?;
    for (i, unit) in changing() {
        let position = unit.key().and_then(|key| known.get(&(key.channel.as_str(), key.key.as_str())));
        if let Some(position) = position {
            outcomes[i] = Some(Committed::Duplicate(Some(position.clone())));
        }
    }

    let mut changes: Vec<(i64, usize, &dyn Apply)> = units
        .iter()
        .enumerate()
        .filter(|(i, _)| outcomes[*i].is_none())
        .filter_map(|(i, unit)| unit.apply.as_deref().map(|apply| (apply.order(), i, apply)))
        .collect();
    changes.sort_by_key(|(order, i, _)| (*order, *i));
    let mut tx = Transaction::new(conn, now);
    for (_, i, apply) in changes {
        if apply.apply(&mut tx).await? == Verdict::Refuse {
            outcomes[i] = Some(Committed::Refused);
        }
    }

    let conn = tx.finish().await?;
    let open: Vec<usize> = (0..units.len()).filter(|i| outcomes[*i].is_none()).collect();
    let kept: Vec<Vec<&NewEvent>> =
        open.iter().map(|i| units[*i].events.iter().filter(|event| event.kept).collect()).collect();
    let appends: Vec<Append<'_>> = open
        .iter()
        .map(|i| &units[*i])
        .zip(&kept)
        .map(|(unit, events)| Append { events, key: unit.key(), version: unit.version.as_ref() })
        .collect();
    let appended = if appends.iter().all(|append| append.events.is_empty() && append.key.is_none()) {
        Vec::new()
    } else {
        log::append(conn, generation, now, &appends).await?
    };
    let mut appended = appended.into_iter();
    for i in open {
        outcomes[i] = Some(match appended.next() {
            Some(Appended::New(positions)) => Committed::Done(positions),
            // Another transaction, or a unit of this one, was first with the key. What this unit
            // did to the state must go, and the next try will know the key before.
            Some(Appended::Known(_)) if units[i].apply.is_some() => return Err(StoreError::Contended),
            Some(Appended::Known(position)) => Committed::Duplicate(Some(position)),
            None => Committed::Done(Vec::new()),
        });
    }
    Ok(outcomes.into_iter().flatten().collect())
}

impl UnitOfWork {
    /// A unit of events alone.
    pub fn of(events: Vec<NewEvent>) -> Self {
        Self { dedup: Dedup::None, apply: None, events, version: None, accepted: Instant::now() }
    }

    /// Whether nothing of it has to be stored.
    fn is_ephemeral(&self) -> bool {
        self.apply.is_none()
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
