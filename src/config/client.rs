//! The sections about clients: what their connections may do, and the transports that carry them.
//! The other sections are in `sections`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::origin::OriginPattern;
use super::values::{JwksUrl, Secret};
use crate::domain::units::{Size, Span};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// `[client]`: what connections may do and how much they may hold up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientConfig {
    /// How connection tokens are verified.
    pub token: TokenConfig,
    /// A channel of each user's own.
    pub subscribe_to_user_personal_channel: PersonalChannelConfig,
    /// Foreign origins that browsers may come from, beside `server.public_url`.
    pub allowed_origins: Vec<OriginPattern>,
    /// Let clients without a token in as anonymous.
    pub allow_anonymous_connect_without_token: bool,
    /// Allow everybody whatever a configured namespace offers. Never for production.
    pub insecure: bool,
    /// Connections of this node; 0 turns the limit off.
    pub connection_limit: u32,
    /// Connections of one user; 0 turns the limit off.
    pub user_connection_limit: u32,
    /// Subscriptions of one connection.
    pub channel_limit: u32,
    /// Events in one answer to a client's `history`.
    pub history_max_publication_limit: u32,
    /// Events that a returning client may have missed in a configured namespace; one that missed more
    /// is told that it was not recovered.
    pub recovery_max_publication_limit: u32,
    /// Bytes of data that a returning client gets in one reply, of all its channels together.
    pub recovery_max_size: Size,
    /// Bytes that may wait for one connection before it is closed as slow.
    pub queue_max_size: Size,
    /// How long one write may take before its connection is closed.
    pub write_timeout: Span,
    /// How often a connection is pinged; clients are told in whole seconds.
    pub ping_interval: Span,
    /// How long a client may take to answer a ping.
    pub pong_timeout: Span,
    /// How long a client may take to send `connect`.
    pub stale_close_delay: Span,
    /// How long a connection outlives its token, so that the client can renew it.
    pub expired_close_delay: Span,
    /// How long a subscription outlives its token, so that the client can renew it.
    pub expired_sub_close_delay: Span,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            token: TokenConfig::default(),
            subscribe_to_user_personal_channel: PersonalChannelConfig::default(),
            allowed_origins: Vec::new(),
            allow_anonymous_connect_without_token: false,
            insecure: false,
            connection_limit: 0,
            user_connection_limit: 10,
            channel_limit: 128,
            history_max_publication_limit: 300,
            recovery_max_publication_limit: 300,
            recovery_max_size: Size(8 * MIB),
            queue_max_size: Size(MIB),
            write_timeout: Span::secs(10),
            ping_interval: Span::secs(25),
            pong_timeout: Span::secs(8),
            stale_close_delay: Span::secs(10),
            expired_close_delay: Span::secs(25),
            expired_sub_close_delay: Span::secs(25),
        }
    }
}

/// `[client.token]`: how tokens of connections and subscriptions are verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenConfig {
    /// Shared secret of HS256, HS384 and HS512; 32 bytes or more are advised.
    pub hmac_secret_key: Option<Secret>,
    /// Public key of RS256, RS384 and RS512 in PEM; several one after the other during a rotation.
    pub rsa_public_key: Option<String>,
    /// Public key of ES256 or ES384 in PEM, or several.
    pub ecdsa_public_key: Option<String>,
    /// Public key of EdDSA in PEM, or several.
    pub ed25519_public_key: Option<String>,
    /// A JSON Web Key Set in a file.
    pub jwks_file: Option<PathBuf>,
    /// The URL of a JSON Web Key Set, fetched at start and again from time to time.
    pub jwks_public_endpoint: Option<JwksUrl>,
    /// Accept a `jwks_public_endpoint` without TLS.
    pub jwks_allow_http: bool,
    /// The `aud` that a token must have; not checked if unset.
    pub audience: Option<String>,
    /// The `iss` that a token must have; not checked if unset.
    pub issuer: Option<String>,
    /// By how much the clocks of issuers may differ: `nbf` counts so much earlier, `exp` and `expire_at` so
    /// much later.
    pub leeway: Span,
}

/// `[client.subscribe_to_user_personal_channel]`: a channel of each user's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PersonalChannelConfig {
    /// Whether each connection of a user is subscribed to `#USER`.
    pub enabled: bool,
    /// The namespace of that channel, as in `NAMESPACE:#USER`; none if empty.
    pub personal_channel_namespace: String,
    /// Whether a new connection ends the older ones of its user.
    pub single_connection: bool,
}

/// `[websocket]` and `[uni_websocket]`: `/connection/websocket` and `/connection/uni_websocket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebsocketConfig {
    /// Whether it is served.
    pub enabled: bool,
    /// The largest message of a client.
    pub message_size_limit: Size,
}

impl Default for WebsocketConfig {
    fn default() -> Self {
        Self { enabled: true, message_size_limit: Size(64 * KIB) }
    }
}

/// `[http_stream]`, `[uni_http_stream]` and `[uni_sse]`: `/connection/…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// Whether it is served.
    pub enabled: bool,
    /// The largest body, or parameter in its place, with which a stream opens.
    pub max_request_body_size: Size,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self { enabled: true, max_request_body_size: Size(64 * KIB) }
    }
}

/// `[sse]`: `/connection/sse` and `/api/events/stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SseConfig {
    /// Whether the two are served.
    pub enabled: bool,
    /// The largest body, or parameter in its place, with which `/connection/sse` opens.
    pub max_request_body_size: Size,
    /// How often a quiet event stream gets a comment, so that proxies keep it open.
    pub ping_interval: Span,
}

impl Default for SseConfig {
    fn default() -> Self {
        Self { enabled: true, max_request_body_size: Size(64 * KIB), ping_interval: Span::secs(15) }
    }
}

/// `[emulation]`: `/emulation`, to which clients of `http_stream` and `sse` send their commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmulationConfig {
    /// The largest post.
    pub max_request_body_size: Size,
    /// Bytes of posts that may wait for one connection before it is closed.
    pub queue_max_size: Size,
}

impl Default for EmulationConfig {
    fn default() -> Self {
        Self { max_request_body_size: Size(64 * KIB), queue_max_size: Size(256 * KIB) }
    }
}
