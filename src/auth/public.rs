//! Public keys, from what people and servers write them in: PEM and JSON Web Key Sets (RFC 7517).
//! A key that comes out of here can be used: it is of the size and on the curve that its
//! algorithms ask for. What cannot verify a token for us is left out of a set and counted; secrets
//! never come from a set.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk as Parameters};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::keys::{Key, algorithm};

/// The largest key set that is read, in bytes.
pub const MAX_KEY_SET: usize = 64 * 1024;
/// The most keys of a set. A token without a name may be tried against each of its family.
const MAX_KEYS: usize = 64;
/// Bits of an RSA modulus: what RFC 7518 asks for, and what one verification may cost.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The kind of a public key; each serves algorithms of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RS256, RS384 and RS512.
    Rsa,
    /// ES256 by a key on P-256, ES384 by one on P-384.
    Ecdsa,
    Ed25519,
}

/// Why a text is no public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not even PEM.
    #[error("this is not PEM")]
    NotPem,
    /// What signs tokens must not lie where they are verified.
    #[error(
        "this is a private key: configure the public key, and keep the private one where tokens are signed"
    )]
    Private,
    /// A certificate, a request for one, parameters.
    #[error("this is PEM, but not a public key")]
    NotPublic,
    /// Damaged, or of another algorithm.
    #[error("this is not a key of this kind, or it is damaged")]
    OtherKind,
    /// Neither P-256 nor P-384.
    #[error("the key is on an unsupported curve: use P-256 or P-384")]
    Curve,
    /// Too weak, or so long that verifying is a burden.
    #[error("the key has fewer than 2048 or more than 4096 bits")]
    Size,
}

/// Why a text is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// See [`MAX_KEY_SET`].
    #[error("the key set is larger than 64 KiB")]
    TooLarge,
    /// Not an object with a list `keys`.
    #[error("this is not a JSON Web Key Set")]
    NotASet,
    /// More than anybody rotates through.
    #[error("the key set has more than 64 keys")]
    TooMany,
    /// Nothing in it verifies tokens for us.
    #[error("the key set has no public key for RS256, RS384, RS512, ES256, ES384 or EdDSA")]
    Empty,
}

#[derive(Debug, Clone, Default)]
pub struct KeySet {
    pub(super) keys: Vec<Key>,
    skipped: usize,
}

impl KeySet {
    /// The keys of this kind in PEM: one, or several one after the other during a rotation.
    pub fn from_pem(kind: KeyKind, pem: &str) -> Result<Self, BadKey> {
        let starts: Vec<usize> = pem.match_indices("-----BEGIN ").map(|(at, _)| at).collect();
        if starts.is_empty() || !pem[..starts[0]].trim().is_empty() {
            return Err(BadKey::NotPem);
        }
        let ends = starts.iter().skip(1).copied().chain([pem.len()]);
        let keys = starts.iter().zip(ends).map(|(start, end)| pem_key(kind, &pem[*start..end]));
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, skipped: 0 })
    }

    /// The usable keys of a JSON Web Key Set; at least one.
    pub fn from_json(json: &[u8]) -> Result<Self, BadKeySet> {
        if json.len() > MAX_KEY_SET {
            return Err(BadKeySet::TooLarge);
        }
        let set: Set<'_> = serde_json::from_slice(json).map_err(|_| BadKeySet::NotASet)?;
        if set.keys.len() > MAX_KEYS {
            return Err(BadKeySet::TooMany);
        }
        let all = set.keys.len();
        let keys = set.keys.into_iter().filter_map(|raw| serde_json::from_str(raw.get()).ok());
        let keys: Vec<Key> = keys.filter_map(|jwk: Jwk| jwk.into_key()).collect();
        if keys.is_empty() {
            return Err(BadKeySet::Empty);
        }
        Ok(Self { skipped: all - keys.len(), keys })
    }

    /// How many keys these are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys of the set could not be used.
    pub fn skipped(&self) -> usize {
        self.skipped
    }
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// A key as RFC 7517 and RFC 8037 write it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part, which should not be here.
    d: Option<IgnoredAny>,
}

impl Jwk {
    /// `None` if it is not made for verifying, or not for an algorithm of ours.
    fn into_key(self) -> Option<Key> {
        let verifies = self.purpose.is_none_or(|purpose| purpose == "sig")
            && self.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        if !verifies || self.d.is_some() {
            return None;
        }
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => rsa(&self.n?, &self.e?),
            ("EC", Some(curve)) => ec(curve, &self.x?, &self.y?),
            ("OKP", Some("Ed25519")) => ed(&self.x?),
            _ => return None,
        };
        let key = Key { id: self.kid.map(Into::into), ..key.ok()? };
        let Some(name) = self.alg else { return Some(key) };
        let only = algorithm(&name)?;
        let fits = key.key.family() == only.family() && key.only.is_none_or(|known| known == only);
        fits.then_some(Key { only: Some(only), ..key })
    }
}

/// The one key in `pem`.
fn pem_key(kind: KeyKind, pem: &str) -> Result<Key, BadKey> {
    let label = pem.lines().next().unwrap_or_default().trim_end();
    match label {
        "-----BEGIN PUBLIC KEY-----" | "-----BEGIN RSA PUBLIC KEY-----" => {}
        _ if label.contains("PRIVATE KEY") => return Err(BadKey::Private),
        _ => return Err(BadKey::NotPublic),
    }
    let key = match kind {
        KeyKind::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
        KeyKind::Ecdsa => DecodingKey::from_ec_pem(pem.as_bytes()),
        KeyKind::Ed25519 => DecodingKey::from_ed_pem(pem.as_bytes()),
    };
    let key = key.map_err(|_| BadKey::OtherKind)?;
    let undone = if kind == KeyKind::Ecdsa { BadKey::Curve } else { BadKey::OtherKind };
    match Parameters::from_decoding_key(&key, None).map_err(|_| undone)?.algorithm {
        AlgorithmParameters::RSA(key) => rsa(&key.n, &key.e),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => ec("P-256", &key.x, &key.y),
            EllipticCurve::P384 => ec("P-384", &key.x, &key.y),
            _ => Err(BadKey::Curve),
        },
        AlgorithmParameters::OctetKeyPair(key) => ed(&key.x),
        _ => Err(BadKey::OtherKind),
    }
}

fn rsa(modulus: &str, exponent: &str) -> Result<Key, BadKey> {
    let (n, e) = (number(modulus)?, number(exponent)?);
    let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(BadKey::Size);
    }
    let odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    // The power of 1 would make every number its own signature.
    if !odd(&n) || !odd(&e) || e == [1] || e.len() > 4 {
        return Err(BadKey::OtherKind);
    }
    Ok(Key { key: DecodingKey::from_rsa_raw_components(&n, &e), id: None, only: None })
}

fn ec(curve: &str, x: &str, y: &str) -> Result<Key, BadKey> {
    let (algorithm, size) = match curve {
        "P-256" => (Algorithm::ES256, 32),
        "P-384" => (Algorithm::ES384, 48),
        _ => return Err(BadKey::Curve),
    };
    if bytes(x)?.len() != size || bytes(y)?.len() != size {
        return Err(BadKey::OtherKind);
    }
    let key = DecodingKey::from_ec_components(x, y).map_err(|_| BadKey::OtherKind)?;
    checked(key, algorithm)
}

fn ed(x: &str) -> Result<Key, BadKey> {
    // The library cuts a shorter one out of what is not there.
    if bytes(x)?.len() != 32 {
        return Err(BadKey::OtherKind);
    }
    let key = DecodingKey::from_ed_components(x).map_err(|_| BadKey::OtherKind)?;
    checked(key, Algorithm::EdDSA)
}

/// The key for this one algorithm, if it is a point on the curve: only then a verifier can be made.
fn checked(key: DecodingKey, algorithm: Algorithm) -> Result<Key, BadKey> {
    crypto::verify("", b"", &key, algorithm).map_err(|_| BadKey::OtherKind)?;
    Ok(Key { key, id: None, only: Some(algorithm) })
}

fn bytes(text: &str) -> Result<Vec<u8>, BadKey> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| BadKey::OtherKind)
}

/// The bytes of a number, the highest first and none of them a leading zero.
fn number(text: &str) -> Result<Vec<u8>, BadKey> {
    let bytes = bytes(text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}
