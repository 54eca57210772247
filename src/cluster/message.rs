//! The messages between nodes, as JSON. A node ignores a message of a kind that it does not know, so
//! that nodes of two versions work side by side: kinds are only ever added.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::requests::AnyRequest;

/// A message to all nodes, or to one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// The sender is alive.
    Heartbeat(Heartbeat),
    /// The sender stops.
    Leaving {},
    /// A request; the response carries its number.
    Request { id: u64, request: AnyRequest },
    /// The response to that request, as the type of the request has it.
    Response { id: u64, response: Box<RawValue> },
    /// Something in the store that nodes keep in memory has changed.
    Changed { what: Changed },
}

/// What has changed in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// The list of revocations.
    Revocations,
    /// A session has ended.
    Sessions,
}

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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clients::Target;
    use crate::cluster::requests::{Command, Disconnect, Members, Request};
    use crate::domain::channel::ChannelName;
    use crate::domain::presence::Member;
    use crate::domain::principal::SubClaim;
    use crate::domain::server_command::{Admission, Expiry, ServerCommand};
    use crate::protocol::code::{Disconnect as Reason, DisconnectCode};

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
        let request_round_trip = |request: AnyRequest| round_trip(&Message::Request { id: 1, request });
        request_round_trip(AnyRequest::Disconnect(Disconnect {
            target: user(),
            disconnect: DisconnectCode::ForceDisconnect.into(),
        }));
        request_round_trip(AnyRequest::Disconnect(Disconnect {
            target: Target::Older { user: "ana".into(), than: Uuid::max() },
            disconnect: Reason::custom(4000, "because").unwrap(),
        }));
        request_round_trip(AnyRequest::Command(Command {
            target: user(),
            command: ServerCommand::Subscribe(Box::new(admission)),
        }));
        request_round_trip(AnyRequest::Command(Command {
            target: user(),
            command: ServerCommand::Unsubscribe(Some(channel.clone())),
        }));
        let until = Expiry::At(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        request_round_trip(AnyRequest::Command(Command {
            target: user(),
            command: ServerCommand::Refresh { expiry: until, info: None },
        }));
        let response = serde_json::value::to_raw_value(&vec![member.clone()]).unwrap();
        let text = round_trip(&Message::Response { id: 1, response });
        let Message::Response { response, .. } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}")
        };
        let members: <Members as Request>::Response = serde_json::from_str(response.get()).unwrap();
        assert_eq!(members, [member]);
        request_round_trip(AnyRequest::Members(Members { channel }));
        round_trip(&Message::Leaving {});
    }

    #[test]
    fn unknown_fields_of_newer_nodes_are_ignored() {
        let alive = r#"{"heartbeat":{"name":"n","version":"9","receives":true,"mood":"good"}}"#;
        assert!(matches!(serde_json::from_str(alive).unwrap(), Message::Heartbeat(_)));
        let unknown = [
            r#"{"sing":{"song":1}}"#,
            r#"{"request":{"id":1,"request":{"sing":{"song":1}}}}"#,
            r#"{"changed":{"what":"songs"}}"#,
        ];
        for text in unknown {
            assert!(serde_json::from_str::<Message>(text).is_err(), "it is ignored");
        }
    }
}
