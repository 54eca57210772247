//! What a server speaks: the gateway's own protocol, which is Centrifugo's too, or that of another
//! server that does the same work. How to come in, how to tell what it says apart, and how to publish
//! to it; no sockets. Whatever a server says, what was published is found by its mark.

use anyhow::{Result, bail};
use serde_json::json;

use super::frame::{self, Kind};
use super::line::{self, Line};

/// A protocol over WebSocket frames, and a way to publish by HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The centrifuge client protocol and Centrifugo's server API.
    #[default]
    Centrifuge,
    /// nginx with Nchan: a WebSocket to `/sub/CHANNEL` gets every body posted to `/pub/CHANNEL`.
    Nchan,
    /// Socket.IO over Engine.IO 4, where the server joins who says `subscribe` to a room, and emits to
    /// it what is posted to `/publish`.
    SocketIo,
}

/// What to do about a line of Socket.IO.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A publication of ours.
    Publication(u32),
    /// Answer this.
    Answer(&'static [u8]),
    /// It is time to subscribe.
    Subscribe,
    /// The subscription is there.
    Subscribed,
}

impl Dialect {
    /// By the name of the server that speaks it.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Centrifuge, Self::Nchan, Self::SocketIo].into_iter().find(|dialect| dialect.name() == name)
    }

    /// The name of the server that speaks it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Centrifuge => "centrifugo",
            Self::Nchan => "nchan",
            Self::SocketIo => "socketio",
        }
    }

    /// Where the WebSocket is.
    pub fn path(self, channel: &str) -> String {
        match self {
            Self::Centrifuge => "/connection/websocket".to_owned(),
            Self::Nchan => format!("/sub/{channel}"),
            Self::SocketIo => "/socket.io/?EIO=4&transport=websocket".to_owned(),
        }
    }

    /// The frame that subscribes to a channel, where the path does not.
    pub fn subscription(self, channel: &str) -> Vec<u8> {
        match self {
            Self::SocketIo => {
                frame::masked(Kind::Text, format!("420{}", json!(["subscribe", channel])).as_bytes())
            }
            Self::Centrifuge | Self::Nchan => Vec::new(),
        }
    }

    /// Where to post, what stands before the data in the body, and what behind it.
    pub fn publication(self, channel: &str) -> (String, String, &'static str) {
        let wrapped = || format!("{{\"channel\":{},\"data\":", json!(channel));
        match self {
            Self::Centrifuge => ("/api/publish".to_owned(), wrapped(), "}"),
            Self::Nchan => (format!("/pub/{channel}"), String::new(), ""),
            Self::SocketIo => ("/publish".to_owned(), wrapped(), "}"),
        }
    }

    /// Whether an answer means that the server took the message.
    pub fn took(self, status: u16, body: &[u8]) -> bool {
        match self {
            Self::Centrifuge => status == 200 && memchr::memmem::find(body, b"\"result\"").is_some(),
            Self::Nchan | Self::SocketIo => (200..300).contains(&status),
        }
    }
}

/// What a line of Socket.IO asks for.
pub fn socket_io(line: Line<'_>) -> Result<Step> {
    let line = match line {
        Line::Publication(number) => return Ok(Step::Publication(number)),
        Line::Ping => b"{}",
        Line::Other(line) => line,
    };
    match line {
        [b'0', b'{', ..] => Ok(Step::Answer(b"40")),
        [b'4', b'0', ..] => Ok(Step::Subscribe),
        [b'4', b'3', b'0', b'[', ..] => Ok(Step::Subscribed),
        b"2" => Ok(Step::Answer(b"3")),
        _ => bail!("the server said {}", line::shown(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_name() {
        for name in ["centrifugo", "nchan", "socketio"] {
            assert_eq!(Dialect::named(name).unwrap().name(), name);
        }
        assert_eq!(Dialect::named("gopher"), None);
    }

    #[test]
    fn socket_io_is_greeted_joined_and_kept_awake() {
        let said: [(&[u8], Step); 4] = [
            (b"0{\"sid\":\"a\",\"pingInterval\":25000}", Step::Answer(b"40")),
            (b"40{\"sid\":\"b\"}", Step::Subscribe),
            (b"430[]", Step::Subscribed),
            (b"2", Step::Answer(b"3")),
        ];
        for (line, step) in said {
            assert_eq!(socket_io(Line::Other(line)).unwrap(), step, "{}", line::shown(line));
        }
        assert!(socket_io(Line::Other(b"44{\"message\":\"no\"}")).is_err());
        let mut event = b"42[\"message\",".to_vec();
        event.extend(line::data(7, 64).0);
        event.push(b']');
        let line = line::lines(&event).next().unwrap().unwrap();
        assert_eq!(socket_io(line).unwrap(), Step::Publication(7));
    }

    #[test]
    fn names_of_channels_are_quoted() {
        let (path, before, after) = Dialect::Centrifuge.publication("a\"b");
        assert_eq!(
            (&path[..], &before[..], after),
            ("/api/publish", "{\"channel\":\"a\\\"b\",\"data\":", "}")
        );
        let (_, frame, _) = frame::unmask(&Dialect::SocketIo.subscription("a\"b")).unwrap().unwrap();
        assert_eq!(frame, b"420[\"subscribe\",\"a\\\"b\"]");
    }
}
