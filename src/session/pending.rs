//! The commands of a session whose effects are under way, and the subscriptions that wait with them.
//! Plain data: the commands themselves are handled where each of them is.

use std::sync::Arc;

use super::effect::{Joined, Replay, Since};
use super::subscriptions::Subscription;
use super::timers::Now;
use crate::domain::access::ResourceInfo;
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::protocol::filter::Filter;
use crate::protocol::reply::{Recovery, SubscribeResult};

/// A command whose effect is under way.
#[derive(Debug)]
pub(super) enum Pending {
    /// The command is at the front of the queue and will be handled again.
    LookUp(ChannelName),
    Claim(Admitted),
    Connect(Connecting),
    Subscribe {
        id: u32,
        pending: PendingSubscription,
    },
    /// The subscription of a server command.
    Admit {
        pending: PendingSubscription,
    },
    Publish {
        id: u32,
    },
    History {
        id: u32,
    },
    Presence {
        id: u32,
    },
    PresenceStats {
        id: u32,
    },
}

/// A connect that waits for the check of the user's connection limit, with its channels.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) id: u32,
    pub(super) channels: Vec<(ChannelName, ResourceInfo, RequestedRecovery)>,
}

/// A connect whose subscriptions are being joined.
#[derive(Debug)]
pub(super) struct Connecting {
    pub(super) id: u32,
    pub(super) subscriptions: Vec<(PendingSubscription, JoinState)>,
}

/// The client's position, if it asks for recovery, and whether it accepts deltas.
pub(super) type RequestedRecovery = (Option<Since>, bool);

#[derive(Debug)]
pub(super) enum JoinState {
    Pending,
    Joined(Joined),
    Failed,
}

impl Connecting {
    /// Events are missing on a channel before its subscription began.
    pub(super) fn lost(&mut self, channel: &ChannelName) {
        for (pending, _) in &mut self.subscriptions {
            pending.lost |= pending.channel == *channel;
        }
    }
}

/// A subscription whose subscriber has not joined yet.
#[derive(Debug)]
pub(super) struct PendingSubscription {
    pub(super) channel: ChannelName,
    pub(super) subscription: Subscription,
    pub(super) recoverable: bool,
    /// Data is sent as deltas.
    pub(super) delta: bool,
    /// Restricts the publications by their tags.
    pub(super) filter: Option<Arc<Filter>>,
    /// For the application: one JSON value.
    pub(super) data: Option<Arc<str>>,
    /// If the position is lost, the command fails (error 112) and there is no subscription.
    pub(super) wants_unrecoverable_error: bool,
    /// Events were lost before it began.
    pub(super) lost: bool,
}

impl PendingSubscription {
    /// The result that is sent to the client.
    pub(super) fn result<'a>(&'a self, joined: &'a Joined, now: Now) -> SubscribeResult<'a> {
        let head = joined.position.as_ref();
        let (position, recovery) = match &joined.replay {
            Replay::NotAsked => (head, Recovery::NotAsked),
            Replay::Found(position, missed) => (Some(position), Recovery::Recovered(missed)),
            Replay::Lost => (head, Recovery::Lost),
        };
        let position = position.filter(|_| self.subscription.positioned);
        SubscribeResult {
            ttl: self.subscription.expires.map(|expires| now.ttl(expires)),
            recoverable: self.recoverable && position.is_some(),
            positioned: position.is_some(),
            position,
            recovery,
            data: self.data.as_deref(),
            delta: self.delta,
        }
    }

    /// Removes recovered events that the client's filter does not match.
    pub(super) fn apply_filter(&self, joined: &mut Joined) {
        if let (Some(filter), Replay::Found(_, missed)) = (&self.filter, &mut joined.replay) {
            missed.retain(|event| filter.matches_event(event));
        }
    }
}

/// The position after which a subscriber goes live: that of the last event in the reply.
pub(super) fn live_from(joined: &Joined) -> Option<Position> {
    match &joined.replay {
        Replay::Found(position, missed) => {
            let offset = missed.last().map_or(position.offset, |event| event.offset);
            Some(Position { offset, epoch: position.epoch.clone() })
        }
        Replay::NotAsked | Replay::Lost => joined.position.clone(),
    }
}

/// Whether a reply contains recovered events; it then does not count against the send queue's limit.
pub(super) fn has_recovered(joined: &Joined) -> bool {
    matches!(&joined.replay, Replay::Found(_, missed) if !missed.is_empty())
}
