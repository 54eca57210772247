//! How far a connection has come, and what it waits for. Plain data.

use bytestring::ByteString;

use super::connect::Connecting;
use super::subscribe::Wanted;
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
    Connect(Connecting),
    Subscribe { id: u32, wanted: Wanted },
    Publish { id: u32 },
    History { id: u32 },
    Presence { id: u32 },
    PresenceStats { id: u32 },
}

/// A frame that is not wholly handled.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) frame: ByteString,
    /// Where its next command begins; `None` when only the last outcome is awaited.
    pub(super) next: Option<usize>,
}

impl Waiting {
    /// A frame that just came.
    pub(super) fn new(frame: ByteString) -> Self {
        Self { frame, next: Some(0) }
    }
}

/// What performing a command comes to, unless it went well.
pub(super) type Performed = Result<(), Refusal>;
