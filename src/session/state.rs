//! The phase of a connection, its mode and its queued input. Plain data.

use std::sync::Arc;

use bytestring::ByteString;

use super::effect::LookedUp;
use crate::domain::channel::ChannelName;
use crate::domain::server_command::ServerCommand;
use crate::protocol::code::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has not connected yet.
    New,
    /// The connect was answered with an error; there is no second one.
    Refused,
    Open,
    Closed,
}

/// How a session differs whose commands and replies do not share one connection. Most have none.
#[derive(Debug, Clone, Default)]
pub struct SessionMode {
    /// The client is unidirectional: one connect without an id, then pushes without an envelope.
    pub uni: bool,
    /// The secret session id; whoever knows it can send commands for the client.
    pub session: Arc<str>,
    /// The node to which the client addresses its emulation requests; empty if it makes none.
    pub node: Arc<str>,
}

/// Input that is handled later.
#[derive(Debug)]
pub(super) enum QueuedInput {
    Frame(Frame),
    ServerCommand(Arc<ServerCommand>),
}

/// A frame that is not completely handled.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) text: ByteString,
    /// Where its next command begins; `None` when only the last outcome is awaited.
    pub(super) next: Option<usize>,
}

impl Frame {
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

/// The result of a command: `Ok` if it succeeded or is still under way.
pub(super) type CommandResult = Result<(), Refusal>;
