//! The channels of a node that nobody follows any more. They stay for a while, because subscribers come back; there
//! are so many of them at most, and one more ends the oldest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use actix::{Message, Recipient};

use super::metrics::Metrics;

/// Tells a channel that there are too many without subscribers.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct EndIdle;

pub(super) struct IdleChannels {
    most: usize,
    table: Mutex<Table>,
    metrics: Arc<Metrics>,
}

/// By age.
#[derive(Default)]
struct Table {
    channels: BTreeMap<u64, Recipient<EndIdle>>,
    begun: u64,
}

impl IdleChannels {
    pub(super) fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self { most, table: Mutex::default(), metrics }
    }

    /// The last subscriber of `channel` has left, or the first one has not come yet.
    pub(super) fn begin(&self, channel: Recipient<EndIdle>) -> u64 {
        let mut table = self.table();
        let id = table.begun;
        table.begun += 1;
        table.channels.insert(id, channel);
        if table.channels.len() > self.most
            && let Some((_, oldest)) = table.channels.pop_first()
        {
            self.metrics.channels_evicted.inc();
            oldest.do_send(EndIdle);
        }
        id
    }

    /// A subscriber has come, or the channel ends.
    pub(super) fn end(&self, id: u64) {
        self.table().channels.remove(&id);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("the lock is not poisoned")
    }
}
