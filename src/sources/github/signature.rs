//! `X-Hub-Signature-256`: HMAC-SHA256 of the raw body under a shared secret. The header is
//! checked for form before the body is read, the body is hashed while it is read, and the
//! comparison takes the same time wherever the first difference lies. SHA-1 is never accepted.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

/// What the header's value begins with.
const PREFIX: &str = "sha256=";

/// The digest that a delivery claims for its body: well-formed, not yet found right.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedMac([u8; 32]);

/// The header's value is not `sha256=` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is malformed: it is `sha256=` and 64 hexadecimal digits")]
pub struct MalformedSignature;

/// The secrets that may have signed a delivery. While one is being rotated there are two.
/// Holds keyed hashes instead of the secrets themselves, so it has nothing to print.
#[derive(Clone, Default)]
pub struct WebhookSecrets(Vec<Hmac<Sha256>>);

/// Hashes one body under every secret, chunk by chunk.
#[derive(Clone)]
pub struct BodyHasher {
    expected: ExpectedMac,
    macs: Vec<Hmac<Sha256>>,
}

impl ExpectedMac {
    /// Reads the value of `X-Hub-Signature-256`.
    pub fn parse(header: &str) -> Result<Self, MalformedSignature> {
        let digits = header.strip_prefix(PREFIX).ok_or(MalformedSignature)?;
        let mut mac = [0; 32];
        // Also refuses any other length.
        hex::decode_to_slice(digits, &mut mac).map_err(|_| MalformedSignature)?;
        Ok(Self(mac))
    }
}

impl WebhookSecrets {
    /// Takes the secrets. Empty ones are dropped, because anybody could sign with them;
    /// without any secret no signature is right.
    pub fn new<S: AsRef<[u8]>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let usable = secrets.into_iter().filter(|secret| !secret.as_ref().is_empty());
        Self(usable.filter_map(|secret| keyed(secret.as_ref())).collect())
    }

    /// Whether there is no secret at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Starts on a body that claims `expected`.
    pub fn hasher(&self, expected: ExpectedMac) -> BodyHasher {
        BodyHasher { expected, macs: self.0.clone() }
    }
}

impl BodyHasher {
    /// Takes the next bytes of the body.
    pub fn update(&mut self, chunk: &[u8]) {
        for mac in &mut self.macs {
            mac.update(chunk);
        }
    }

    /// Whether one of the secrets signed exactly these bytes. Looks at every secret, so that
    /// the time taken does not tell which one it was.
    #[must_use]
    pub fn matches(self) -> bool {
        let expected = self.expected.0;
        let compare = |mac: Hmac<Sha256>| mac.finalize().into_bytes().as_slice().ct_eq(&expected);
        self.macs.into_iter().map(compare).fold(Choice::from(0), |any, one| any | one).into()
    }
}

/// The header's value for `body`, for those who send deliveries.
pub fn sign(secret: &[u8], body: &[u8]) -> String {
    let digest = keyed(secret).map(|mac| mac.chain_update(body).finalize().into_bytes());
    format!("{PREFIX}{}", digest.map(hex::encode).unwrap_or_default())
}

/// HMAC takes a key of any length, so this is always `Some`.
fn keyed(secret: &[u8]) -> Option<Hmac<Sha256>> {
    Hmac::new_from_slice(secret).ok()
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSecrets({})", self.0.len())
    }
}

impl fmt::Debug for BodyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyHasher")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The example in GitHub's documentation, "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const HEADER: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn verify(secrets: &[&str], header: &str, body: &[u8]) -> bool {
        let mut hasher = WebhookSecrets::new(secrets).hasher(ExpectedMac::parse(header).unwrap());
        hasher.update(body);
        hasher.matches()
    }

    #[test]
    fn githubs_own_example_matches() {
        assert!(verify(&[SECRET], HEADER, BODY));
        assert_eq!(sign(SECRET.as_bytes(), BODY), HEADER);
        assert!(verify(&[SECRET], &HEADER.to_uppercase().replace("SHA", "sha"), BODY));
    }

    #[test]
    fn while_a_secret_is_rotated_both_are_right() {
        assert!(verify(&["new", SECRET], HEADER, BODY));
        assert!(verify(&[SECRET, "new"], HEADER, BODY));
        assert!(!verify(&["new", "newer"], HEADER, BODY));
    }

    #[test]
    fn another_body_or_secret_is_wrong() {
        assert!(!verify(&[SECRET], HEADER, b"Hello, World?"));
        assert!(!verify(&[SECRET], HEADER, b""));
        assert!(!verify(&[], HEADER, BODY));
        assert!(!verify(&[""], &sign(b"", BODY), BODY), "an empty secret is no secret");
        let last = format!("{}8", &HEADER[..HEADER.len() - 1]);
        assert!(!verify(&[SECRET], &last, BODY));
    }

    #[test]
    fn a_malformed_header_is_refused_before_the_body() {
        let sha1 = "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59";
        let (short, long) = (&HEADER[..HEADER.len() - 2], format!("{HEADER}00"));
        let no_hex = HEADER.replace('7', "g");
        let space = format!("{HEADER} ");
        let bare = &HEADER[PREFIX.len()..];
        for bad in ["", "sha256=", sha1, short, &long, &no_hex, &space, bare, "sha256=é"] {
            assert_eq!(ExpectedMac::parse(bad).unwrap_err(), MalformedSignature, "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secrets = WebhookSecrets::new([SECRET]);
        assert_eq!(format!("{secrets:?}"), "WebhookSecrets(1)");
        assert!(!secrets.is_empty() && WebhookSecrets::new([""]).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn chunks_do_not_matter(body: Vec<u8>, cuts: Vec<proptest::sample::Index>, secret in "[ -~]{1,80}") {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let expected = ExpectedMac::parse(&sign(secret.as_bytes(), &body)).unwrap();
            let mut hasher = WebhookSecrets::new(["other", &secret]).hasher(expected);
            for pair in cuts.windows(2) {
                hasher.update(&body[pair[0]..pair[1]]);
            }
            prop_assert!(hasher.matches());
        }
    }
}
