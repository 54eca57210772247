//! Which keys verify a token: a key knows the algorithms that it serves, and a token is tried
//! against no other key. So a public key can never stand in for a shared secret, whatever a token
//! says about itself, and `none` is served by no key at all.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::claims::{self, Validity};
use super::{KeySet, MAX_TOKEN, SubscriptionToken, TokenError};
use crate::domain::access::Principal;
use crate::domain::event::Time;

/// The algorithms that tokens may be signed with, by family.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// The algorithm of this name, if tokens may be signed with it.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

/// A key with what it serves.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) key: DecodingKey,
    /// Its name in a key set, the `kid` of the tokens that it signs.
    pub(super) id: Option<Box<str>>,
    /// The one algorithm that it serves; `None` for all of its family.
    pub(super) only: Option<Algorithm>,
}

impl Key {
    fn serves(&self, header: &Header<'_>, algorithm: Algorithm) -> bool {
        let named = match (&self.id, &header.kid) {
            (Some(ours), Some(theirs)) => **ours == **theirs,
            _ => true,
        };
        named
            && match self.only {
                Some(only) => only == algorithm,
                None => self.key.family() == algorithm.family(),
            }
    }
}

/// Why a signature cannot be verified.
#[derive(derive_more::From)]
pub(super) enum VerifyError {
    /// No other key would change that.
    #[from]
    Final(TokenError),
    /// It may be by a key that is not known yet.
    UnknownKey,
}

impl From<VerifyError> for TokenError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Final(error) => error,
            VerifyError::UnknownKey => Self::Invalid,
        }
    }
}

/// The configured keys, and what else a token must say.
#[derive(Debug, Clone)]
pub struct Keys {
    keys: Vec<Key>,
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<String>,
    /// By how much the clocks of issuers may differ from ours.
    pub(super) leeway: Duration,
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
        let key = |secret: S| Key {
            key: DecodingKey::from_secret(secret.as_ref().as_bytes()),
            id: None,
            only: None,
        };
        Self { keys: secrets.map(key).collect(), audience, issuer, leeway: Duration::ZERO }
    }

    /// The same, where tokens are valid so much earlier and longer than they say.
    pub fn with_leeway(self, leeway: Duration) -> Self {
        Self { leeway, ..self }
    }

    /// The same and these public keys.
    pub fn with(mut self, set: KeySet) -> Self {
        self.keys.extend(set.keys);
        self
    }

    /// The principal of this connection token at the time `now`.
    pub fn authenticate(&self, token: &str, now: Time) -> Result<Principal, TokenError> {
        Ok(self.connection(&self.payload(token, None)?, Some(now))?.0)
    }

    /// The principal of verified claims, and their validity. With `now: None` times are ignored.
    pub(super) fn connection(
        &self,
        json: &[u8],
        now: Option<Time>,
    ) -> Result<(Principal, Validity), TokenError> {
        claims::connection(json, self, now)
    }

    /// The grant of verified claims.
    pub(super) fn subscription(&self, json: &[u8], now: Time) -> Result<SubscriptionToken, TokenError> {
        claims::subscription(json, self, now)
    }

    /// The claims of a token whose signature is right by one of these keys or of `more`, as JSON.
    pub(super) fn payload(&self, token: &str, more: Option<&KeySet>) -> Result<Vec<u8>, VerifyError> {
        if token.is_empty() {
            return Err(TokenError::Missing.into());
        }
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Invalid.into());
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Invalid)?;
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Invalid)?;
        let header = Header::read(&header)?;
        let algorithm = algorithm(&header.alg).ok_or(TokenError::Invalid)?;
        let all = || self.keys.iter().chain(more.iter().flat_map(|set| &set.keys));
        let signed = all().filter(|key| key.serves(&header, algorithm)).any(|key| {
            // An error here means that key, algorithm and signature do not go together.
            crypto::verify(signature, message.as_bytes(), &key.key, algorithm).unwrap_or(false)
        });
        if !signed {
            // Without a name it may be by any key, also by one that the set does not have yet.
            let known =
                header.kid.as_ref().is_some_and(|kid| all().any(|key| key.id.as_deref() == Some(kid)));
            let shared = algorithm.family() == AlgorithmFamily::Hmac;
            return Err(if known || shared { TokenError::Invalid.into() } else { VerifyError::UnknownKey });
        }
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Invalid)?;
        // Only an object has claims: a derived reader would also take a list, by place.
        let object = json.trim_ascii_start().starts_with(b"{");
        if object { Ok(json) } else { Err(TokenError::Invalid.into()) }
    }
}

/// What we read of a token's header; `typ` and the rest do not matter. Above all it says nothing
/// about where a key might be had (`jku`, `x5u`, `jwk`).
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    /// The name of the key.
    #[serde(borrow, default)]
    kid: Option<Cow<'a, str>>,
    /// Extensions that must be understood. We understand none.
    #[serde(default, deserialize_with = "claims::present")]
    crit: Option<IgnoredAny>,
}

impl<'a> Header<'a> {
    fn read(json: &'a [u8]) -> Result<Self, TokenError> {
        let header: Self = serde_json::from_slice(json).map_err(|_| TokenError::Invalid)?;
        if header.crit.is_some() { Err(TokenError::Invalid) } else { Ok(header) }
    }
}
