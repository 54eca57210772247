//! The sections about clients: what their connections may do, and the transports that carry them.
//! The others are in `sections`; the same holds for both.

use serde::{Deserialize, Serialize};

use super::origin::OriginPattern;
use super::values::Secret;
use crate::domain::units::{Size, Span};

const MIB: u64 = 1 << 20;

/// `[client]`: what connections may do and how much they may hold up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientConfig {
    /// How connection tokens are verified.
    pub token: TokenConfig,
    /// Foreign origins that browsers may come from, beside `server.public_url`.
    pub allowed_origins: Vec<OriginPattern>,
    /// Connections of one user; 0 turns the limit off.
    pub user_connection_limit: u32,
    /// Bytes that may wait for one connection before it is closed as slow.
    pub queue_max_size: Size,
    /// How long one write may take before its connection is closed.
    pub write_timeout: Span,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            token: TokenConfig::default(),
            allowed_origins: Vec::new(),
            user_connection_limit: 10,
            queue_max_size: Size(MIB),
            write_timeout: Span::secs(10),
        }
    }
}

/// `[client.token]`: how connection tokens are verified.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenConfig {
    /// Shared secret of HS256, HS384 and HS512; 32 bytes or more are advised.
    pub hmac_secret_key: Option<Secret>,
    /// The `aud` that a token must have; not checked if unset.
    pub audience: Option<String>,
    /// The `iss` that a token must have; not checked if unset.
    pub issuer: Option<String>,
}

/// `[sse]`: `/api/events/stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SseConfig {
    /// Whether the stream is served.
    pub enabled: bool,
    /// How often a quiet stream gets a comment, so that proxies keep it open.
    pub ping_interval: Span,
}

impl Default for SseConfig {
    fn default() -> Self {
        Self { enabled: true, ping_interval: Span::secs(15) }
    }
}
