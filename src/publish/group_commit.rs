//! Group commit: all units that wait share one transaction and one sync. When it fails, its halves are
//! tried, so that a bad unit fails alone and costs the others few transactions.
//!
//! Order of locks in a transaction: delivery ids, then the rows that units lock, all at once, then rows
//! that were buffered, by table and key, then all channel heads by name, then events and
//! keys, then rows that follow from the events.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use super::metrics::Metrics;
use super::{Apply, Committed, NewRow, PublishError, Request, UnitOfWork, Verdict};
use crate::bus::{Announcement, Bus, Content, EventHandler, HubEvent};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, NewEvent};
use crate::domain::position::{Epoch, Position};
use crate::store::deliveries::{self, NewDelivery};
use crate::store::log::{self, Append, Appended, IdempotencyKey, LogTx};
use crate::store::{self, LockKey, Store, StoreError, Transaction};

/// Units in one transaction.
const BATCH: usize = 256;

pub(super) struct GroupCommit {
    pub store: Store,
    pub bus: Bus,
    pub on_event: EventHandler,
    pub metrics: Arc<Metrics>,
}

impl GroupCommit {
    /// One transaction at a time: what arrives meanwhile makes the next batch. On Postgres two at
    /// once were measured slower, because they wait for each other's channels in smaller batches.
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>) {
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
        let (batch, repeats) = split_repeats(batch);
        let used = self.commit_batch(batch).await;
        // Where the first one was refused, the next one is the first.
        let (known, open): (Vec<_>, Vec<_>) =
            repeats.into_iter().partition(|request| request.changing_keys().all(|key| used.contains(&key)));
        if !known.is_empty() {
            self.commit_batch(known).await;
        }
        if !open.is_empty() {
            Box::pin(self.process_batch(open)).await;
        }
    }

    /// Answers the keys under which state was changed, now or before.
    async fn commit_batch(&self, mut batch: Vec<Request>) -> HashSet<ChangingKey> {
        let mut used = HashSet::new();
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
                    let own: Vec<_> = outcomes.by_ref().take(request.units.len()).collect();
                    if !own.contains(&Committed::Refused) {
                        used.extend(request.changing_keys());
                    }
                    let _ = request.reply.send(Ok(own));
                }
            }
            Err(StoreError::Unavailable(reason)) => self.unconfirmed(batch, &reason),
            Err(error) if batch.len() == 1 => {
                tracing::warn!(%error, "a unit of work failed");
                let error = PublishError::Failed(Arc::new(error));
                batch.into_iter().for_each(|request| drop(request.reply.send(Err(error.clone()))));
            }
            Err(error) => {
                tracing::debug!(%error, units = batch.len(), "a batch failed; its halves are tried");
                let rest = batch.split_off(batch.len() / 2);
                used.extend(Box::pin(self.commit_batch(batch)).await);
                used.extend(Box::pin(self.commit_batch(rest)).await);
            }
        }
        used
    }

    /// One transaction, retried while it conflicts with others.
    async fn transact(&self, units: &Arc<[Arc<UnitOfWork>]>) -> store::Result<Vec<Committed>> {
        let started = Instant::now();
        self.metrics.commit_batch_size.observe(units.len() as f64);
        let done = store::retry_conflicts(|| {
            let (work, appended) = (units.clone(), units.clone());
            self.store.append(
                move |tx| async move { commit(tx, &work).await }.boxed(),
                move |outcomes| heads(&appended, outcomes),
            )
        });
        let done = done.await;
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        done
    }

    /// It is unknown whether the batch was committed: its channels are compared with the log.
    fn unconfirmed(&self, batch: Vec<Request>, reason: &str) {
        tracing::error!(reason, units = batch.len(), "a commit was not confirmed");
        let units = batch.iter().flat_map(|request| &request.units);
        let touched = units.flat_map(|unit| &unit.events).filter(|event| event.kept);
        let mut channels: Vec<ChannelName> = touched.map(|event| event.channel.clone()).collect();
        channels.sort();
        channels.dedup();
        self.publish(HubEvent::Check(channels));
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
            self.publish(HubEvent::Appended(announcements));
        }
    }

    /// To all nodes, this one included.
    fn publish(&self, event: HubEvent) {
        self.bus.publish(&event);
        (self.on_event)(event);
    }
}

/// A key under which state changes, with its channel.
type ChangingKey = (ChannelName, String);

impl Request {
    fn changing_keys(&self) -> impl Iterator<Item = ChangingKey> {
        let changing = self.units.iter().filter(|unit| unit.apply.is_some());
        changing.filter_map(|unit| unit.key()).map(|key| (key.channel.clone(), key.key.clone()))
    }
}

/// Splits off the requests that change state under a key of an earlier one: only when that one is settled,
/// it is known what they are.
fn split_repeats(batch: Vec<Request>) -> (Vec<Request>, Vec<Request>) {
    let mut keys = HashSet::new();
    batch.into_iter().partition(|request| {
        let own: Vec<_> = request.changing_keys().collect();
        let is_first = !own.iter().any(|key| keys.contains(key));
        keys.extend(own);
        is_first
    })
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
async fn commit(mut conn: LogTx<'_>, units: &[Arc<UnitOfWork>]) -> store::Result<Vec<Committed>> {
    let now = conn.now;
    let mut outcomes: Vec<Option<Committed>> = units.iter().map(|_| None).collect();

    let delivered: Vec<&NewDelivery> = units.iter().filter_map(|unit| unit.delivery()).collect();
    if !delivered.is_empty() {
        let mut new = deliveries::insert_new(&mut conn, &delivered).await?;
        for (unit, outcome) in units.iter().zip(&mut outcomes) {
            // `remove`, because a batch may hold one delivery twice: the first is the new one.
            if unit.delivery().is_some_and(|delivery| !new.remove(delivery.delivery_id.as_str())) {
                *outcome = Some(Committed::Duplicate(None));
            }
        }
    }

    let changing = || units.iter().enumerate().filter(|(_, unit)| unit.apply.is_some());
    let keys: Vec<&IdempotencyKey> = changing().filter_map(|(_, unit)| unit.key()).collect();
    let known = log::known_keys(&mut conn, &keys, now).await?;
    for (i, unit) in changing() {
        let position = unit.key().and_then(|key| known.get(&(key.channel.as_str(), key.key.as_str())));
        if let Some(position) = position {
            outcomes[i] = Some(Committed::Duplicate(Some(position.clone())));
        }
    }

    let mut changes: Vec<(Vec<LockKey>, usize, &dyn Apply)> = units
        .iter()
        .enumerate()
        .filter(|(i, _)| outcomes[*i].is_none())
        .filter_map(|(i, unit)| unit.apply.as_deref().map(|apply| (apply.locks(), i, apply)))
        .collect();
    changes.sort_by(|(locks, i, _), (others, j, _)| (locks, i).cmp(&(others, j)));
    let mut tx = Transaction::new(&mut conn, now);
    tx.lock(changes.iter().flat_map(|(locks, ..)| locks).copied().collect()).await?;
    for (_, i, apply) in changes {
        if apply.apply(&mut tx).await? == Verdict::Refuse {
            outcomes[i] = Some(Committed::Refused);
        }
    }

    tx.finish().await?;
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
        log::append(&mut conn, &appends).await?
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
    let done = units.iter().zip(&outcomes).filter(|(_, end)| matches!(end, Some(Committed::Done(_))));
    let rows: Vec<&Box<dyn NewRow>> = done.flat_map(|(unit, _)| &unit.rows).collect();
    if !rows.is_empty() {
        let mut tx = Transaction::new(&mut conn, now);
        for row in rows {
            row.insert(&mut tx).await?;
        }
        tx.finish().await?;
    }
    Ok(outcomes.into_iter().flatten().collect())
}
