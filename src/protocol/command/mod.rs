//! What a client may say (protocol §1, §2.1, §4): a frame becomes typed commands, one at a time.
//! Borrows from the frame whatever it can; payloads stay the JSON they are. Owns what is no
//! command at all ([`BadFrame`], 3501), and refuses nothing else: names, rights and the order of
//! commands are the connection's to judge.
//!
//! Unknown fields are ignored and `null` counts as absent, except as a payload (`data`), where it
//! is a value like others. What could be read in two ways is no command: two methods, a field
//! that stands twice, a list in place of an object, a method without an id.

mod read;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::iter::FusedIterator;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::code::{DisconnectCode, Refusal};

/// The most bytes that are kept of a client's name and version; the rest is cut off.
pub const MAX_LABEL: usize = 64;

/// A frame or a part of it that is not the protocol. Always disconnect 3501.
///
/// It does not say more: what it could say would be the client's own bytes, in our logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a command of the client protocol")]
pub struct BadFrame;

impl From<BadFrame> for DisconnectCode {
    fn from(_: BadFrame) -> Self {
        Self::BadRequest
    }
}

impl From<BadFrame> for Refusal {
    fn from(bad: BadFrame) -> Self {
        Self::Disconnect(bad.into())
    }
}

/// The commands of one frame. Each is parsed when it is asked for; after a [`BadFrame`] there are
/// no more, so what stands before it has been read and may have been done.
pub fn commands(frame: &str) -> Commands<'_> {
    Commands { rest: Some(frame.strip_suffix('\n').unwrap_or(frame)) }
}

/// See [`commands`].
#[derive(Debug, Clone)]
pub struct Commands<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Commands<'a> {
    type Item = Result<Command<'a>, BadFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let (line, rest) = match rest.split_once('\n') {
            Some((line, rest)) => (line, Some(rest)),
            None => (rest, None),
        };
        let command = Command::parse(line);
        if command.is_ok() {
            self.rest = rest;
        }
        Some(command)
    }
}

impl FusedIterator for Commands<'_> {}

/// One thing that a client wants (protocol §2.1).
#[derive(Debug, Clone)]
pub struct Command<'a> {
    /// The reply repeats it. At least 1, except for `send` and the pong, which have no reply.
    pub id: u32,
    /// What is wanted.
    pub method: Method<'a>,
}

impl<'a> Command<'a> {
    /// Reads one JSON object.
    pub fn parse(json: &'a str) -> Result<Self, BadFrame> {
        let command: Self = serde_json::from_str(json).map_err(|_| BadFrame)?;
        if command.id == 0 && !matches!(command.method, Method::Send(_) | Method::Pong) {
            return Err(BadFrame);
        }
        if command.id > 0 && matches!(command.method, Method::Pong) {
            return Err(BadFrame);
        }
        if command.method.channel() == Some("") {
            return Err(BadFrame);
        }
        Ok(command)
    }
}

/// The methods (protocol §4).
#[derive(Debug, Clone)]
pub enum Method<'a> {
    /// Says who the client is. The first command, and only that (protocol §2.3).
    Connect(Connect<'a>),
    /// Wants the events of a channel.
    Subscribe(Subscribe<'a>),
    /// Wants them no more.
    Unsubscribe(Unsubscribe<'a>),
    /// Makes an event.
    Publish(Publish<'a>),
    /// Who is on a channel?
    Presence(Presence<'a>),
    /// How many are on a channel?
    PresenceStats(Presence<'a>),
    /// Reads stored events.
    History(History<'a>),
    /// Calls a procedure of the backend.
    Rpc(Rpc<'a>),
    /// Tells the backend something; has no reply.
    Send(Send<'a>),
    /// Brings a new connection token.
    Refresh(Refresh<'a>),
    /// Brings a new subscription token.
    SubRefresh(SubRefresh<'a>),
    /// The legacy ping of a client, answered by `{}` (protocol §2.3).
    Ping,
    /// The answer to the server's ping: no method and no id (protocol §2.3, §2.4).
    Pong,
}

impl Method<'_> {
    /// The channel that the command is about, as the client wrote it.
    pub fn channel(&self) -> Option<&str> {
        match self {
            Self::Subscribe(Subscribe { channel, .. })
            | Self::Unsubscribe(Unsubscribe { channel })
            | Self::Publish(Publish { channel, .. })
            | Self::Presence(Presence { channel })
            | Self::PresenceStats(Presence { channel })
            | Self::History(History { channel, .. })
            | Self::SubRefresh(SubRefresh { channel, .. }) => Some(channel),
            Self::Connect(_) | Self::Rpc(_) | Self::Send(_) | Self::Refresh(_) | Self::Ping | Self::Pong => {
                None
            }
        }
    }
}

/// `connect` (protocol §4.1); also all that a unidirectional client ever says (protocol §3.6).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Connect<'a> {
    /// The connection token; empty for none.
    #[serde(borrow, deserialize_with = "read::text")]
    pub token: Cow<'a, str>,
    /// For the backend.
    #[serde(borrow, deserialize_with = "read::payload")]
    pub data: Option<&'a RawValue>,
    /// Server-side subscriptions that the client had, by channel. A channel that stands twice
    /// has the last word.
    #[serde(borrow, deserialize_with = "read::subs")]
    pub subs: BTreeMap<Cow<'a, str>, ResumeSubscription<'a>>,
    /// What kind of client this is, in at most [`MAX_LABEL`] bytes.
    #[serde(borrow, deserialize_with = "read::label")]
    pub name: Cow<'a, str>,
    /// Which version of it, in at most [`MAX_LABEL`] bytes.
    #[serde(borrow, deserialize_with = "read::label")]
    pub version: Cow<'a, str>,
    /// In place of HTTP headers, from browsers that cannot set them.
    #[serde(borrow, deserialize_with = "read::headers")]
    pub headers: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

impl<'a> Connect<'a> {
    /// Reads the request of a unidirectional transport: the bare object (protocol §3.6).
    pub fn parse(json: &'a str) -> Result<Self, BadFrame> {
        serde_json::from_str(json).map(|read::Object(connect)| connect).map_err(|_| BadFrame)
    }
}

/// A server-side subscription that a returning client had (protocol §4.1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResumeSubscription<'a> {
    /// Whether it wants what it missed.
    #[serde(deserialize_with = "read::or_default")]
    pub recover: bool,
    /// The history in which `offset` counts; empty fits any.
    #[serde(borrow, deserialize_with = "read::text")]
    pub epoch: Cow<'a, str>,
    /// The last offset that it saw.
    #[serde(deserialize_with = "read::or_default")]
    pub offset: u64,
    /// Whether data may come as differences.
    #[serde(deserialize_with = "read::delta")]
    pub delta: Option<Delta>,
}

/// `subscribe` (protocol §4.2).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Subscribe<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
    /// The subscription token; empty for none.
    #[serde(borrow, deserialize_with = "read::text")]
    pub token: Cow<'a, str>,
    /// Whether the client wants what it missed.
    #[serde(deserialize_with = "read::or_default")]
    pub recover: bool,
    /// The history in which `offset` counts; empty fits any.
    #[serde(borrow, deserialize_with = "read::text")]
    pub epoch: Cow<'a, str>,
    /// The last offset that the client saw.
    #[serde(deserialize_with = "read::or_default")]
    pub offset: u64,
    /// For the backend.
    #[serde(borrow, deserialize_with = "read::payload")]
    pub data: Option<&'a RawValue>,
    /// Asks the server to watch that no event is missing.
    #[serde(deserialize_with = "read::or_default")]
    pub positioned: bool,
    /// Asks to be able to come back.
    #[serde(deserialize_with = "read::or_default")]
    pub recoverable: bool,
    /// Asks who comes and leaves.
    #[serde(deserialize_with = "read::or_default")]
    pub join_leave: bool,
    /// Whether data may come as differences.
    #[serde(deserialize_with = "read::delta")]
    pub delta: Option<Delta>,
    /// A filter by tags (protocol §9.2), as it came.
    #[serde(borrow)]
    pub tf: Option<&'a RawValue>,
    /// What the client understands, see [`Subscribe::wants_unrecoverable_error`].
    #[serde(deserialize_with = "read::or_default")]
    pub flag: i64,
    /// Which kind of subscription (protocol §9.3); 0 is the ordinary one.
    #[serde(rename = "type", deserialize_with = "read::or_default")]
    pub kind: i32,
}

impl Subscribe<'_> {
    /// Bit 2 of the flag: a lost position is error 112 and no subscription (protocol §7.3).
    pub fn wants_unrecoverable_error(&self) -> bool {
        self.flag & 2 != 0
    }
}

/// How data may come as differences (protocol §9.1). Any other word is a [`BadFrame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// `fossil`.
    Fossil,
}

/// `unsubscribe` (protocol §4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Unsubscribe<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
}

/// `publish` (protocol §4.4).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Publish<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
    /// What happened. Without it the command is error 107.
    #[serde(borrow, deserialize_with = "read::payload")]
    pub data: Option<&'a RawValue>,
}

/// `presence` and `presence_stats` (protocol §4.5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Presence<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
}

/// `history` (protocol §4.6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct History<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
    /// How many events: 0 for the position alone, below 0 for as many as allowed.
    #[serde(deserialize_with = "read::or_default")]
    pub limit: i32,
    /// Where to begin.
    #[serde(borrow, deserialize_with = "read::object")]
    pub since: Option<StreamPosition<'a>>,
    /// The newest first.
    #[serde(deserialize_with = "read::or_default")]
    pub reverse: bool,
}

/// A position as a client gives it: unchecked, and perhaps without an epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamPosition<'a> {
    #[serde(deserialize_with = "read::or_default")]
    pub offset: u64,
    /// The history in which it counts; empty fits any.
    #[serde(borrow, deserialize_with = "read::text")]
    pub epoch: Cow<'a, str>,
}

/// `rpc` (protocol §4.7).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Rpc<'a> {
    #[serde(borrow, deserialize_with = "read::text")]
    pub method: Cow<'a, str>,
    /// What it gets.
    #[serde(borrow, deserialize_with = "read::payload")]
    pub data: Option<&'a RawValue>,
}

/// `send` (protocol §4.7).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Send<'a> {
    /// What the backend gets.
    #[serde(borrow, deserialize_with = "read::payload")]
    pub data: Option<&'a RawValue>,
}

/// `refresh` (protocol §4.8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Refresh<'a> {
    /// The new connection token.
    #[serde(borrow, deserialize_with = "read::text")]
    pub token: Cow<'a, str>,
}

/// `sub_refresh` (protocol §4.9).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SubRefresh<'a> {
    /// Which channel; not empty.
    #[serde(borrow, deserialize_with = "read::text")]
    pub channel: Cow<'a, str>,
    /// The new subscription token.
    #[serde(borrow, deserialize_with = "read::text")]
    pub token: Cow<'a, str>,
}
