//! Commands that the server API sends to connections (protocol §12.2). Values only: the caller selects
//! the connections, and the session applies the command. No permission is checked, because the API
//! key grants all of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::channel::ChannelName;
use super::event::Time;
use super::principal::SubClaim;

/// A command to each selected connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerCommand {
    /// Begin a server-side subscription, unless the client is already subscribed.
    Subscribe(Box<Admission>),
    /// End the subscription of this channel, or all of them.
    Unsubscribe(Option<ChannelName>),
    /// End the subscriptions that the token with this `jti` admitted.
    RevokeToken(String),
    /// Change when the connection expires.
    Refresh {
        /// The new expiry.
        expiry: Expiry,
        /// The new `conn_info` that others see, if given: one JSON value on one line.
        #[serde(with = "crate::domain::serde_arc_str::option", default)]
        info: Option<Arc<str>>,
    },
}

/// A server-side subscription that is to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    pub channel: ChannelName,
    /// The info, data and overrides of the subscription.
    pub claim: SubClaim,
    /// When the subscription expires; `None` is never.
    pub expires_at: Option<Time>,
    /// The epoch (empty matches any) and offset from which events are recovered.
    pub since: Option<(String, u64)>,
}

/// When a connection expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expiry {
    Expired,
    Never,
    /// At this time, unless it is refreshed.
    At(Time),
}
