//! The keys that tokens are verified with, as the configuration has them: the shared secret, the
//! public keys in PEM, the key set in a file. The file is read here, and read again on a reload.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::error::{ConfigError, Problem};
use super::values::{JwksUrl, Secret};
use super::{Config, TokenConfig};
use crate::auth::{BadKey, KeyKind, KeySet, Keys, MAX_KEY_SET};

const FILE: &str = "client.token.jwks_file";

impl TokenConfig {
    /// The options that hold public keys in PEM.
    fn in_pem(&self) -> impl Iterator<Item = (&'static str, KeyKind, &str)> {
        let options = [
            ("client.token.rsa_public_key", KeyKind::Rsa, &self.rsa_public_key),
            ("client.token.ecdsa_public_key", KeyKind::Ecdsa, &self.ecdsa_public_key),
            ("client.token.ed25519_public_key", KeyKind::Ed25519, &self.ed25519_public_key),
        ];
        options.into_iter().filter_map(|(option, kind, pem)| Some((option, kind, pem.as_deref()?)))
    }
}

impl Config {
    /// The keys that tokens are verified with, beside those of `client.token.jwks_public_endpoint`:
    /// `secret`, and what the options of `client.token` hold or name.
    pub fn token_keys(&self, secret: Option<&Secret>) -> Result<Keys, ConfigError> {
        let token = &self.client.token;
        let (audience, issuer) = (token.audience.clone(), token.issuer.clone());
        let mut keys = Keys::hmac(secret.map(Secret::expose), audience, issuer).with_leeway(token.leeway.0);
        for (option, kind, pem) in token.in_pem() {
            keys = keys.with(KeySet::from_pem(kind, pem).map_err(|bad| self.bad_pem(option, bad))?);
        }
        if let Some(path) = &token.jwks_file {
            keys = keys.with(self.key_set_in(path)?);
        }
        Ok(keys)
    }

    /// Where a key set is fetched from.
    pub fn jwks_endpoint(&self) -> Option<&JwksUrl> {
        self.client.token.jwks_public_endpoint.as_ref()
    }

    /// The problems of the public keys in PEM.
    pub(super) fn bad_pems(&self) -> impl Iterator<Item = Problem> {
        self.client.token.in_pem().filter_map(|(option, kind, pem)| {
            KeySet::from_pem(kind, pem).err().map(|bad| self.bad_pem(option, bad))
        })
    }

    /// Does not repeat the text: it may be a private key.
    fn bad_pem(&self, option: &str, bad: BadKey) -> Problem {
        let remedy = "write the public key as PEM, what `openssl pkey -in KEY.pem -pubout` prints";
        Problem::new(self.source(option), option, bad.to_string(), remedy)
    }

    fn key_set_in(&self, path: &Path) -> Result<KeySet, ConfigError> {
        let problem = |wrong: String, remedy: &str| {
            let wrong = format!("{}: {wrong}", path.display());
            ConfigError::from(Problem::new(self.source(FILE), FILE, wrong, remedy))
        };
        let json = read(path).map_err(|error| {
            problem(format!("the key set cannot be read: {error}"), "name a file that this user may read")
        })?;
        let set = KeySet::from_json(&json).map_err(|bad| {
            problem(bad.to_string(), "write {\"keys\":[…]} with public keys, as RFC 7517 has it")
        })?;
        if set.skipped() > 0 {
            tracing::warn!(
                option = FILE,
                skipped = set.skipped(),
                "some keys of the set cannot verify tokens: unsupported use, algorithm or size, or private keys"
            );
        }
        Ok(set)
    }
}

/// The file, up to one byte more than a key set may have.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_KEY_SET as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
