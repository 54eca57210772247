//! What a worker thread counts while it delivers, added to the metrics once a round.

use std::cell::Cell;
use std::sync::Arc;

use crate::hub::metrics::{Metrics, Transport};
use crate::protocol::encoding::Framing;
use crate::telemetry::metrics::Counter;

pub(super) struct DeliveryCounters {
    pub(super) metrics: Arc<Metrics>,
    /// By [`Framing::index`].
    counters: [(LocalCounter, LocalCounter); Framing::COUNT],
}

struct LocalCounter {
    counter: Counter,
    pending: Cell<u64>,
}

impl LocalCounter {
    fn new(counter: Counter) -> Self {
        Self { counter, pending: Cell::new(0) }
    }

    fn add(&self, more: u64) {
        self.pending.set(self.pending.get() + more);
    }

    fn flush(&self) {
        self.counter.inc_by(self.pending.take());
    }
}

impl DeliveryCounters {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let counters = Framing::names().map(|name| {
            let [events, bytes] =
                [&metrics.messages_sent, &metrics.sent_bytes].map(|all| all.with(Transport(name)));
            (LocalCounter::new(events), LocalCounter::new(bytes))
        });
        Self { metrics, counters }
    }

    pub(super) fn count_events(&self, framing: &Framing, events: u64) {
        self.counters[framing.index()].0.add(events);
    }

    /// What goes through the body of an answer is counted there.
    pub(super) fn count_bytes(&self, framing: &Framing, bytes: usize) {
        if framing.is_socket() {
            self.counters[framing.index()].1.add(bytes as u64);
        }
    }

    pub(super) fn flush(&self) {
        for (events, bytes) in &self.counters {
            events.flush();
            bytes.flush();
        }
    }
}
