//! What the server API tells connections to do with themselves (protocol §12.2). Values only: who
//! is meant is decided before, what it does to a client is the connection's. Rights are not asked:
//! who has the API key has them all.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::channel::ChannelName;
use super::event::Time;
use super::principal::SubClaim;

/// One thing to do, for each connection that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Directive {
    /// Begin a server-side subscription, unless there is one.
    Subscribe(Box<Admission>),
    /// End the subscription of this channel, or all of them.
    Unsubscribe(Option<ChannelName>),
    /// Change when the connection expires.
    Refresh {
        /// When it does from now on.
        life: Life,
        /// Shown to others as `conn_info` from now on, if given: one JSON value on one line.
        #[serde(with = "crate::domain::shared_text::option", default)]
        info: Option<Arc<str>>,
    },
}

/// A server-side subscription that is to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Where.
    pub channel: ChannelName,
    /// What is shown to others and told to the client, and what it changes.
    pub claim: SubClaim,
    /// When it ends; `None` is never.
    pub expires_at: Option<Time>,
    /// Epoch (empty fits any) and offset behind which the client is brought up to date.
    pub since: Option<(String, u64)>,
}

/// How long a connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// It is over.
    Over,
    /// It ends only for other reasons.
    Endless,
    /// It ends then, unless it is renewed.
    Until(Time),
}
