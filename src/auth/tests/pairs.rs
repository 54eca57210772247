//! Key pairs, made anew by `openssl` in each run: none lies around, and none is made by the library
//! that is tested.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

pub(super) struct Pair {
    /// PKCS #8 in PEM.
    pub(super) private: String,
    pub(super) public: String,
    pub(super) algorithms: &'static [(&'static str, Algorithm)],
}

type Lazy = LazyLock<Pair>;

pub(super) static RSA: Lazy = LazyLock::new(|| Pair {
    algorithms: &[("RS256", Algorithm::RS256), ("RS384", Algorithm::RS384), ("RS512", Algorithm::RS512)],
    ..Pair::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
});
pub(super) static P256: Lazy =
    LazyLock::new(|| Pair { algorithms: &[("ES256", Algorithm::ES256)], ..Pair::on("P-256") });
pub(super) static P384: Lazy =
    LazyLock::new(|| Pair { algorithms: &[("ES384", Algorithm::ES384)], ..Pair::on("P-384") });
pub(super) static ED: Lazy = LazyLock::new(|| Pair {
    algorithms: &[("EdDSA", Algorithm::EdDSA)],
    ..Pair::new(&["-algorithm", "ed25519"])
});

impl Pair {
    pub(super) fn all() -> [&'static Self; 4] {
        [&*RSA, &*P256, &*P384, &*ED]
    }

    pub(super) fn new(args: &[&str]) -> Self {
        let private = openssl(&[&["genpkey"], args].concat(), "");
        let public = openssl(&["pkey", "-pubout"], &private);
        Self { private, public, algorithms: &[] }
    }

    /// On this curve.
    pub(super) fn on(curve: &str) -> Self {
        Self::new(&["-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")])
    }

    pub(super) fn signer(&self) -> EncodingKey {
        let pem = self.private.as_bytes();
        EncodingKey::from_rsa_pem(pem)
            .or_else(|_| EncodingKey::from_ec_pem(pem))
            .or_else(|_| EncodingKey::from_ed_pem(pem))
            .expect("a private key")
    }

    /// The public key as a JWK, changed by the fields of `more`.
    pub(super) fn jwk(&self, more: Value) -> Value {
        let jwk = Jwk::from_encoding_key(&self.signer(), self.algorithms[0].1).expect("a JWK");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["alg"].take();
        for (name, value) in more.as_object().expect("fields") {
            jwk[name] = value.clone();
        }
        jwk
    }
}

/// A key set as it stands in a file.
pub(super) fn set_of(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into()
}

pub(super) fn openssl(args: &[&str], input: &str) -> String {
    let mut command = Command::new("openssl");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl is installed");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "openssl {args:?}");
    String::from_utf8(output.stdout).expect("PEM is text")
}
