//! A channel's followers: the worker threads that have subscribers. Each event is offered to each
//! once. A worker whose inbox is full is *behind*: it gets what it lacks from the log as soon as
//! it has room, and nothing before that, so its order is never broken and nobody waits for it.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::mpsc;

use super::reading::read_page;
use super::{ChannelActor, RETRY};
use crate::domain::position::Position;
use crate::hub::fanout::{Batch, Parcel};
use crate::store;
use crate::store::log::{Bounds, Page};
use crate::telemetry::count;

/// A worker thread that has subscribers.
pub(super) struct Follower {
    pub(super) inbox: mpsc::Sender<Parcel>,
    /// Its inbox was full; it gets this as soon as there is room, and nothing before it.
    pub(super) behind: Option<Behind>,
}

/// What a worker thread lacks whose inbox was full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Behind {
    /// What follows this position; the log has it.
    After(Position),
    /// To hear that the history was replaced, and then what follows.
    Reset(Bounds),
}

impl ChannelActor {
    /// Offers a parcel to every follower. Who has no room is `behind` from then on, or loses the
    /// parcel if nothing is kept of it.
    pub(super) fn hand_out(&mut self, parcel: &Parcel, behind: Option<Behind>, ctx: &mut Context<Self>) {
        let mut full = Vec::new();
        self.followers.retain(|id, follower| {
            if follower.behind.is_some() {
                return true;
            }
            match follower.inbox.try_send(parcel.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    follower.behind.clone_from(&behind);
                    full.push(*id);
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        for id in full {
            count(&self.metrics().behind, "worker");
            self.await_room(id, ctx);
        }
    }

    /// Waits until the worker's inbox has room, then brings it up to date from the log.
    pub(super) fn await_room(&mut self, id: usize, ctx: &mut Context<Self>) {
        let Some(follower) = self.followers.get(&id) else { return };
        let room = follower.inbox.clone().reserve_owned();
        ctx.spawn(room.into_actor(self).map(move |permit, actor, ctx| match permit {
            Ok(permit) => actor.refill_worker(id, permit, ctx),
            Err(_) => drop(actor.followers.remove(&id)),
        }));
    }

    fn refill_worker(&mut self, id: usize, permit: mpsc::OwnedPermit<Parcel>, ctx: &mut Context<Self>) {
        let (Some(order), Some(retention)) = (&self.order, self.retention) else { return };
        let Some(follower) = self.followers.get_mut(&id) else { return };
        let until = order.position().clone();
        match follower.behind.clone() {
            None => {}
            Some(Behind::Reset(bounds)) => {
                follower.behind = Some(Behind::After(bounds.head.clone()));
                permit.send(Parcel::Reset(self.name.clone(), bounds));
                self.await_room(id, ctx);
            }
            // It has heard of a history that the channel itself has yet to find.
            Some(Behind::After(from)) if from.epoch != until.epoch => {
                self.read_log(ctx);
                ctx.run_later(RETRY, move |actor, ctx| actor.await_room(id, ctx));
            }
            Some(Behind::After(from)) if from.offset >= until.offset => follower.behind = None,
            Some(Behind::After(from)) => {
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
        permit: mpsc::OwnedPermit<Parcel>,
        from: Position,
        page: store::Result<Page>,
        ctx: &mut Context<Self>,
    ) {
        let Some(follower) = self.followers.get_mut(&id) else { return };
        // While the log was read the history may have been replaced, or the worker have come back.
        if follower.behind.as_ref() != Some(&Behind::After(from.clone())) {
            drop(permit);
            return self.await_room(id, ctx);
        }
        match page {
            Ok(Page::Events { events, .. }) => {
                let Some(last) = events.last() else {
                    // The log ends before this channel's position: that is for the channel to find.
                    drop(permit);
                    self.read_log(ctx);
                    ctx.run_later(RETRY, move |actor, ctx| actor.await_room(id, ctx));
                    return;
                };
                follower.behind = Some(Behind::After(Position::new(from.epoch.clone(), last.offset)));
                let batch = Batch::new(self.name.clone(), Some(from.epoch), events, None);
                permit.send(Parcel::Events(Arc::new(batch)));
                self.await_room(id, ctx);
            }
            Ok(Page::Lost(bounds)) => {
                follower.behind = Some(Behind::Reset(bounds));
                drop(permit);
                self.await_room(id, ctx);
            }
            Err(error) => {
                drop(permit);
                tracing::warn!(channel = %self.name, %error, "a worker thread cannot catch up yet");
                ctx.run_later(RETRY, move |actor, ctx| actor.await_room(id, ctx));
            }
        }
    }
}
