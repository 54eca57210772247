//! Pushes: messages that the server sends without being asked (protocol §5), as one JSON object each,
//! without the line feed that ends it. Unidirectional transports get the same without the `push` around
//! it (protocol §3.6). Owns the fan-out's fast path, which writes an event once for all its subscribers.

#[cfg(test)]
mod tests;

use super::code::{ClientAction, Disconnect, UnsubscribeCode};
use super::json::{push_object, push_text};
use super::reply::{ConnectResult, SubscribeResult, write_publication};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;

#[derive(Debug, Clone, Copy)]
pub enum Push<'a> {
    /// Something about a channel.
    Channel(&'a ChannelName, ChannelPush<'a>),
    /// For the application, about no channel: one JSON value.
    Message(&'a str),
    /// The first push of a unidirectional transport.
    Connect(&'a ConnectResult<'a>),
    /// The last push of a transport that has no Close frame.
    Disconnect(&'a Disconnect),
    /// The server changed when the connection expires.
    Refresh {
        /// Seconds until then; `None` is never.
        ttl: Option<u32>,
    },
}

/// What a push about a channel says.
#[derive(Debug, Clone, Copy)]
pub enum ChannelPush<'a> {
    /// `pub`: an event.
    Publication(&'a Event),
    /// `join`: a client joined.
    ///
    /// ClientInfo as JSON, made once for all who get it.
    Join(&'a str),
    /// `leave`: a client left.
    ///
    /// ClientInfo as JSON.
    Leave(&'a str),
    /// The server ended the subscription.
    Unsubscribe(UnsubscribeCode),
    /// The server began a subscription. Only stream, position and data are written.
    Subscribe(&'a SubscribeResult<'a>),
}

impl Push<'_> {
    /// Appends the push for a bidirectional transport.
    pub fn write(&self, out: &mut String) {
        out.push_str("{\"push\":");
        self.write_uni(out);
        out.push('}');
    }

    /// Appends the push for a unidirectional transport.
    pub fn write_uni(&self, out: &mut String) {
        push_object(out, |push| match *self {
            Self::Channel(channel, what) => {
                push.text("channel", channel.as_str());
                what.write(push.key(what.key()));
            }
            Self::Message(data) => {
                push_object(push.key("message"), |message| message.raw("data", Some(data)));
            }
            Self::Connect(result) => result.write(push.key("connect")),
            Self::Disconnect(disconnect) => write_disconnect(push.key("disconnect"), disconnect),
            Self::Refresh { ttl } => push_object(push.key("refresh"), |refresh| refresh.expiry(ttl)),
        });
    }
}

impl ChannelPush<'_> {
    fn key(&self) -> &'static str {
        match self {
            Self::Publication(_) => "pub",
            Self::Join(_) => "join",
            Self::Leave(_) => "leave",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Subscribe(_) => "subscribe",
        }
    }

    fn write(&self, out: &mut String) {
        match *self {
            Self::Publication(event) => write_publication(out, event),
            Self::Join(info) | Self::Leave(info) => {
                push_object(out, |body| body.raw("info", Some(info)));
            }
            Self::Unsubscribe(code) => push_object(out, |body| {
                body.always_number("code", code.code().into());
                body.always_text("reason", code.reason());
            }),
            Self::Subscribe(result) => push_object(out, |body| {
                result.write_position_fields(body);
                body.raw("data", result.data);
            }),
        }
    }
}

fn write_disconnect(out: &mut String, disconnect: &Disconnect) {
    push_object(out, |body| {
        body.number("code", disconnect.code().into());
        body.text("reason", disconnect.reason());
        body.flag("reconnect", disconnect.client_action() == ClientAction::Reconnect);
    });
}

/// A channel's name as JSON, made once per channel for [`write_publication_push`].
pub fn channel_json(channel: &ChannelName) -> String {
    let mut json = String::with_capacity(channel.as_str().len() + 2);
    push_text(&mut json, channel.as_str());
    json
}

/// Appends the push of `event` for bidirectional transports. Allocates nothing but room in `out`.
pub fn write_publication_push(out: &mut String, channel_json: &str, event: &Event) {
    out.push_str("{\"push\":");
    write_publication_uni(out, channel_json, event);
    out.push('}');
}

/// Appends the push of `event` for unidirectional transports. Allocates nothing but room in `out`.
pub fn write_publication_uni(out: &mut String, channel_json: &str, event: &Event) {
    out.push_str("{\"channel\":");
    out.push_str(channel_json);
    out.push_str(",\"pub\":");
    write_publication(out, event);
    out.push('}');
}
