//! The heads of channels that a connection has moved, so that its next append need not ask for them.
//! Only on SQLite, where one connection of one process writes. Whatever else may change a head or an
//! epoch (a rollback, [`Store::write_log`](crate::store::Store::write_log)) clears them, and a head is
//! moved only if the database still has it where it is known to be.

use std::collections::HashMap;

/// The most channels; with more the heads are forgotten, and those of busy channels soon return.
const MAX_CHANNELS: usize = 10_000;

/// A channel's part of its epoch, and the offset of its last event.
pub(super) type Head = (String, i64);

#[derive(Default)]
pub struct KnownHeads(HashMap<String, Head>);

impl KnownHeads {
    pub(super) fn of(&self, channel: &str) -> Option<&Head> {
        self.0.get(channel)
    }

    /// `channel` ends at `head` now.
    pub(super) fn learn(&mut self, channel: &str, head: Head) {
        if let Some(known) = self.0.get_mut(channel) {
            *known = head;
            return;
        }
        if self.0.len() >= MAX_CHANNELS {
            self.0.clear();
        }
        self.0.insert(channel.to_owned(), head);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
