//! What the server answers to commands (protocol §2.2, §4): results, errors and pings as one JSON
//! object each, without the line feed that ends it. Borrows everything and keeps nothing. Owns
//! also the shapes that replies share with pushes. Decides no result.

#[cfg(test)]
pub(super) mod tests;

use uuid::Uuid;

use super::code::ErrorCode;
use super::delta;
use super::json::{Object, push_list, push_object, push_text};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Position;

/// The server's ping, and a client's pong (protocol §2.4).
pub const PING: &str = "{}";

/// The answer to one command.
#[derive(Debug, Clone, Copy)]
pub enum Reply<'a> {
    /// To `connect` (protocol §4.1).
    Connect(&'a ConnectResult<'a>),
    /// To `subscribe` (protocol §4.2).
    Subscribe(&'a SubscribeResult<'a>),
    /// To `unsubscribe` (protocol §4.3).
    Unsubscribe,
    /// To `publish`: the log has it (protocol §4.4).
    Publish,
    /// To `presence` (protocol §4.5).
    /// Connection ids and their ClientInfo as JSON.
    Presence(&'a [(Uuid, &'a str)]),
    /// To `presence_stats` (protocol §4.5).
    PresenceStats {
        /// Connections on the channel.
        clients: u32,
        /// Users behind them.
        users: u32,
    },
    /// To `history` (protocol §4.6).
    History {
        /// The events, in the order that was asked for.
        publications: &'a [Event],
        /// The channel's head.
        position: &'a Position,
    },
    /// To `rpc` (protocol §4.7).
    Rpc {
        /// One JSON value.
        data: Option<&'a str>,
    },
    /// To `refresh` (protocol §4.8).
    Refresh {
        /// The connection's id.
        client: &'a str,
        /// The server's version.
        version: &'a str,
        /// Seconds until the connection expires; `None` is never.
        ttl: Option<u32>,
    },
    /// To `sub_refresh` (protocol §4.9).
    SubRefresh {
        /// Seconds until the subscription expires; `None` is never.
        ttl: Option<u32>,
    },
    /// To the legacy command `ping` (protocol §2.3).
    Ping,
    /// To any command that failed (protocol §6.1).
    Error(ErrorCode),
}

/// The result of `connect` (protocol §4.1).
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectResult<'a> {
    /// The connection's id, a UUID.
    pub client: &'a str,
    /// The server's version.
    pub version: &'a str,
    /// Seconds between pings; 0 for none on this level.
    pub ping: u32,
    /// Whether the client must answer pings.
    pub pong: bool,
    /// Seconds until the connection expires, where the client is to refresh it.
    pub ttl: Option<u32>,
    /// For the application: one JSON value.
    pub data: Option<&'a str>,
    /// The server-side subscriptions.
    pub subs: &'a [(&'a ChannelName, SubscribeResult<'a>)],
    /// The unguessable name of this connection, for emulation; empty elsewhere.
    pub session: &'a str,
    /// The node that owns it, for emulation; empty elsewhere.
    pub node: &'a str,
    /// The server's clock in milliseconds since 1970; 0 leaves it out.
    pub time: u64,
}

/// The result of `subscribe`, and of a server-side subscription in `connect` (protocol §4.2).
#[derive(Debug, Clone, Copy, Default)]
pub struct SubscribeResult<'a> {
    /// Seconds until the subscription expires, where the client is to refresh it.
    pub ttl: Option<u32>,
    /// The client may come back with its position.
    pub recoverable: bool,
    /// The server watches that no event is missing.
    pub positioned: bool,
    /// Where the client stands before `recovery` (protocol §7.2, §7.3).
    pub position: Option<&'a Position>,
    /// What came of the client's wish to recover.
    pub recovery: Recovery<'a>,
    /// For the application: one JSON value.
    pub data: Option<&'a str>,
    /// Data comes as texts, and as differences to what came before.
    pub delta: bool,
}

/// What came of a wish to recover (protocol §7.3).
#[derive(Debug, Clone, Copy, Default)]
pub enum Recovery<'a> {
    /// There was none.
    #[default]
    NotAsked,
    /// Here is everything missed, by ascending offset.
    Recovered(&'a [Event]),
    /// Something is missing; the subscription begins anew at its position.
    Lost,
}

/// Who a client is, as others on the channel see it (protocol §4.10).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientInfo<'a> {
    /// The user's id; empty for anonymous.
    pub user: &'a str,
    /// The connection's id.
    pub client: &'a str,
    /// The connection token's `info`: one JSON value.
    pub conn_info: Option<&'a str>,
    /// The subscription token's `info`: one JSON value.
    pub chan_info: Option<&'a str>,
}

impl Reply<'_> {
    /// Appends the reply to the command `id`.
    pub fn write(&self, out: &mut String, id: u32) {
        push_object(out, |reply| {
            reply.number("id", id.into());
            self.write_result(reply.key(self.key()));
        });
    }

    /// The result alone, as the server API answers with it (protocol §12).
    pub fn result(&self) -> String {
        let mut out = String::new();
        self.write_result(&mut out);
        out
    }

    fn write_result(&self, out: &mut String) {
        match *self {
            Self::Connect(result) => result.write(out),
            Self::Subscribe(result) => result.write(out),
            Self::Unsubscribe | Self::Publish | Self::Ping => out.push_str("{}"),
            Self::Presence(clients) => write_presence(out, clients),
            Self::PresenceStats { clients, users } => push_object(out, |stats| {
                stats.always_number("num_clients", clients.into());
                stats.always_number("num_users", users.into());
            }),
            Self::History { publications, position } => write_history(out, publications, position),
            Self::Rpc { data } => push_object(out, |result| result.raw("data", data)),
            Self::Refresh { client, version, ttl } => push_object(out, |result| {
                result.text("client", client);
                result.text("version", version);
                result.expiry(ttl);
            }),
            Self::SubRefresh { ttl } => push_object(out, |result| result.expiry(ttl)),
            Self::Error(code) => write_error(out, code),
        }
    }

    fn key(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Publish => "publish",
            Self::Presence(_) => "presence",
            Self::PresenceStats { .. } => "presence_stats",
            Self::History { .. } => "history",
            Self::Rpc { .. } => "rpc",
            Self::Refresh { .. } => "refresh",
            Self::SubRefresh { .. } => "sub_refresh",
            Self::Ping => "ping",
            Self::Error(_) => "error",
        }
    }
}

impl ConnectResult<'_> {
    /// Appends the result alone, as replies and the push of unidirectional transports embed it.
    pub(super) fn write(&self, out: &mut String) {
        push_object(out, |result| {
            result.text("client", self.client);
            result.text("version", self.version);
            result.number("ping", self.ping.into());
            result.flag("pong", self.pong);
            result.expiry(self.ttl);
            result.raw("data", self.data);
            if !self.subs.is_empty() {
                push_object(result.key("subs"), |subs| {
                    for (channel, sub) in self.subs {
                        sub.write(subs.named(channel.as_str()));
                    }
                });
            }
            result.text("session", self.session);
            result.text("node", self.node);
            result.number("time", self.time);
        });
    }
}

impl SubscribeResult<'_> {
    fn write(&self, out: &mut String) {
        push_object(out, |result| {
            result.expiry(self.ttl);
            self.write_position_fields(result);
            match self.recovery {
                Recovery::NotAsked => {}
                Recovery::Lost => result.flag("was_recovering", true),
                Recovery::Recovered(missed) => {
                    result.flag("recovered", true);
                    result.flag("was_recovering", true);
                    if !missed.is_empty() {
                        let list = result.key("publications");
                        if self.delta {
                            push_list(list, &in_deltas(missed), write_publication);
                        } else {
                            push_list(list, missed, write_publication);
                        }
                    }
                }
            }
            result.raw("data", self.data);
            result.flag("delta", self.delta);
        });
    }

    /// The fields that say where in which stream the subscription stands.
    pub(super) fn write_position_fields(&self, object: &mut Object<'_>) {
        object.flag("recoverable", self.recoverable);
        object.flag("positioned", self.positioned);
        if let Some(position) = self.position {
            object.text("epoch", position.epoch.as_str());
            object.number("offset", position.offset);
        }
    }
}

impl ClientInfo<'_> {
    /// As JSON, the way an event of a publishing client keeps it.
    pub fn to_json(self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    pub(super) fn write(&self, out: &mut String) {
        push_object(out, |info| {
            info.always_text("user", self.user);
            info.always_text("client", self.client);
            info.raw("conn_info", self.conn_info);
            info.raw("chan_info", self.chan_info);
        });
    }
}

/// The first whole, each other one as the difference to the one before it, if that is shorter.
fn in_deltas(events: &[Event]) -> Vec<Event> {
    let before = std::iter::once(None).chain(events.iter().map(Some));
    events
        .iter()
        .zip(before)
        .map(|(event, before)| {
            as_text(event, before.and_then(|b| delta::between(&b.data, &event.data)).as_deref())
        })
        .collect()
}

/// `event` as a subscriber gets it that takes differences: its data, or `delta` in place of it, is a
/// text (protocol §9.1).
pub fn as_text(event: &Event, delta: Option<&str>) -> Event {
    let mut data = String::with_capacity(delta.map_or(event.data.len(), str::len) + 16);
    push_text(&mut data, delta.unwrap_or(&event.data));
    let delta = if delta.is_some() { Delta::Is } else { Delta::No };
    Event { data: data.into(), delta, ..event.clone() }
}

/// Appends `event` as a Publication (protocol §4.10). An event outside the log has no offset.
pub(super) fn write_publication(out: &mut String, event: &Event) {
    push_object(out, |publication| {
        publication.raw("data", Some(&event.data));
        publication.number("offset", event.offset);
        publication.raw("info", event.info.as_deref());
        publication.raw("tags", event.tags.as_deref());
        publication.flag("delta", event.delta == Delta::Is);
    });
}

fn write_presence(out: &mut String, clients: &[(Uuid, &str)]) {
    push_object(out, |result| {
        push_object(result.key("presence"), |presence| {
            for (client, info) in clients {
                presence.named(client.hyphenated().encode_lower(&mut Uuid::encode_buffer())).push_str(info);
            }
        });
    });
}

fn write_history(out: &mut String, publications: &[Event], position: &Position) {
    push_object(out, |result| {
        push_list(result.key("publications"), publications, write_publication);
        result.always_text("epoch", position.epoch.as_str());
        result.always_number("offset", position.offset);
    });
}

fn write_error(out: &mut String, code: ErrorCode) {
    push_object(out, |error| {
        error.number("code", code.code().into());
        error.text("message", code.message());
        error.flag("temporary", code.is_temporary());
    });
}
