//! A token becomes a `Principal`, for HTTP and sockets alike. Owns the order of the checks:
//! signature, then types, then whom the token is for, then times, so that a forged token never
//! learns more than "invalid". Reads no clock and fetches nothing; what a principal may do is
//! `domain::access`. Must hold: a key verifies only algorithms of its own family.

mod awaited;
mod claims;
mod key_ring;
mod keys;
mod mint;
mod public;
pub mod revocations;
#[cfg(test)]
mod tests;
mod token_cache;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

pub use claims::{SubscriptionToken, sub_claim};
pub use key_ring::{Fetching, KeyRing};
pub use keys::Keys;
pub use mint::{MintError, NewToken, mint};
pub use public::{BadKey, BadKeySet, KeyKind, KeySet, MAX_KEY_SET};

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Why a token is refused. No more detail unless the signature was right, because the answer goes to an
/// unauthenticated caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none. On the wire 3501, over HTTP 401.
    #[error("no token")]
    Missing,
    /// Not signed by us, or malformed. On the wire 3500.
    #[error("invalid token")]
    Invalid,
    /// Signed by us, but this claim has a wrong type or value, or is for somebody else. On the wire as
    /// [`Invalid`](Self::Invalid).
    #[error("invalid token: the claim `{0}` is wrong")]
    Claim(&'static str),
    /// Ours, but its time is over. On the wire 109: get a new one and come back.
    #[error("token expired")]
    Expired,
    /// Ours, but its time has not come. On the wire 109.
    #[error("token not yet valid")]
    NotYetValid,
    /// Perhaps ours: its key may be in a key set that is being fetched. On the wire 100, over HTTP 503:
    /// try again soon.
    #[error("the token's key is not known yet")]
    KeyPending,
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
