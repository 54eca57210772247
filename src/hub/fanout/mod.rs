//! A worker thread's subscribers by channel: the loop that delivers. Lives on one thread, locks nothing
//! and never waits. Every subscriber knows its position, so whatever happens on the way here (a message
//! that did not fit, a history that was replaced), a subscriber that sees a gap pauses again and catches
//! up from the log; it can neither skip nor repeat an event.

mod batch;
mod batch_writer;
mod counters;
mod pause_buffer;
mod per_subscriber;
#[cfg(test)]
mod playing;
mod scheduler;
mod subscriber;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::outbox::Outbox;
use super::{Followed, Hub, SubscribeError, Worker};
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::domain::presence::PresenceInfo;
use crate::hub::Metrics;
use crate::protocol::encoding::Framing;
use crate::supervision;
use batch::MergedBatch;
pub use batch::{Batch, FanoutMessage};
use batch_writer::BatchWriter;
use counters::DeliveryCounters;
pub use per_subscriber::PerSubscriber;
use scheduler::DrainScheduler;
use subscriber::State;
pub use subscriber::{Resume, Subscriber};

/// The subscribers of one worker thread.
pub struct Fanout {
    worker: Worker,
    hub: Hub,
    routes: RefCell<HashMap<ChannelName, Route>>,
    counters: Rc<DeliveryCounters>,
}

/// One channel's subscribers on this thread.
#[derive(Default)]
struct Route {
    subscribers: Vec<Rc<Subscriber>>,
    /// This thread follows the channel, and everything up to the position has come through its inbox.
    followed: Option<Followed>,
}

impl Route {
    /// The channel's actor has answered. What came through the inbox in the meantime counts.
    fn follow(&mut self, answer: &Followed) {
        match &mut self.followed {
            Some(known) if known.actor == answer.actor && known.position.is_some() => {}
            known => *known = Some(answer.clone()),
        }
    }

    /// Everything up to `position` has come through the inbox.
    fn reach(&mut self, position: Position) {
        let Some(Followed { position: known, .. }) = &mut self.followed else { return };
        match known {
            Some(old) if old.epoch == position.epoch && old.offset > position.offset => {}
            known => *known = Some(position),
        }
    }
}

impl Fanout {
    /// A fan-out for the calling thread, with the task that empties its inbox.
    pub fn start(hub: Hub, metrics: Arc<Metrics>) -> Rc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let (inbox, messages) = mpsc::channel(hub.0.options.inbox);
        let worker = Worker { id: NEXT.fetch_add(1, Ordering::Relaxed), inbox };
        let writer = BatchWriter::new(hub.0.options.io_uring, metrics.clone());
        let counters = Rc::new(DeliveryCounters::new(metrics));
        let fanout = Rc::new(Self { worker, hub, routes: RefCell::default(), counters });
        actix_rt::spawn(supervision::critical(fanout.clone().run(DrainScheduler::new(messages), writer)));
        fanout
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn metrics(&self) -> &Metrics {
        &self.counters.metrics
    }

    async fn run(self: Rc<Self>, mut scheduler: DrainScheduler<FanoutMessage>, mut writer: BatchWriter) {
        let mut round = Vec::new();
        while scheduler.next(&mut round).await {
            let began = Instant::now();
            // Messages of one channel are delivered together; between channels there is no order.
            round.sort_by(|a, b| a.channel().cmp(b.channel()));
            for messages in round.chunk_by(|a, b| a.channel() == b.channel()) {
                self.deliver(messages, &mut writer);
            }
            round.clear();
            self.counters.flush();
            scheduler.finished(began);
            tokio::task::yield_now().await;
        }
    }

    /// Delivers messages of one channel, in their order.
    fn deliver(&self, messages: &[FanoutMessage], writer: &mut BatchWriter) {
        let mut routes = self.routes.borrow_mut();
        let Some(route) = messages.first().and_then(|message| routes.get_mut(message.channel())) else {
            return;
        };
        let mut messages = messages.iter().peekable();
        while let Some(message) = messages.next() {
            match message {
                FanoutMessage::Events(batch) => {
                    let mut merged = MergedBatch::of(batch);
                    while let Some(FanoutMessage::Events(next)) = messages.peek()
                        && merged.extend(next)
                    {
                        messages.next();
                    }
                    writer.write(&route.subscribers, &merged);
                    if let Some(epoch) = merged.epoch() {
                        route.reach(Position::new(epoch.clone(), merged.last()));
                    }
                    if let Some(accepted) = merged.accepted() {
                        self.counters.metrics.event_latency_seconds.observe(accepted.elapsed().as_secs_f64());
                    }
                }
                FanoutMessage::Reset(_, bounds) => {
                    route.subscribers.iter().for_each(|subscriber| subscriber.reset(bounds));
                    if let Some(followed) = &mut route.followed {
                        followed.position = Some(bounds.head.clone());
                    }
                }
                FanoutMessage::Presence(_, presence_change) => {
                    route
                        .subscribers
                        .iter()
                        .for_each(|subscriber| subscriber.deliver_presence(presence_change));
                }
                FanoutMessage::ListMembers(_, answer) => {
                    let members = route.subscribers.iter().filter_map(|subscriber| subscriber.member());
                    // It has capacity for everybody who is asked.
                    let _ = answer.try_send(members.collect());
                }
            }
        }
    }

    /// Whether a subscription to `channel` starts without waiting, because this thread is subscribed to
    /// it.
    pub fn is_subscribed(&self, channel: &ChannelName) -> bool {
        self.routes.borrow().get(channel).is_some_and(|route| self.followed(route, channel).is_some())
    }

    /// What is known of `channel`, if it still holds.
    fn followed<'r>(&self, route: &'r Route, channel: &ChannelName) -> Option<&'r Followed> {
        route.followed.as_ref().filter(|followed| self.hub.is_current(channel, followed))
    }

    /// The channels that have subscribers here, with their number.
    pub fn subscribers(&self) -> Vec<(ChannelName, usize)> {
        let routes = self.routes.borrow();
        routes.iter().map(|(channel, route)| (channel.clone(), route.subscribers.len())).collect()
    }

    /// Adds a paused subscriber, and then subscribes this thread to the channel. Everything after the
    /// returned position reaches the subscriber; what is before it is in the log.
    pub async fn subscribe(
        self: &Rc<Self>,
        channel: ChannelName,
        outbox: Rc<Outbox>,
        framing: Framing,
        options: SubscriberOptions,
    ) -> Result<(SubscriptionGuard, Option<Position>), SubscribeError> {
        let (subscriber, followed) = {
            let mut routes = self.routes.borrow_mut();
            // All subscribers of a channel on this thread share one string for its name.
            let channel = routes.get_key_value(&channel).map_or(channel, |(known, _)| known.clone());
            let counters = self.counters.clone();
            let subscriber = Rc::new(Subscriber::new(channel.clone(), outbox, framing, options, counters));
            let route = routes.entry(channel.clone()).or_default();
            route.subscribers.push(subscriber.clone());
            (subscriber, self.followed(route, &channel).cloned())
        };
        let channel = subscriber.channel.clone();
        self.counters.metrics.subscriptions.inc();
        let subscription = SubscriptionGuard { fanout: self.clone(), subscriber };
        let position = match followed {
            // What is on its way to this thread comes after it.
            Some(followed) => followed.position,
            None => {
                let followed = self.hub.join(&channel, &self.worker).await?;
                if let Some(route) = self.routes.borrow_mut().get_mut(&channel) {
                    route.follow(&followed);
                }
                followed.position
            }
        };
        if let Some(presence_change) = subscription.subscriber.presence_change(true) {
            self.hub.publish_presence(&channel, presence_change);
        }
        Ok((subscription, position))
    }
}

/// How a subscriber takes part in its channel.
#[derive(Default)]
pub struct SubscriberOptions {
    /// How presence shows it, if at all.
    pub presence_info: Option<PresenceInfo>,
    /// Whether it gets join and leave messages.
    pub receives_join_leave: bool,
    /// Its filter by tags and whether it takes deltas, if either.
    pub per_subscriber: Option<Box<PerSubscriber>>,
}

/// Keeps a subscriber in the fan-out until it is dropped.
pub struct SubscriptionGuard {
    fanout: Rc<Fanout>,
    subscriber: Rc<Subscriber>,
}

impl SubscriptionGuard {
    pub fn subscriber(&self) -> &Rc<Subscriber> {
        &self.subscriber
    }
}

impl Drop for SubscriptionGuard {
    fn drop(&mut self) {
        *self.subscriber.state.borrow_mut() = State::Closed;
        let hub = &self.fanout.hub;
        let channel = &self.subscriber.channel;
        let mut routes = self.fanout.routes.borrow_mut();
        let Some(route) = routes.get_mut(channel) else { return };
        if let Some(index) =
            route.subscribers.iter().position(|subscriber| Rc::ptr_eq(subscriber, &self.subscriber))
        {
            route.subscribers.swap_remove(index);
            self.fanout.counters.metrics.subscriptions.dec();
        }
        if let Some(presence_change) = self.subscriber.presence_change(false) {
            hub.publish_presence(channel, presence_change);
        }
        if route.subscribers.is_empty() {
            routes.remove(channel);
            hub.leave(channel, self.fanout.worker.id);
        }
    }
}

#[cfg(test)]
mod tests;
