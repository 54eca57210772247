//! What a connection asks of its surroundings, and what it hears back. The connection itself
//! touches no socket, no store and no clock; whoever carries it performs its effects in order,
//! within the turn in which they were made, so that nothing can come between a reply and what
//! belongs to it.

use std::sync::Arc;

use super::users::{Claim, Room};
use crate::domain::access::KnownItem;
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, NewEvent};
use crate::domain::position::Position;
use crate::hub::presence::{Attendance, Member};
use crate::protocol::code::Disconnect;
use crate::protocol::filter::Filter;

/// One thing to do. Asynchronous ones are answered by an [`Outcome`]; the connection handles no
/// further command before that.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Say this to the client: one message of the protocol.
    Say(String),
    /// The same for a reply that carries a replay: it was missed, not left lying, so it does not
    /// count against the queue's limit.
    SayReplay(String),
    /// What stands behind this channel? The command that must know is handled again with
    /// [`Outcome::LookedUp`].
    LookUp(ChannelName),
    /// Put an entry for the channel on hold, find the channel's position and read what the client
    /// missed. Answered by [`Outcome::Joined`].
    Join(Join),
    /// The reply is said: let the entry go live behind this position (`None`: nothing is kept).
    Live(ChannelName, Option<Position>),
    /// Take the entry away, and with it presence. Nothing of the channel follows.
    Leave(ChannelName),
    /// Commit an event. Answered by [`Outcome::Published`].
    Publish(NewEvent),
    /// Read stored events. Answered by [`Outcome::History`].
    ReadHistory(ReadHistory),
    /// Who is on the channel? Answered by [`Outcome::Presence`].
    ReadPresence(ChannelName),
    /// Is there room for this connection on all nodes together? Answered by [`Outcome::Claimed`].
    Claim(Claim),
    /// End the other connections of the same user that came before this one.
    EndOlder,
    /// So many bytes of frames were handled: the client may send as many more.
    Handled(usize),
    /// The connection is over. The last effect.
    Close(Disconnect),
}

/// What a subscription needs of the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    /// Where.
    pub channel: ChannelName,
    /// Where the client was, if it wants what it missed.
    pub recover: Option<Since>,
    /// Whether the server watches the order for the client: a loss then ends the subscription
    /// instead of passing in silence.
    pub positioned: bool,
    /// How the client is seen by others, if at all.
    pub attendance: Option<Attendance>,
    /// Whether coming and leaving of others is told to this client.
    pub hears_others: bool,
    /// Whether data comes as differences.
    pub delta: bool,
    /// Only publications with such tags.
    pub filter: Option<Arc<Filter>>,
}

/// A position as a client gives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Since {
    /// The history in which the offset counts; empty fits any.
    pub epoch: String,
    /// Everything up to here was seen.
    pub offset: u64,
}

/// A wish for stored events (protocol §4.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadHistory {
    /// Where.
    pub channel: ChannelName,
    /// From where, if not from the end that comes first.
    pub since: Option<Since>,
    /// At most so many; 0 for the position alone.
    pub limit: u32,
    /// The newest first.
    pub reverse: bool,
}

/// What became of an asynchronous effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Of [`Effect::LookUp`].
    LookedUp(ChannelName, LookedUp),
    /// Of [`Effect::Join`]; without a result the channel cannot be followed now, and the entry is gone.
    Joined(ChannelName, Option<Joined>),
    /// Of [`Effect::Publish`].
    Published(Published),
    /// Of [`Effect::ReadHistory`].
    History(Stored),
    /// Of [`Effect::ReadPresence`].
    Presence(Vec<Member>),
    /// Of [`Effect::Claim`].
    Claimed(Room),
}

/// What stands behind a channel, as far as anybody can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUp {
    /// This; perhaps nothing.
    Found(KnownItem),
    /// The store does not answer.
    NotNow,
}

/// An entry that is on hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Joined {
    /// The channel's position; everything after it reaches the entry. `None`: nothing is kept.
    pub position: Option<Position>,
    /// What came of the wish to recover.
    pub replay: Replay,
}

/// What the log has for a client that comes back.
#[derive(Debug, Clone, PartialEq)]
pub enum Replay {
    /// Nothing was asked.
    NotAsked,
    /// Everything after the client's place, ascending, in the history of this position; the entry
    /// goes live behind the last of them. The position is the client's, with its true epoch.
    Found(Position, Vec<Event>),
    /// It is of another history, trimmed, ahead of the log, or further back than is replayed.
    Lost,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is committed.
    Done,
    /// It is not, or nobody knows: the client may try again.
    NotNow,
}

/// What a read of stored events found.
#[derive(Debug, Clone, PartialEq)]
pub enum Stored {
    /// These, in the order that was asked for, and the head.
    Events(Vec<Event>, Position),
    /// The wish names another history.
    OtherEpoch,
    /// The store does not answer.
    NotNow,
}
