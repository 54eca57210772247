//! The worker threads that subscribe to a channel. Each event is offered to each once. A worker whose
//! inbox is full *lags*: it gets what it lacks from the log as soon as it has capacity, and nothing
//! before that, so its order is never broken and nobody waits for it.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::mpsc;

use super::catch_up::read_page;
use super::{ChannelActor, RETRY_DELAY};
use crate::domain::position::Position;
use crate::hub::fanout::{Batch, FanoutMessage};
use crate::hub::metrics::Queue;
use crate::store;
use crate::store::log::{Bounds, Page};

/// A subscribed worker thread.
pub(super) struct WorkerFeed {
    pub(super) inbox: mpsc::Sender<FanoutMessage>,
    /// Its inbox was full; it gets this as soon as there is room, and nothing before it.
    pub(super) lag: Option<Lag>,
}

/// What a worker thread lacks whose inbox was full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lag {
    /// What follows this position; the log has it.
    After(Position),
    /// The message that the history was replaced, and then what follows.
    Reset(Bounds),
}

impl ChannelActor {
    /// Offers a message to every worker. One without capacity lags from then on, or loses the message if
    /// no history is kept.
    pub(super) fn broadcast(&mut self, message: &FanoutMessage, lag: Option<Lag>, ctx: &mut Context<Self>) {
        let mut full = Vec::new();
        self.workers.retain(|id, feed| {
            if feed.lag.is_some() {
                return true;
            }
            match feed.inbox.try_send(message.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    feed.lag.clone_from(&lag);
                    full.push(*id);
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        for id in full {
            self.metrics().queue_overflows.inc(Queue::Worker);
            self.await_capacity(id, ctx);
        }
    }

    /// Waits until the worker's inbox has capacity, then brings it up to date from the log.
    pub(super) fn await_capacity(&mut self, id: usize, ctx: &mut Context<Self>) {
        let Some(feed) = self.workers.get(&id) else { return };
        let room = feed.inbox.clone().reserve_owned();
        ctx.spawn(room.into_actor(self).map(move |permit, actor, ctx| match permit {
            Ok(permit) => actor.refill(id, permit, ctx),
            Err(_) => drop(actor.workers.remove(&id)),
        }));
    }

    fn refill(&mut self, id: usize, permit: mpsc::OwnedPermit<FanoutMessage>, ctx: &mut Context<Self>) {
        let (Some(sequencer), Some(retention)) = (&self.sequencer, self.retention) else { return };
        let Some(feed) = self.workers.get_mut(&id) else { return };
        let until = sequencer.position().clone();
        match feed.lag.clone() {
            None => {}
            Some(Lag::Reset(bounds)) => {
                feed.lag = Some(Lag::After(bounds.head.clone()));
                permit.send(FanoutMessage::Reset(self.name.clone(), bounds));
                self.await_capacity(id, ctx);
            }
            // It knows of a history that the channel itself has yet to find.
            Some(Lag::After(from)) if from.epoch != until.epoch => {
                self.read_log(ctx);
                ctx.run_later(RETRY_DELAY, move |actor, ctx| actor.await_capacity(id, ctx));
            }
            Some(Lag::After(from)) if from.offset >= until.offset => feed.lag = None,
            Some(Lag::After(from)) => {
                let (store, name) = (self.store().clone(), self.name.clone());
                let page = read_page(store, name, retention, from.clone(), Some(until.offset));
                ctx.spawn(
                    page.into_actor(self)
                        .map(move |page, actor, ctx| actor.refilled(id, permit, from, page, ctx)),
                );
            }
        }
    }

    fn refilled(
        &mut self,
        id: usize,
        permit: mpsc::OwnedPermit<FanoutMessage>,
        from: Position,
        page: store::Result<Page>,
        ctx: &mut Context<Self>,
    ) {
        let Some(feed) = self.workers.get_mut(&id) else { return };
        // Meanwhile the history may have been replaced, or the worker have subscribed anew.
        if feed.lag.as_ref() != Some(&Lag::After(from.clone())) {
            drop(permit);
            return self.await_capacity(id, ctx);
        }
        match page {
            Ok(Page::Events { events, .. }) => {
                let Some(last) = events.last() else {
                    // The log ends before this channel's position: the channel itself has to find that
                    // out.
                    drop(permit);
                    self.read_log(ctx);
                    ctx.run_later(RETRY_DELAY, move |actor, ctx| actor.await_capacity(id, ctx));
                    return;
                };
                feed.lag = Some(Lag::After(Position::new(from.epoch.clone(), last.offset)));
                let batch = Batch::new(self.name.clone(), Some(from.epoch), events, None);
                permit.send(FanoutMessage::Events(Arc::new(batch)));
                self.await_capacity(id, ctx);
            }
            Ok(Page::Lost(bounds)) => {
                feed.lag = Some(Lag::Reset(bounds));
                drop(permit);
                self.await_capacity(id, ctx);
            }
            Err(error) => {
                drop(permit);
                tracing::warn!(channel = %self.name, %error, "a worker thread could not catch up; retrying");
                ctx.run_later(RETRY_DELAY, move |actor, ctx| actor.await_capacity(id, ctx));
            }
        }
    }
}
