//! The secrets of links and sessions: 256 bits that mean nothing by themselves. Only their hashes
//! are kept, and looking one up by its hash tells a guesser nothing about the others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::config::Secret;
use crate::store::sessions::SecretHash;

const BYTES: usize = 32;

/// What stands behind the `#` of a link, or in the cookie of a session. Does not print.
#[derive(Debug, Clone)]
pub struct SignInSecret(Secret);

impl SignInSecret {
    /// A new one, from the generator that the operating system seeds.
    pub fn generate() -> Self {
        Self(Secret::new(URL_SAFE_NO_PAD.encode(rand::random::<[u8; BYTES]>())))
    }

    /// `None` if `text` cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        (bytes.len() == BYTES).then(|| Self(Secret::new(text)))
    }

    /// The text, for the link or the cookie.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// What the store knows of it.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.expose()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_is_another_one_and_reads_back() {
        let (one, other) = (SignInSecret::generate(), SignInSecret::generate());
        assert_ne!(one.hash(), other.hash());
        let read = SignInSecret::parse(one.expose()).expect("its own text");
        assert_eq!(read.hash(), one.hash());
        assert_eq!(format!("{one:?}"), "SignInSecret([secret])");
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_unseen() {
        let good = "A".repeat(43);
        assert!(SignInSecret::parse(&good).is_some());
        for bad in ["", "x", &good[1..], &format!("{good}A"), &format!("{good}="), &"é".repeat(43)] {
            assert!(SignInSecret::parse(bad).is_none(), "{bad}");
        }
    }
}
