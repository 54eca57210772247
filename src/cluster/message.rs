//! What nodes say to each other above the bus, as JSON. A node that does not know a word passes over
//! the whole message, so that nodes of two versions work side by side: a word is only ever added.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::connection::clients::{Connected, Target};
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::hub::presence::Member;
use crate::protocol::code::Disconnect;

/// Something to all nodes, or to one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// I am here.
    Alive(Alive),
    /// I go.
    Gone {},
    /// A question, to be answered under its number.
    Ask { id: u64, question: Question },
    /// The answer.
    Answer { id: u64, answer: Answer },
    /// The list of what is revoked has changed in the store.
    Revoked {},
}

/// A sign of life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Alive {
    pub(super) name: String,
    pub(super) version: String,
    /// Whether it hears others over the usual way.
    pub(super) hears: bool,
    /// Whether it wants to know who else is there.
    #[serde(default)]
    pub(super) please_answer: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Question {
    /// End connections.
    Dismiss { target: Target, disconnect: Disconnect },
    /// Have connections do something.
    Direct { target: Target, directive: Directive },
    /// How are you?
    Info {},
    /// Which channels have subscribers?
    Channels { pattern: Option<String> },
    /// Who is connected?
    Connected { user: Option<String>, limit: usize },
    /// Who is on this channel?
    Members { channel: ChannelName },
    /// How many connections has this user?
    Connections { user: String },
    /// A client's frame for a session.
    Post { session: String, frame: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done {},
    Dismissed(usize),
    Info(NodeInfo),
    Channels(Vec<(ChannelName, usize)>),
    Connected(Vec<Connected>),
    Members(Vec<Member>),
    Connections(u32),
    /// `false`: too much waits for the session.
    Posted(bool),
}

/// A node as the server API shows it (protocol §12.2, `info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Another one after each start.
    pub uid: Uuid,
    /// For people.
    pub name: String,
    /// Of the binary.
    pub version: String,
    /// Connections.
    pub num_clients: usize,
    /// Users behind them.
    pub num_users: usize,
    /// Channels with subscribers.
    pub num_channels: usize,
    /// Subscriptions.
    pub num_subs: usize,
    /// Seconds since it started.
    pub uptime: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::directive::{Admission, Life};
    use crate::domain::principal::SubClaim;
    use crate::protocol::code::DisconnectCode;

    fn again(message: &Message) -> String {
        let text = serde_json::to_string(message).unwrap();
        let read: Message = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{read:?}"), format!("{message:?}"));
        text
    }

    #[test]
    fn what_is_said_is_understood() {
        let user = || Target::all_of("ana \"x\"".into());
        let channel = ChannelName::parse("news:a").unwrap();
        let claim = SubClaim { info: Some("{\"a\": 1.0}".into()), ..SubClaim::default() };
        let admission =
            Admission { channel: channel.clone(), claim, expires_at: None, since: Some(("e".into(), 3)) };
        let member = Member { client: Uuid::nil(), user: "ana".into(), info: "{\"user\":\"ana\"}".into() };
        let asked = |question| again(&Message::Ask { id: 1, question });
        asked(Question::Dismiss { target: user(), disconnect: DisconnectCode::ForceDisconnect.into() });
        asked(Question::Dismiss {
            target: Target::Older { user: "ana".into(), than: Uuid::max() },
            disconnect: Disconnect::custom(4000, "because").unwrap(),
        });
        asked(Question::Direct { target: user(), directive: Directive::Subscribe(Box::new(admission)) });
        asked(Question::Direct { target: user(), directive: Directive::Unsubscribe(Some(channel)) });
        let until = Life::Until(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        asked(Question::Direct { target: user(), directive: Directive::Refresh { life: until, info: None } });
        again(&Message::Answer { id: 1, answer: Answer::Members(vec![member]) });
        again(&Message::Gone {});
    }

    #[test]
    fn a_newer_node_may_say_more() {
        let alive = r#"{"alive":{"name":"n","version":"9","hears":true,"mood":"good"}}"#;
        assert!(matches!(serde_json::from_str(alive).unwrap(), Message::Alive(_)));
        assert!(serde_json::from_str::<Message>(r#"{"sing":{"song":1}}"#).is_err(), "it is passed over");
    }
}
