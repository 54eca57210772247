//! Makes a connection token, for `campanile token`, the hand-off to a signed-in browser and the
//! tests. Says what it is given and an id by which it can be revoked: no right is invented, so
//! what was not asked for is not granted.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use uuid::Uuid;

use crate::domain::channel::ChannelName;
use crate::domain::event::Time;

/// What a new token shall say. The default is an anonymous token that never expires.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewToken {
    /// The user; empty for anonymous.
    pub user: String,
    /// Accounts whose repositories may be seen.
    pub orgs: Vec<String>,
    /// Repositories that may be seen, as `owner/name`.
    pub repos: Vec<String>,
    /// `read`, `scan`, `publish`, `admin`.
    pub scopes: Vec<String>,
    /// Channels that may be subscribed to, of whatever namespace.
    pub channels: Vec<ChannelName>,
    /// Channels that may be subscribed to and whose history may be read, without being subscribed.
    pub reads: Vec<ChannelName>,
    /// How long it is valid; `None` is for ever.
    pub ttl: Option<Duration>,
    /// What [`super::Keys`] demands as `aud`, if it demands one.
    pub audience: Option<String>,
    /// What [`super::Keys`] demands as `iss`, if it demands one.
    pub issuer: Option<String>,
}

/// The token cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// There is no secret to sign with.
    #[error("there is no secret to sign tokens with: set client.token.hmac_secret_key")]
    NoSecret,
    /// Its end lies behind the end of the calendar.
    #[error("the token would be valid for too long: use a shorter ttl")]
    TooLong,
    /// The signature failed.
    #[error("the token cannot be signed")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

#[derive(Serialize)]
struct Claims<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    sub: &'a str,
    jti: Uuid,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    orgs: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    repos: &'a [String],
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
    #[serde(skip_serializing_if = "<[ChannelName]>::is_empty")]
    channels: &'a [ChannelName],
    #[serde(skip_serializing_if = "Option::is_none")]
    caps: Option<[Cap<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
}

#[derive(Serialize)]
struct Cap<'a> {
    channels: &'a [ChannelName],
    allow: [&'static str; 2],
}

/// A token signed with HS256 by `secret`, made at the time `now`.
pub fn mint(secret: &str, token: &NewToken, now: Time) -> Result<String, MintError> {
    if secret.is_empty() {
        return Err(MintError::NoSecret);
    }
    let iat = now.timestamp();
    let end = |ttl: Duration| iat.checked_add_unsigned(ttl.as_secs()).ok_or(MintError::TooLong);
    let claims = Claims {
        sub: &token.user,
        jti: Uuid::new_v4(),
        iat,
        exp: token.ttl.map(end).transpose()?,
        orgs: &token.orgs,
        repos: &token.repos,
        scope: token.scopes.join(" "),
        channels: &token.channels,
        caps: (!token.reads.is_empty()).then_some([Cap { channels: &token.reads, allow: ["sub", "hst"] }]),
        aud: token.audience.as_deref(),
        iss: token.issuer.as_deref(),
    };
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes()))?)
}
