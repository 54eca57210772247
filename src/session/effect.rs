//! Effects that a session requests, and the outcomes that it is given. The session itself uses no
//! socket, no store and no clock. The transport performs its effects in order and within one turn
//! of the event loop, so that nothing can come between a reply and the effects that belong to it.

use std::sync::Arc;

use crate::domain::access::ResourceInfo;
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, NewEvent};
use crate::domain::position::Position;
use crate::domain::presence::{Member, PresenceInfo};
use crate::limits::user_connections::{Capacity, SlotClaim};
use crate::protocol::code::Disconnect;
use crate::protocol::filter::Filter;

/// One thing to do. Asynchronous effects are answered by an [`Outcome`]; the session handles no
/// further command until then.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send one message of the protocol to the client.
    Send(String),
    /// Send a reply that contains recovered events. It does not count against the limit of the send
    /// queue, because its size says nothing about how fast the client reads.
    SendReplay(String),
    /// Look up the resource that the channel belongs to. The command that needs it is handled again
    /// after [`Outcome::LookedUp`].
    LookUp(ChannelName),
    /// Add a paused subscriber for the channel, find the channel's position and read what the client
    /// missed. Answered by [`Outcome::Joined`].
    Join(Join),
    /// The reply has been sent: let the subscriber go live after this position. `None` means that the
    /// channel has no history.
    GoLive(ChannelName, Option<Position>),
    /// Remove the subscriber and its presence. No event of the channel is sent after that.
    Leave(ChannelName),
    /// Commit an event. Answered by [`Outcome::Published`].
    Publish(NewEvent),
    /// Read stored events. Answered by [`Outcome::History`].
    ReadHistory(ReadHistory),
    /// Read the presence of the channel. Answered by [`Outcome::Presence`].
    ReadPresence(ChannelName),
    /// Check the limit of the user's connections across all nodes. Answered by [`Outcome::Claimed`].
    Claim(SlotClaim),
    /// Disconnect the older connections of the same user.
    DisconnectOlder,
    /// This many bytes of frames were handled, so the client may send as many more.
    Handled(usize),
    /// Close the connection. This is always the last effect.
    Close(Disconnect),
}

/// What a subscription needs of the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    pub channel: ChannelName,
    /// The client's position, if it asked for recovery.
    pub recover: Option<Since>,
    /// Whether the options let it recover. If not, what it missed counts as lost.
    pub recoverable: bool,
    /// Whether the server tracks the client's position: losing events then ends the subscription
    /// instead of going unnoticed.
    pub positioned: bool,
    /// How the client appears to others, if at all.
    pub presence_info: Option<PresenceInfo>,
    /// Whether this client receives join and leave messages of others.
    pub receives_join_leave: bool,
    /// Whether data is sent as deltas.
    pub delta: bool,
    /// Restricts the publications by their tags.
    pub filter: Option<Arc<Filter>>,
}

/// A position as a client gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Since {
    /// The history in which the offset counts; empty fits any.
    pub epoch: String,
    /// The client has received everything up to this offset.
    pub offset: u64,
}

/// A request for stored events (protocol §4.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadHistory {
    pub channel: ChannelName,
    /// Where to start; `None` starts at the first event in the direction of reading.
    pub since: Option<Since>,
    /// The maximum number of events; 0 reads only the position.
    pub limit: u32,
    /// Whether to return the newest events first.
    pub reverse: bool,
}

/// The result of an asynchronous effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Effect::LookUp`].
    LookedUp(ChannelName, LookedUp),
    /// Of [`Effect::Join`]; `None` if the channel cannot be subscribed to now and the subscriber is gone.
    Joined(ChannelName, Option<Joined>),
    /// Of [`Effect::Publish`].
    Published(Published),
    /// Of [`Effect::ReadHistory`].
    History(Stored),
    /// Of [`Effect::ReadPresence`].
    Presence(Vec<Member>),
    /// Of [`Effect::Claim`].
    Claimed(Capacity),
}

/// The resource that a channel belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUp {
    /// The lookup succeeded; there may be no such resource.
    Found(ResourceInfo),
    /// The store does not answer.
    Unavailable,
}

/// A subscriber that is paused.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// The channel's position; everything after it reaches the subscriber. `None`: nothing is kept.
    pub position: Option<Position>,
    /// The result of the recovery.
    pub replay: Replay,
}

/// The events that the log has for a returning client.
#[derive(Debug, Clone, PartialEq)]
pub enum Replay {
    /// The client did not ask for recovery.
    NotAsked,
    /// All events after the client's position, in ascending order; the subscriber goes live after the
    /// last of them. The position is the client's, with its actual epoch.
    Found(Position, Vec<Event>),
    /// The position belongs to another epoch, was trimmed, is ahead of the log, or is further back
    /// than the recovery limit allows.
    Lost,
}

/// The result of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The event is committed.
    Done,
    /// The event is not committed, or that is unknown: the client may try again.
    Unavailable,
}

/// The result of reading stored events.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// The events in the requested order, and the position of the head.
    Events(Vec<Event>, Position),
    /// The request names another epoch.
    OtherEpoch,
    /// The store does not answer.
    Unavailable,
}
