//! What all sessions of a node share: keys, namespaces, limits and delays. Values only; the
//! configuration sets them, and the defaults here are those of the protocol (§13) and the design (§13).

use std::sync::Arc;
use std::time::Duration;

use super::metrics::Metrics;
use crate::auth::KeyRing;
use crate::auth::revocations::Revocations;
use crate::config::{Config, PersonalChannelConfig};
use crate::domain::options::SharedNamespaces;
use crate::limits::user_connections::UserConnections;

/// The context of a session. All sessions of a node share one.
pub struct SessionContext {
    /// The keys that verify tokens.
    pub keys: KeyRing,
    /// Tokens and users that are refused although the token is valid.
    pub revocations: Revocations,
    /// The configured namespaces.
    pub namespaces: SharedNamespaces,
    /// How many connections each user has open.
    pub users: UserConnections,
    /// Counts the errors that are sent to clients.
    pub metrics: Arc<Metrics>,
    /// Limits and delays.
    pub options: ConnectionOptions,
}

/// Limits and delays of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Between two pings; zero is no pings at all.
    pub ping_interval: Duration,
    /// How long a client may take to answer a ping (3012).
    pub pong_timeout: Duration,
    /// How long a client may take until it has connected (3502).
    pub stale_close_delay: Duration,
    /// How long an expired connection is kept for a refresh that is late (3005).
    pub expired_close_delay: Duration,
    /// The same for an expired subscription (2501, 3006).
    pub expired_sub_close_delay: Duration,
    /// Subscriptions of one connection (106, 3505).
    pub channel_limit: usize,
    /// Events that a client reads from the log at once; more are cut off.
    pub history_limit: u32,
    /// Bytes of data that a client publishes at once (107).
    pub max_publication: usize,
    /// Everybody may do everything in configured namespaces. Never for production.
    pub insecure: bool,
    /// Without a token a client is anonymous, instead of refused (3501).
    pub allow_anonymous_connect_without_token: bool,
    /// Every user is subscribed to a channel of its own.
    pub personal: Option<Personal>,
}

/// How users are subscribed to channels of their own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Personal {
    /// The namespace of these channels; `None`: without one.
    pub namespace: Option<String>,
    /// A new connection ends the older ones of the user (3504).
    pub single: bool,
}

impl From<&Config> for ConnectionOptions {
    fn from(config: &Config) -> Self {
        let client = &config.client;
        let personal = &client.subscribe_to_user_personal_channel;
        Self {
            ping_interval: client.ping_interval.0,
            pong_timeout: client.pong_timeout.0,
            stale_close_delay: client.stale_close_delay.0,
            expired_close_delay: client.expired_close_delay.0,
            expired_sub_close_delay: client.expired_sub_close_delay.0,
            channel_limit: client.channel_limit as usize,
            history_limit: client.history_max_publication_limit,
            max_publication: config.channel.max_publication_size.bytes(),
            insecure: client.insecure,
            allow_anonymous_connect_without_token: client.allow_anonymous_connect_without_token,
            personal: personal.enabled.then(|| Personal::from(personal)),
        }
    }
}

impl From<&PersonalChannelConfig> for Personal {
    fn from(config: &PersonalChannelConfig) -> Self {
        let namespace = Some(&config.personal_channel_namespace).filter(|name| !name.is_empty()).cloned();
        Self { namespace, single: config.single_connection }
    }
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(8),
            stale_close_delay: Duration::from_secs(10),
            expired_close_delay: Duration::from_secs(25),
            expired_sub_close_delay: Duration::from_secs(25),
            channel_limit: 128,
            history_limit: 300,
            max_publication: 256 * 1024,
            insecure: false,
            allow_anonymous_connect_without_token: false,
            personal: None,
        }
    }
}
