//! A worker thread's subscribers by channel: the loop that delivers. Lives on one thread, locks
//! nothing and never waits. Every entry knows its position, so whatever happens on the way here
//! (a parcel that did not fit, a history that was replaced) an entry that sees a hole goes back on
//! hold and catches up from the log; it can neither skip nor repeat an event.

mod batch;
mod entry;
mod sender;
mod tailor;
mod turns;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::outbox::Outbox;
use super::presence::Attendance;
use super::{CannotFollow, Hub, Worker};
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::telemetry::Metrics;
use crate::vital;
use batch::Run;
pub use batch::{Batch, Cursors, Framing, Parcel};
pub use entry::{Entry, Release};
use entry::{State, Tally};
use sender::Sender;
pub use tailor::Tailor;
use turns::Turns;

/// The subscribers of one worker thread.
pub struct Fanout {
    worker: Worker,
    hub: Hub,
    routes: RefCell<HashMap<ChannelName, Route>>,
    tally: Rc<Tally>,
}

/// One channel's entries on this thread.
#[derive(Default)]
struct Route {
    entries: Vec<Rc<Entry>>,
    /// This thread follows the channel, and everything up to here has come through its inbox
    /// (`None`: nothing is kept of it).
    reached: Option<Option<Position>>,
}

impl Route {
    fn reach(&mut self, position: Option<Position>) {
        match (&mut self.reached, position) {
            (Some(Some(old)), Some(new)) if old.epoch == new.epoch && old.offset > new.offset => {}
            (reached, position) => *reached = Some(position),
        }
    }
}

impl Fanout {
    /// A fan-out for the calling thread, with the task that empties its inbox.
    pub fn start(hub: Hub, metrics: Arc<Metrics>) -> Rc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let (inbox, parcels) = mpsc::channel(hub.0.options.inbox);
        let worker = Worker { id: NEXT.fetch_add(1, Ordering::Relaxed), inbox };
        let sender = Sender::new(hub.0.options.io_uring, metrics.clone());
        let tally = Rc::new(Tally::new(metrics));
        let fanout = Rc::new(Self { worker, hub, routes: RefCell::default(), tally });
        actix_rt::spawn(vital::part(fanout.clone().run(Turns::new(parcels), sender)));
        fanout
    }

    async fn run(self: Rc<Self>, mut turns: Turns<Parcel>, mut sender: Sender) {
        let mut turn = Vec::new();
        while turns.next(&mut turn).await {
            let began = Instant::now();
            // What came for one channel leaves together; between channels there is no order.
            turn.sort_by(|a, b| a.channel().cmp(b.channel()));
            for parcels in turn.chunk_by(|a, b| a.channel() == b.channel()) {
                self.deliver(parcels, &mut sender);
            }
            turn.clear();
            self.tally.tell();
            turns.over(began);
            tokio::task::yield_now().await;
        }
    }

    /// Delivers parcels of one channel, in their order.
    fn deliver(&self, parcels: &[Parcel], sender: &mut Sender) {
        let mut routes = self.routes.borrow_mut();
        let Some(route) = parcels.first().and_then(|parcel| routes.get_mut(parcel.channel())) else { return };
        let mut parcels = parcels.iter().peekable();
        while let Some(parcel) = parcels.next() {
            match parcel {
                Parcel::Events(batch) => {
                    let mut run = Run::of(batch);
                    while let Some(Parcel::Events(next)) = parcels.peek()
                        && run.extend(next)
                    {
                        parcels.next();
                    }
                    sender.hand_out(&route.entries, &run);
                    if let Some(epoch) = run.epoch() {
                        route.reach(Some(Position::new(epoch.clone(), run.last())));
                    }
                    if let Some(accepted) = run.accepted() {
                        self.tally.metrics.event_latency_seconds.observe(accepted.elapsed().as_secs_f64());
                    }
                }
                Parcel::Reset(_, bounds) => {
                    route.entries.iter().for_each(|entry| entry.reset(bounds));
                    route.reached = Some(Some(bounds.head.clone()));
                }
                Parcel::Moved(_, movement) => {
                    route.entries.iter().for_each(|entry| entry.take_movement(movement));
                }
                Parcel::Who(_, answer) => {
                    let members = route.entries.iter().filter_map(|entry| entry.member());
                    // It has room for everybody who is asked.
                    let _ = answer.try_send(members.collect());
                }
            }
        }
    }

    /// Whether a subscription to `channel` begins without waiting, because this thread follows it.
    pub fn follows(&self, channel: &ChannelName) -> bool {
        self.routes.borrow().get(channel).is_some_and(|route| route.reached.is_some())
    }

    /// The channels that have entries here, with their number.
    pub fn subscribers(&self) -> Vec<(ChannelName, usize)> {
        let routes = self.routes.borrow();
        routes.iter().map(|(channel, route)| (channel.clone(), route.entries.len())).collect()
    }

    /// Adds an entry on hold, and then makes this thread follow the channel. Everything after the
    /// answered position reaches the entry; what is before it is in the log.
    pub async fn subscribe(
        self: &Rc<Self>,
        channel: ChannelName,
        outbox: Rc<Outbox>,
        framing: Framing,
        visitor: Visitor,
    ) -> Result<(Subscription, Option<Position>), CannotFollow> {
        let (entry, reached) = {
            let mut routes = self.routes.borrow_mut();
            // One text of the name for all who follow it here.
            let channel = routes.get_key_value(&channel).map_or(channel, |(known, _)| known.clone());
            let tally = self.tally.clone();
            let entry = Rc::new(Entry::new(channel.clone(), outbox, framing, visitor, tally));
            let route = routes.entry(channel).or_default();
            route.entries.push(entry.clone());
            (entry, route.reached.clone())
        };
        let channel = entry.channel.clone();
        self.tally.metrics.subscriptions.inc();
        let subscription = Subscription { fanout: self.clone(), entry };
        let position = match reached {
            // What is under way to this thread comes after it.
            Some(reached) => reached,
            None => {
                let position = self.hub.join(&channel, &self.worker).await?;
                if let Some(route) = self.routes.borrow_mut().get_mut(&channel) {
                    route.reach(position.clone());
                }
                position
            }
        };
        if let Some(movement) = subscription.entry.movement(true) {
            self.hub.tell(&channel, movement);
        }
        Ok((subscription, position))
    }
}

/// What an entry is to others on its channel.
#[derive(Default)]
pub struct Visitor {
    /// How it is seen, if at all.
    pub attendance: Option<Attendance>,
    /// Whether it is told who comes and leaves.
    pub hears_others: bool,
    /// What it takes otherwise than it stands.
    pub tailor: Option<Box<Tailor>>,
}

/// An entry that is there as long as this is.
pub struct Subscription {
    fanout: Rc<Fanout>,
    entry: Rc<Entry>,
}

impl Subscription {
    /// The entry.
    pub fn entry(&self) -> &Rc<Entry> {
        &self.entry
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        *self.entry.state.borrow_mut() = State::Over;
        let hub = &self.fanout.hub;
        let channel = &self.entry.channel;
        let mut routes = self.fanout.routes.borrow_mut();
        let Some(route) = routes.get_mut(channel) else { return };
        if let Some(index) = route.entries.iter().position(|entry| Rc::ptr_eq(entry, &self.entry)) {
            route.entries.swap_remove(index);
            self.fanout.tally.metrics.subscriptions.dec();
        }
        if let Some(movement) = self.entry.movement(false) {
            hub.tell(channel, movement);
        }
        if route.entries.is_empty() {
            routes.remove(channel);
            hub.leave(channel, self.fanout.worker.id);
        }
    }
}

#[cfg(test)]
mod tests;
