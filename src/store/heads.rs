//! Where channels end, as far as it is known without asking the database. Only for a store that
//! this process alone writes to (SQLite): what ends a transaction there also tells it here, on the
//! writer's thread and before anybody hears of the commit, so that a head found here is never older
//! than an answer that was given. A write that does not say what it moved makes all be forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::domain::channel::ChannelName;
use crate::domain::position::Position;

/// Channels that are remembered; with more all are forgotten, and the busy ones come back at once.
const MOST: usize = 10_000;

/// See the module.
#[derive(Default)]
pub struct Heads(Mutex<Known>);

#[derive(Default)]
struct Known {
    heads: HashMap<ChannelName, Position>,
    /// Counts the transactions.
    changes: u64,
}

/// A moment before the database was read.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

impl Heads {
    /// Where `channel` ends, if that is known.
    pub fn of(&self, channel: &ChannelName) -> Option<Position> {
        self.known().heads.get(channel).cloned()
    }

    /// To be called before the database is read.
    pub fn moment(&self) -> Moment {
        Moment(self.known().changes)
    }

    /// What was read after `since`; kept unless something was written meanwhile.
    pub fn learn(&self, since: Moment, channel: &ChannelName, head: &Position) {
        let mut known = self.known();
        if known.changes != since.0 {
            return;
        }
        if known.heads.len() >= MOST {
            known.heads.clear();
        }
        known.heads.insert(channel.clone(), head.clone());
    }

    /// A transaction has moved these heads and no other.
    pub(super) fn moved(&self, heads: impl IntoIterator<Item = (ChannelName, Position)>) {
        let mut known = self.known();
        known.changes += 1;
        for (channel, head) in heads {
            if let Some(old) = known.heads.get_mut(&channel)
                && (old.epoch != head.epoch || old.offset < head.offset)
            {
                *old = head;
            }
        }
    }

    /// A transaction may have moved anything.
    pub(super) fn forget(&self) {
        let mut known = self.known();
        known.changes += 1;
        known.heads.clear();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("nobody panics with the heads in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::position::Epoch;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name).unwrap()
    }

    fn at(offset: u64) -> Position {
        Position::new(Epoch::parse("e").unwrap(), offset)
    }

    #[test]
    fn a_head_is_known_until_something_unknown_is_written() {
        let (heads, news) = (Heads::default(), channel("news"));
        heads.learn(heads.moment(), &news, &at(3));
        assert_eq!(heads.of(&news), Some(at(3)));
        heads.moved([(news.clone(), at(5)), (news.clone(), at(4)), (channel("other"), at(1))]);
        assert_eq!((heads.of(&news), heads.of(&channel("other"))), (Some(at(5)), None));
        heads.forget();
        assert_eq!(heads.of(&news), None);
    }

    #[test]
    fn what_was_read_while_something_was_written_is_not_kept() {
        let (heads, news) = (Heads::default(), channel("news"));
        let before = heads.moment();
        heads.moved([(news.clone(), at(4))]);
        heads.learn(before, &news, &at(3));
        assert_eq!(heads.of(&news), None, "it may be from before");
    }

    #[test]
    fn there_are_never_too_many() {
        let heads = Heads::default();
        for i in 0..=MOST {
            heads.learn(heads.moment(), &channel(&format!("news:{i}")), &at(1));
        }
        assert!(heads.known().heads.len() <= MOST);
        assert_eq!(heads.of(&channel(&format!("news:{MOST}"))), Some(at(1)));
    }
}
