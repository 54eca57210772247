//! Drops messages that arrive twice: by Redis and by NOTIFY, or because somebody repeats them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;

use uuid::Uuid;

/// The most recent message numbers kept for each node, to drop duplicates.
const RECENT_PER_NODE: usize = 4_096;
/// The most nodes for which they are kept.
const MAX_NODES: usize = 1_024;

/// The numbers of the messages that were received lately, for each node.
#[derive(Default)]
pub(super) struct Dedup(Mutex<HashMap<Uuid, Recent>>);

#[derive(Default)]
struct Recent {
    numbers: HashSet<u64>,
    order: VecDeque<u64>,
    /// The highest number that is no longer kept: what is not above it may have been received.
    forgotten: u64,
}

impl Dedup {
    /// Whether this message has not been received before, over either transport.
    pub(super) fn is_new(&self, from: Uuid, number: u64) -> bool {
        let mut received = self.0.lock().expect("no thread panics while holding this lock");
        if received.len() >= MAX_NODES && !received.contains_key(&from) {
            received.clear();
        }
        let recent = received.entry(from).or_default();
        if number <= recent.forgotten || !recent.numbers.insert(number) {
            return false;
        }
        recent.order.push_back(number);
        if recent.order.len() > RECENT_PER_NODE
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.numbers.remove(&oldest);
            recent.forgotten = recent.forgotten.max(oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_counts_once_however_long_ago_it_came() {
        let (dedup, node) = (Dedup::default(), Uuid::from_u128(1));
        let many = 2 * RECENT_PER_NODE as u64;
        // Two carriers swap neighbours.
        for pair in 0..many / 2 {
            assert!(dedup.is_new(node, 2 * pair + 2) && dedup.is_new(node, 2 * pair + 1));
        }
        assert!((1..=many).all(|number| !dedup.is_new(node, number)));
        assert!(dedup.is_new(node, many + 1) && dedup.is_new(Uuid::from_u128(2), 1));
    }
}
