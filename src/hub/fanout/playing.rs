//! For tests that play the fan-out themselves.

use std::rc::Rc;
use std::sync::Arc;

use super::SubscriberOptions;
use super::batch::{Batch, MergedBatch};
use super::counters::DeliveryCounters;
use super::pause_buffer::Buffered;
use super::subscriber::{State, Subscriber};
use crate::domain::channel::ChannelName;
use crate::hub::outbox::Outbox;
use crate::protocol::encoding::Framing;
use crate::store::log::Bounds;

impl Subscriber {
    pub(crate) fn for_test(channel: ChannelName, outbox: Rc<Outbox>) -> Rc<Self> {
        let counters = Rc::new(DeliveryCounters::new(Arc::default()));
        Rc::new(Self::new(channel, outbox, Framing::WebSocket, SubscriberOptions::default(), counters))
    }

    pub(crate) fn feed(&self, batches: &[Arc<Batch>]) {
        let Some((first, rest)) = batches.split_first() else { return };
        let mut merged = MergedBatch::of(first);
        for batch in rest {
            if !merged.extend(batch) {
                self.deliver_merged(&merged);
                merged = MergedBatch::of(batch);
            }
        }
        self.deliver_merged(&merged);
    }

    pub(crate) fn feed_reset(&self, bounds: &Bounds) {
        self.reset(bounds);
    }

    pub(crate) fn end(&self) {
        *self.state.borrow_mut() = State::Closed;
    }

    /// All state that decides what it does next.
    pub(crate) fn state_summary(&self) -> String {
        match &*self.state.borrow() {
            State::Closed => "closed".to_owned(),
            State::Live(position) => format!("live {position:?}"),
            State::Paused(buffer) => {
                let offsets = |item: &Buffered| match item {
                    Buffered::Batch(batch) => format!("{}-{}", batch.first(), batch.last()),
                    Buffered::PresenceChange(_) => "moved".to_owned(),
                };
                let items: Vec<String> = buffer.items.iter().map(offsets).collect();
                format!("paused {items:?} {} {:?}", buffer.incomplete, buffer.resume_from)
            }
        }
    }
}
