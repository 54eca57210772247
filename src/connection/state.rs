//! How far a connection has come, and what it waits for. Plain data.

use std::sync::Arc;

use bytestring::ByteString;

use super::connect::{Admitted, Connecting};
use super::effect::LookedUp;
use super::subscribe::Wanted;
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::protocol::code::Refusal;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody said who this is.
    New,
    /// The connect was answered with an error; there is no second one.
    Refused,
    /// Connected.
    Open,
    /// Closed.
    Over,
}

/// A command whose effect is under way.
#[derive(Debug)]
pub(super) enum Pending {
    /// The command stands at the front of what waits and will be handled again.
    LookUp(ChannelName),
    Claim(Admitted),
    Connect(Connecting),
    Subscribe {
        id: u32,
        wanted: Wanted,
    },
    /// A directive's subscription.
    Admit {
        wanted: Wanted,
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

/// What has its turn later.
#[derive(Debug)]
pub(super) enum Waiting {
    Frame(Frame),
    Directive(Arc<Directive>),
}

/// A frame that is not wholly handled.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) text: ByteString,
    /// Where its next command begins; `None` when only the last outcome is awaited.
    pub(super) next: Option<usize>,
}

impl Frame {
    /// A frame that just came.
    pub(super) fn new(text: ByteString) -> Self {
        Self { text, next: Some(0) }
    }
}

/// What was looked up for the command that is being handled. Nearly always nothing, so it is a
/// pointer in the connection and not a list.
#[derive(Debug, Default)]
pub(super) struct Lookups(Option<Box<Found>>);

#[derive(Debug)]
struct Found(Vec<(ChannelName, LookedUp)>);

impl Lookups {
    pub(super) fn add(&mut self, channel: ChannelName, found: LookedUp) {
        self.0.get_or_insert_with(|| Box::new(Found(Vec::new()))).0.push((channel, found));
    }

    pub(super) fn get(&self, channel: &ChannelName) -> Option<&LookedUp> {
        let found = &self.0.as_deref()?.0;
        found.iter().find(|(name, _)| name == channel).map(|(_, found)| found)
    }

    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

/// What performing a command comes to, unless it went well.
pub(super) type Performed = Result<(), Refusal>;
