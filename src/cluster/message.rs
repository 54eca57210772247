//! The messages between nodes, as JSON. A node ignores a message of a kind that it does not know, so
//! that nodes of two versions work side by side: kinds are only ever added.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clients::{ConnectionInfo, Target};
use crate::domain::channel::ChannelName;
use crate::domain::server_command::ServerCommand;
use crate::hub::presence::Member;
use crate::protocol::code::Disconnect;

/// A message to all nodes, or to one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The sender is alive.
    Heartbeat(Heartbeat),
    /// The sender stops.
    Leaving {},
    /// A request; the response carries its number.
    Request {
        id: u64,
        request: Request,
    },
    Response {
        id: u64,
        response: Response,
    },
    /// The list of revocations in the store has changed.
    RevocationsChanged {},
}

/// The heartbeat of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    pub(super) name: String,
    pub(super) version: String,
    /// Whether it receives messages of other nodes over Redis (or NOTIFY where there is no Redis).
    pub(super) receives: bool,
    /// Whether the others should send a heartbeat in reply.
    #[serde(default)]
    pub(super) reply_requested: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Disconnect {
        target: Target,
        disconnect: Disconnect,
    },
    /// Apply a command to connections.
    Command {
        target: Target,
        command: ServerCommand,
    },
    /// What does the node look like?
    Info {},
    /// Which channels have subscribers?
    Channels {
        pattern: Option<String>,
    },
    /// Who is connected?
    Connected {
        user: Option<String>,
        limit: usize,
    },
    /// Who is on this channel?
    Members {
        channel: ChannelName,
    },
    /// How many connections does this user have?
    Connections {
        user: String,
    },
    /// A client's frame for a session.
    Post {
        session: String,
        frame: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Response {
    Done {},
    Disconnected(usize),
    Info(NodeInfo),
    Channels(Vec<(ChannelName, usize)>),
    Connected(Vec<ConnectionInfo>),
    Members(Vec<Member>),
    Connections(u32),
    /// `false`: the queue of the session is full.
    Posted(bool),
}

/// A node as the server API shows it (protocol §12.2, `info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// New after each start.
    pub uid: Uuid,
    pub name: String,
    /// Version of the binary.
    pub version: String,
    pub num_clients: usize,
    /// Users of these connections.
    pub num_users: usize,
    /// Channels with subscribers.
    pub num_channels: usize,
    pub num_subs: usize,
    /// Seconds since it started.
    pub uptime: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::SubClaim;
    use crate::domain::server_command::{Admission, Expiry};
    use crate::protocol::code::DisconnectCode;

    fn round_trip(message: &Message) -> String {
        let text = serde_json::to_string(message).unwrap();
        let read: Message = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{read:?}"), format!("{message:?}"));
        text
    }

    #[test]
    fn messages_survive_a_round_trip() {
        let user = || Target::all_of("ana \"x\"".into());
        let channel = ChannelName::parse("news:a").unwrap();
        let claim = SubClaim { info: Some("{\"a\": 1.0}".into()), ..SubClaim::default() };
        let admission =
            Admission { channel: channel.clone(), claim, expires_at: None, since: Some(("e".into(), 3)) };
        let member = Member { client: Uuid::nil(), user: "ana".into(), info: "{\"user\":\"ana\"}".into() };
        let request_round_trip = |request| round_trip(&Message::Request { id: 1, request });
        request_round_trip(Request::Disconnect {
            target: user(),
            disconnect: DisconnectCode::ForceDisconnect.into(),
        });
        request_round_trip(Request::Disconnect {
            target: Target::Older { user: "ana".into(), than: Uuid::max() },
            disconnect: Disconnect::custom(4000, "because").unwrap(),
        });
        request_round_trip(Request::Command {
            target: user(),
            command: ServerCommand::Subscribe(Box::new(admission)),
        });
        request_round_trip(Request::Command {
            target: user(),
            command: ServerCommand::Unsubscribe(Some(channel)),
        });
        let until = Expiry::At(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        request_round_trip(Request::Command {
            target: user(),
            command: ServerCommand::Refresh { expiry: until, info: None },
        });
        round_trip(&Message::Response { id: 1, response: Response::Members(vec![member]) });
        round_trip(&Message::Leaving {});
    }

    #[test]
    fn unknown_fields_of_newer_nodes_are_ignored() {
        let alive = r#"{"heartbeat":{"name":"n","version":"9","receives":true,"mood":"good"}}"#;
        assert!(matches!(serde_json::from_str(alive).unwrap(), Message::Heartbeat(_)));
        assert!(serde_json::from_str::<Message>(r#"{"sing":{"song":1}}"#).is_err(), "it is ignored");
    }
}
