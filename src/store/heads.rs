//! A cache of channel heads (the last position of each channel). Only for a store that this process
//! alone writes to (SQLite): each transaction updates the cache on the writer's thread, before any
//! caller learns of the commit, so that a cached head is never older than an answer that was given.
//! A write to the log that does not name the heads it moved clears the cache.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::domain::channel::ChannelName;
use crate::domain::position::Position;

/// The most channels in the cache; with more it is cleared, and the busy ones soon return.
const MAX_CHANNELS: usize = 10_000;

#[derive(Default)]
pub struct Heads(Mutex<Known>);

#[derive(Default)]
struct Known {
    heads: HashMap<ChannelName, Position>,
    /// Counts the transactions.
    changes: u64,
}

/// The version of the cache before the database was read.
#[derive(Debug, Clone, Copy)]
pub struct Version(u64);

impl Heads {
    /// The head of `channel`, if it is cached.
    pub fn of(&self, channel: &ChannelName) -> Option<Position> {
        self.known().heads.get(channel).cloned()
    }

    /// The current version, to be taken before the database is read.
    pub fn version(&self) -> Version {
        Version(self.known().changes)
    }

    /// Caches a head that was read after `since`, unless something was written meanwhile.
    pub fn learn(&self, since: Version, channel: &ChannelName, head: &Position) {
        let mut known = self.known();
        if known.changes != since.0 {
            return;
        }
        if known.heads.len() >= MAX_CHANNELS {
            known.heads.clear();
        }
        known.heads.insert(channel.clone(), head.clone());
    }

    /// A transaction has moved these heads and no others.
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

    /// A transaction may have moved any head.
    pub(super) fn forget(&self) {
        let mut known = self.known();
        known.changes += 1;
        known.heads.clear();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no thread panics while holding this lock")
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
        heads.learn(heads.version(), &news, &at(3));
        assert_eq!(heads.of(&news), Some(at(3)));
        heads.moved([(news.clone(), at(5)), (news.clone(), at(4)), (channel("other"), at(1))]);
        assert_eq!((heads.of(&news), heads.of(&channel("other"))), (Some(at(5)), None));
        heads.forget();
        assert_eq!(heads.of(&news), None);
    }

    #[test]
    fn what_was_read_while_something_was_written_is_not_kept() {
        let (heads, news) = (Heads::default(), channel("news"));
        let before = heads.version();
        heads.moved([(news.clone(), at(4))]);
        heads.learn(before, &news, &at(3));
        assert_eq!(heads.of(&news), None, "it may be from before");
    }

    #[test]
    fn there_are_never_too_many() {
        let heads = Heads::default();
        for i in 0..=MAX_CHANNELS {
            heads.learn(heads.version(), &channel(&format!("news:{i}")), &at(1));
        }
        assert!(heads.known().heads.len() <= MAX_CHANNELS);
        assert_eq!(heads.of(&channel(&format!("news:{MAX_CHANNELS}"))), Some(at(1)));
    }
}
