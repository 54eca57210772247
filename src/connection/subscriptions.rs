//! The subscriptions of one connection: a sorted list, because most connections have one or two
//! and every byte counts a hundred thousand times. Owns also which qualities a subscription gets
//! from its namespace, its token and the client's wishes. Knows no commands.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::access::{KnownItem, Overrides};
use crate::domain::channel::ChannelName;
use crate::domain::options::ChannelOptions;
use crate::protocol::filter::Filter;

/// A subscription that is live.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The token of the connection made it, not a command.
    pub(super) server_side: bool,
    /// A loss of events ends it.
    pub(super) positioned: bool,
    /// Its own token admitted it, so that what the connection's token says does not matter.
    pub(super) by_token: bool,
    /// When its token expires; the delay for late clients comes on top.
    pub(super) expires: Option<Instant>,
    /// Shown to others as `chan_info`.
    pub(super) chan_info: Option<Arc<str>>,
    /// What stands behind its channel, for the rule, if something does: it never changes.
    pub(super) item: Option<Box<KnownItem>>,
}

impl Subscription {
    /// Remembers what stands behind the channel.
    pub(super) fn of_item(self, item: KnownItem) -> Self {
        Self { item: (item != KnownItem::NotNeeded).then(|| Box::new(item)), ..self }
    }

    pub(super) fn item(&self) -> &KnownItem {
        self.item.as_deref().unwrap_or(&KnownItem::NotNeeded)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Subscriptions(Vec<(ChannelName, Subscription)>);

impl Subscriptions {
    pub(super) fn get(&self, channel: &str) -> Option<&Subscription> {
        self.find(channel).ok().map(|at| &self.0[at].1)
    }

    pub(super) fn get_mut(&mut self, channel: &str) -> Option<&mut Subscription> {
        self.find(channel).ok().map(|at| &mut self.0[at].1)
    }

    pub(super) fn contains(&self, channel: &str) -> bool {
        self.find(channel).is_ok()
    }

    pub(super) fn insert(&mut self, channel: ChannelName, subscription: Subscription) {
        // A list that grows by itself begins with room for four.
        if self.0.is_empty() {
            self.0.reserve_exact(1);
        }
        match self.find(channel.as_str()) {
            Ok(at) => self.0[at].1 = subscription,
            Err(at) => self.0.insert(at, (channel, subscription)),
        }
    }

    pub(super) fn remove(&mut self, channel: &str) -> Option<ChannelName> {
        let at = self.find(channel).ok()?;
        let (channel, _) = self.0.remove(at);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Some(channel)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(ChannelName, Subscription)> {
        self.0.iter()
    }

    /// When the first of them expires.
    pub(super) fn first_expiry(&self) -> Option<Instant> {
        self.0.iter().filter_map(|(_, subscription)| subscription.expires).min()
    }

    fn find(&self, channel: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| name.as_str().cmp(channel))
    }
}

/// What a client asks of a subscription.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    pub(super) positioned: bool,
    pub(super) recoverable: bool,
    pub(super) join_leave: bool,
    /// The client may read the log of the channel once it is subscribed.
    pub(super) may_history: bool,
    /// The client may read who is on the channel once it is subscribed.
    pub(super) may_presence: bool,
    /// Data may come as differences.
    pub(super) delta: bool,
    /// Only publications with such tags.
    pub(super) filter: Option<Arc<Filter>>,
}

/// The qualities of a subscription (protocol §7.2, §8, §11.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Qualities {
    pub(super) positioned: bool,
    pub(super) recoverable: bool,
    pub(super) presence: bool,
    pub(super) announced: bool,
    pub(super) hears_others: bool,
    pub(super) delta: bool,
}

impl Qualities {
    /// Of a channel that Campanile itself fills: always recoverable, and nobody sees who is there.
    pub(super) const BUILT_IN: Self = Self {
        positioned: true,
        recoverable: true,
        presence: false,
        announced: false,
        hears_others: false,
        delta: false,
    };

    /// Of a channel of a configured namespace.
    pub(super) fn configured(options: &ChannelOptions, overrides: Overrides, wishes: &Wishes) -> Self {
        let kept = options.has_history();
        let may_come_back = options.allow_recovery || wishes.may_history;
        let may_be_positioned = options.allow_positioning || wishes.may_history;
        let recoverable = kept
            && (overrides.force_recovery.unwrap_or(options.force_recovery)
                || (wishes.recoverable && may_come_back));
        let positioned = kept
            && (overrides.force_positioning.unwrap_or(options.force_positioning)
                || (wishes.positioned && may_be_positioned));
        Self {
            positioned: positioned || recoverable,
            recoverable,
            presence: overrides.presence.unwrap_or(options.presence),
            announced: overrides.join_leave.unwrap_or(options.join_leave),
            hears_others: overrides.force_push_join_leave.unwrap_or(options.force_push_join_leave)
                || (wishes.join_leave && wishes.may_presence),
            delta: wishes.delta && options.has_deltas(),
        }
    }
}
