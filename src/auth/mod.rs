//! A token becomes a `Principal`, for HTTP and sockets alike. Owns the order of the checks:
//! signature, then types, then whom the token is for, then times, so that a forged token never
//! learns more than "invalid". Reads no clock and fetches nothing; what a principal may do is
//! `domain::access`. Must hold: a key verifies only algorithms of its own family.

mod claims;
mod mint;
pub mod revocations;
#[cfg(test)]
mod tests;

use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::domain::access::Principal;
use crate::domain::event::Time;

pub use claims::SubscriptionToken;
pub use mint::{CannotMint, NewToken, mint};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Why a token is worth nothing. It says no more, because the answer goes to a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none. On the wire 3501, over HTTP 401.
    #[error("no token")]
    Missing,
    /// Not signed by us, of another kind, for somebody else, or malformed. On the wire 3500.
    #[error("invalid token")]
    Invalid,
    /// Ours, but its time is over. On the wire 109: get a new one and come back.
    #[error("token expired")]
    Expired,
    /// Ours, but its time has not come. On the wire 109.
    #[error("token not yet valid")]
    NotYetValid,
}

/// The keys that tokens are verified with, and what else a token must say.
///
/// A key knows its family (HMAC, RSA, EC, Ed), and a token is tried only against keys of its
/// algorithm's family: a public key can never serve as an HMAC secret. Keys from PEM files or a
/// key set join the same list.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<DecodingKey>,
    audience: Option<String>,
    issuer: Option<String>,
}

impl Keys {
    /// Shared secrets for HS256, HS384 and HS512; several during a rotation. Empty secrets are
    /// left out, and with none left every token is invalid. `audience` and `issuer` are checked
    /// only if given.
    pub fn hmac<S: AsRef<str>>(
        secrets: impl IntoIterator<Item = S>,
        audience: Option<String>,
        issuer: Option<String>,
    ) -> Self {
        let secrets = secrets.into_iter().filter(|secret| !secret.as_ref().is_empty());
        let keys = secrets.map(|secret| DecodingKey::from_secret(secret.as_ref().as_bytes())).collect();
        Self { keys, audience, issuer }
    }

    /// Who holds this connection token, at the time `now`.
    pub fn authenticate(&self, token: &str, now: Time) -> Result<Principal, TokenError> {
        claims::connection(&self.payload(token)?, self, Some(now))
    }

    /// The same without looking at times, and with no expiry: only for `client.insecure`.
    pub fn authenticate_untimed(&self, token: &str) -> Result<Principal, TokenError> {
        claims::connection(&self.payload(token)?, self, None)
    }

    /// What this subscription token (protocol §10.2) grants, at the time `now`. Whether it is for
    /// this user, channel and client is the caller's to compare.
    pub fn subscription(&self, token: &str, now: Time) -> Result<SubscriptionToken, TokenError> {
        claims::subscription(&self.payload(token)?, self, now)
    }

    /// The claims of a token whose signature is right, as JSON.
    fn payload(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Invalid);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Invalid)?;
        let algorithm = algorithm_of(header)?;
        let signed = self.keys.iter().filter(|key| key.family() == algorithm.family()).any(|key| {
            // An error here means that key, algorithm and signature do not go together.
            crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
        });
        if !signed {
            return Err(TokenError::Invalid);
        }
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Invalid)?;
        // Only an object has claims: a derived reader would also take a list, by place.
        if json.trim_ascii_start().starts_with(b"{") { Ok(json) } else { Err(TokenError::Invalid) }
    }
}

/// What we read of a token's header; `typ` and the rest do not matter.
#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Extensions that must be understood. We understand none.
    #[serde(default, deserialize_with = "claims::present")]
    crit: Option<IgnoredAny>,
}

/// The algorithm that the header names. `none` is not among those that exist.
fn algorithm_of(header: &str) -> Result<Algorithm, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Invalid)?;
    let header: Header = serde_json::from_slice(&json).map_err(|_| TokenError::Invalid)?;
    if header.crit.is_some() {
        return Err(TokenError::Invalid);
    }
    Algorithm::from_str(&header.alg).map_err(|_| TokenError::Invalid)
}

/// The token in an `Authorization` header of the scheme `Bearer`, in any case.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Whether two secrets, such as API keys, are the same, in a time that tells neither where they
/// differ nor how long ours is: both are hashed first.
pub fn same_secret(given: &str, ours: &str) -> bool {
    Sha256::digest(given).as_slice().ct_eq(Sha256::digest(ours).as_slice()).into()
}
