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
