//! The subscriptions of one connection: a sorted list, because most connections have one or two
//! and every byte counts a hundred thousand times. Also decides which flags a subscription gets from
//! its namespace, its token and the client's request.

use std::sync::Arc;

use crate::domain::access::{Overrides, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::options::ChannelOptions;
use crate::protocol::filter::Filter;

/// A subscription that is live.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The token of the connection made it, not a command.
    pub(super) server_side: bool,
    /// A loss of events ends it.
    pub(super) positioned: bool,
    /// Its own token, if one admitted it: what the connection's token says does not matter then.
    pub(super) token: Option<Box<SubscribedBy>>,
    /// When its token expires; the delay for late clients comes on top.
    pub(super) expires: Option<Time>,
    /// Shown to others as `chan_info`.
    pub(super) chan_info: Option<Arc<str>>,
    /// What stands behind its channel, for the rule, if something does: it never changes.
    pub(super) resource: Option<Box<ResourceInfo>>,
}

/// The token that admitted a subscription.
#[derive(Debug)]
pub(super) struct SubscribedBy {
    pub(super) jti: Option<Box<str>>,
}

impl Subscription {
    /// Remembers what stands behind the channel.
    pub(super) fn of_resource(self, resource: ResourceInfo) -> Self {
        Self { resource: (resource != ResourceInfo::NotNeeded).then(|| Box::new(resource)), ..self }
    }

    pub(super) fn resource(&self) -> &ResourceInfo {
        self.resource.as_deref().unwrap_or(&ResourceInfo::NotNeeded)
    }
}

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
    pub(super) fn first_expiry(&self) -> Option<Time> {
        self.0.iter().filter_map(|(_, subscription)| subscription.expires).min()
    }

    fn find(&self, channel: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(name, _)| name.as_str().cmp(channel))
    }
}

/// The flags that a client requests for a subscription.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestedFlags {
    pub(super) positioned: bool,
    pub(super) recoverable: bool,
    pub(super) join_leave: bool,
    /// The client may read the log of the channel once it is subscribed.
    pub(super) may_history: bool,
    /// The client may read who is on the channel once it is subscribed.
    pub(super) may_presence: bool,
    /// Data may be sent as deltas.
    pub(super) delta: bool,
    /// Restricts the publications by their tags.
    pub(super) filter: Option<Arc<Filter>>,
}

/// The flags of a subscription (protocol §7.2, §8, §11.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SubscriptionFlags {
    pub(super) positioned: bool,
    pub(super) recoverable: bool,
    pub(super) presence: bool,
    pub(super) announced: bool,
    pub(super) receives_join_leave: bool,
    pub(super) delta: bool,
}

impl SubscriptionFlags {
    /// Of a channel that Campanile itself fills: always recoverable, and nobody sees who is there.
    pub(super) const BUILT_IN: Self = Self {
        positioned: true,
        recoverable: true,
        presence: false,
        announced: false,
        receives_join_leave: false,
        delta: false,
    };

    /// Of a channel of a configured namespace.
    pub(super) fn configured(
        options: &ChannelOptions,
        overrides: Overrides,
        requested: &RequestedFlags,
    ) -> Self {
        let kept = options.has_history();
        let may_come_back = options.allow_recovery || requested.may_history;
        let may_be_positioned = options.allow_positioning || requested.may_history;
        let recoverable = kept
            && (overrides.force_recovery.unwrap_or(options.force_recovery)
                || (requested.recoverable && may_come_back));
        let positioned = kept
            && (overrides.force_positioning.unwrap_or(options.force_positioning)
                || (requested.positioned && may_be_positioned));
        Self {
            positioned: positioned || recoverable,
            recoverable,
            presence: overrides.presence.unwrap_or(options.presence),
            announced: overrides.join_leave.unwrap_or(options.join_leave),
            receives_join_leave: overrides.force_push_join_leave.unwrap_or(options.force_push_join_leave)
                || (requested.join_leave && requested.may_presence),
            delta: requested.delta && options.has_deltas(),
        }
    }
}
