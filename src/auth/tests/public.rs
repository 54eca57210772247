//! Public keys: each verifies its own algorithms and nothing else, from PEM as from a key set.

use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pairs::{ED, P256, P384, Pair, RSA, openssl, set_of};
use super::*;

const CLAIMS: &str = r#"{"sub":"42","channel":"news"}"#;

/// A token that `key` signs by `algorithm`, whatever its header says.
fn signed(header: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    with_claims(header, CLAIMS, key, algorithm)
}

fn with_claims(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

fn kind_of(pair: &Pair) -> KeyKind {
    match pair.algorithms[0].1 {
        Algorithm::EdDSA => KeyKind::Ed25519,
        Algorithm::ES256 | Algorithm::ES384 => KeyKind::Ecdsa,
        _ => KeyKind::Rsa,
    }
}

/// A pair of the same kind that nobody knows.
fn another(pair: &Pair) -> Pair {
    match pair.algorithms[0].1 {
        Algorithm::EdDSA => Pair::new(&["-algorithm", "ed25519"]),
        Algorithm::ES256 => Pair::on("P-256"),
        Algorithm::ES384 => Pair::on("P-384"),
        _ => Pair::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    }
}

fn no_keys() -> Keys {
    Keys::hmac([""; 0], None, None)
}

fn by_pem(pair: &Pair) -> Keys {
    no_keys().with(KeySet::from_pem(kind_of(pair), &pair.public).expect("a public key"))
}

fn by_set(keys: &[Value]) -> Keys {
    no_keys().with(KeySet::from_json(&set_of(keys)).expect("a key set"))
}

/// Whether the signature of a token is right.
fn admits(keys: &Keys, token: &str) -> bool {
    let grant = KeyRing::from(keys.clone()).subscription(token, at(NOW));
    assert!(grant.is_ok() || grant == Err(TokenError::Invalid), "{grant:?}");
    grant.is_ok()
}

#[test]
fn a_key_verifies_its_algorithms_for_both_kinds_of_token() {
    for pair in Pair::all() {
        for keys in [by_pem(pair), by_set(&[pair.jwk(json!({}))])] {
            for (name, algorithm) in pair.algorithms {
                let header = format!(r#"{{"alg":"{name}"}}"#);
                assert!(admits(&keys, &signed(&header, &pair.signer(), *algorithm)), "{name}");
                let token = with_claims(&header, r#"{"sub":"42"}"#, &pair.signer(), *algorithm);
                assert_eq!(keys.authenticate(&token, at(NOW)).expect(name).user, "42");
                let forged = signed(&header, &another(pair).signer(), *algorithm);
                assert!(!admits(&keys, &forged), "{name} forged");
            }
        }
    }
}

#[test]
fn no_key_serves_another_algorithm_than_its_own() {
    let all = Pair::all().into_iter().fold(no_keys(), |keys, pair| {
        keys.with(KeySet::from_pem(kind_of(pair), &pair.public).expect("a public key"))
    });
    let names = ["none", "None", "", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384"];
    let names =
        names.into_iter().chain(["PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "Ed25519", "rs256"]);
    for said in names {
        let header = format!(r#"{{"alg":"{said}"}}"#);
        for pair in Pair::all() {
            // Signing by RSA takes long: by each of its three where it matters.
            let by = if said.starts_with("RS") { pair.algorithms } else { &pair.algorithms[..1] };
            for (name, algorithm) in by {
                let token = signed(&header, &pair.signer(), *algorithm);
                assert_eq!(admits(&all, &token), said == *name, "{said}, signed by {name}");
            }
            // What everybody knows is no secret.
            let jwk = pair.jwk(json!({}));
            let body: String = pair.public.lines().filter(|line| !line.starts_with('-')).collect();
            let der = STANDARD.decode(body).expect("base64");
            let (pem, json) = (pair.public.as_bytes(), jwk.to_string());
            for secret in [pem, pem.trim_ascii_end(), json.as_bytes(), &der] {
                let secret = EncodingKey::from_secret(secret);
                for size in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                    assert!(!admits(&all, &signed(&header, &secret, size)), "{said} by a public key");
                    assert!(!admits(&by_set(std::slice::from_ref(&jwk)), &signed(&header, &secret, size)));
                }
            }
        }
        for signature in ["", "AA", "AAAA"] {
            let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(&header), URL_SAFE_NO_PAD.encode(CLAIMS));
            assert!(!admits(&all, &format!("{message}.{signature}")), "{said} unsigned");
        }
    }
    let by_pss = signed(r#"{"alg":"PS256"}"#, &RSA.signer(), Algorithm::PS256);
    assert!(!admits(&all, &by_pss), "PS256 is none of ours");
}

#[test]
fn what_is_no_public_key_of_its_kind_is_refused_with_the_reason() {
    let small = Pair::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let pkcs1 = openssl(&["rsa", "-traditional"], &RSA.private);
    let public_pkcs1 = openssl(&["rsa", "-pubin", "-RSAPublicKey_out"], &RSA.public);
    let cut = RSA.public.replacen("MII", "MIA", 1);
    let certificate = RSA.public.replace("PUBLIC KEY", "CERTIFICATE");
    let table: &[(KeyKind, &str, BadKey)] = &[
        (KeyKind::Rsa, "", BadKey::NotPem),
        (KeyKind::Rsa, "ssh-ed25519 AAAA", BadKey::NotPem),
        (KeyKind::Rsa, &format!("x\n{}", RSA.public), BadKey::NotPem),
        (KeyKind::Rsa, &RSA.private, BadKey::Private),
        (KeyKind::Rsa, &pkcs1, BadKey::Private),
        (KeyKind::Ecdsa, &P256.private, BadKey::Private),
        (KeyKind::Ed25519, &ED.private, BadKey::Private),
        (KeyKind::Rsa, &format!("{}{}", RSA.public, RSA.private), BadKey::Private),
        (KeyKind::Rsa, &certificate, BadKey::NotPublic),
        (KeyKind::Rsa, &cut, BadKey::OtherKind),
        (KeyKind::Rsa, &P256.public, BadKey::OtherKind),
        (KeyKind::Rsa, &ED.public, BadKey::OtherKind),
        (KeyKind::Ecdsa, &RSA.public, BadKey::OtherKind),
        (KeyKind::Ecdsa, &ED.public, BadKey::OtherKind),
        (KeyKind::Ed25519, &RSA.public, BadKey::OtherKind),
        (KeyKind::Ed25519, &P384.public, BadKey::OtherKind),
        (KeyKind::Ecdsa, &Pair::on("P-521").public, BadKey::Curve),
        (KeyKind::Ecdsa, &Pair::on("secp256k1").public, BadKey::OtherKind),
        (KeyKind::Rsa, &small.public, BadKey::Size),
    ];
    for (kind, pem, wrong) in table {
        assert_eq!(KeySet::from_pem(*kind, pem).err(), Some(*wrong), "{kind:?}\n{pem}");
    }
    assert_eq!(KeySet::from_pem(KeyKind::Rsa, &public_pkcs1).expect("PKCS #1").len(), 1);
    let both = format!("\n{}\n{}", P256.public, P384.public);
    assert_eq!(KeySet::from_pem(KeyKind::Ecdsa, &both).expect("two keys").len(), 2);
}

#[test]
fn a_key_of_a_set_is_what_it_says_and_nothing_else() {
    let token = |pair: &Pair, at: usize, kid: &str| {
        let (name, algorithm) = pair.algorithms[at];
        let kid = if kid.is_empty() { String::new() } else { format!(r#","kid":"{kid}""#) };
        signed(&format!(r#"{{"alg":"{name}"{kid}}}"#), &pair.signer(), algorithm)
    };
    let one = by_set(&[RSA.jwk(json!({ "kid": "a", "use": "sig", "alg": "RS384" }))]);
    assert!(admits(&one, &token(&RSA, 1, "a")) && admits(&one, &token(&RSA, 1, "")));
    assert!(!admits(&one, &token(&RSA, 0, "a")), "another algorithm than `alg`");
    assert!(!admits(&one, &token(&RSA, 1, "b")), "another name");
    let nameless = by_set(&[P256.jwk(json!({}))]);
    assert!(admits(&nameless, &token(&P256, 0, "whatever")));

    let other = Pair::on("P-256");
    let twins = by_set(&[
        P256.jwk(json!({ "kid": "a" })),
        Pair { algorithms: P256.algorithms, ..other }.jwk(json!({ "kid": "b" })),
    ]);
    assert!(admits(&twins, &token(&P256, 0, "a")) && !admits(&twins, &token(&P256, 0, "b")));

    let small = Pair::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    let small = Pair { algorithms: RSA.algorithms, ..small };
    let unusable = [
        json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "kid": "a", "alg": "HS256" }),
        json!({ "kty": "RSA" }),
        json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AA" }),
        json!("key"),
        RSA.jwk(json!({ "use": "enc" })),
        RSA.jwk(json!({ "key_ops": ["encrypt"] })),
        RSA.jwk(json!({ "alg": "HS256" })),
        RSA.jwk(json!({ "alg": "PS256" })),
        RSA.jwk(json!({ "alg": "RSA-OAEP" })),
        RSA.jwk(json!({ "alg": "none" })),
        RSA.jwk(json!({ "kty": "EC" })),
        RSA.jwk(json!({ "d": "AQAB" })),
        RSA.jwk(json!({ "e": "AQ" })),
        RSA.jwk(json!({ "e": "Ag" })),
        RSA.jwk(json!({ "n": "AQAB" })),
        RSA.jwk(json!({ "kid": 7 })),
        small.jwk(json!({})),
        P256.jwk(json!({ "crv": "P-384" })),
        P256.jwk(json!({ "alg": "ES384" })),
        P256.jwk(json!({ "x": P256.jwk(json!({}))["y"] })),
        P256.jwk(json!({ "x": "AQAB" })),
        ED.jwk(json!({ "x": "AQAB" })),
        ED.jwk(json!({ "crv": "Ed448" })),
        ED.jwk(json!({ "alg": "ES256" })),
    ];
    for key in &unusable {
        assert_eq!(
            KeySet::from_json(&set_of(std::slice::from_ref(key))).err(),
            Some(BadKeySet::Empty),
            "{key}"
        );
    }
    let mut all = unusable.to_vec();
    all.push(ED.jwk(json!({ "key_ops": ["verify"], "alg": "EdDSA" })));
    let set = KeySet::from_json(&set_of(&all)).expect("one is good");
    assert_eq!((set.len(), set.skipped()), (1, unusable.len()));
    let keys = no_keys().with(set);
    assert!(admits(&keys, &token(&ED, 0, "")));
    let by_oct = signed(
        r#"{"alg":"HS256","kid":"a"}"#,
        &EncodingKey::from_secret(SECRET.as_bytes()),
        Algorithm::HS256,
    );
    assert!(!admits(&keys, &by_oct), "a set brings no shared secret");
}

#[test]
fn what_is_no_key_set_is_refused() {
    let many = vec![ED.jwk(json!({})); 65];
    let large = set_of(&[json!("x".repeat(MAX_KEY_SET))]);
    let bad: [(&[u8], BadKeySet); 8] = [
        (b"", BadKeySet::NotASet),
        (b"[]", BadKeySet::NotASet),
        (b"{}", BadKeySet::NotASet),
        (b"<html>", BadKeySet::NotASet),
        (br#"{"keys":{}}"#, BadKeySet::NotASet),
        (br#"{"keys":[]}"#, BadKeySet::Empty),
        (&set_of(&many), BadKeySet::TooMany),
        (&large, BadKeySet::TooLarge),
    ];
    for (json, wrong) in bad {
        assert_eq!(KeySet::from_json(json).err(), Some(wrong));
    }
    assert_eq!(KeySet::from_json(&set_of(&many[..64])).expect("64 keys").len(), 64);
}

#[test]
fn an_unknown_key_is_awaited_as_long_as_it_may_turn_up() {
    use Fetching::{Cooldown, Failed, Off, Ready, UnderWay};
    use TokenError::{Invalid, KeyPending};
    let named =
        |kid: &str| signed(&format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#), &ED.signer(), Algorithm::EdDSA);
    let nameless = signed(r#"{"alg":"EdDSA"}"#, &ED.signer(), Algorithm::EdDSA);
    let ring = KeyRing::from(by_set(&[P256.jwk(json!({ "kid": "file" }))]));
    let read = |token: &str| ring.subscription(token, at(NOW)).map(|grant| grant.user);
    for (state, expected) in
        [(Off, Invalid), (UnderWay, KeyPending), (Cooldown, KeyPending), (Failed, KeyPending)]
    {
        ring.set_fetching(state);
        for token in [&named("new"), &nameless] {
            assert_eq!(read(token), Err(expected), "{state:?}");
        }
        // What no fetch can mend stays invalid.
        let secret = EncodingKey::from_secret(b"x");
        let known = signed(r#"{"alg":"ES256","kid":"file"}"#, &Pair::on("P-256").signer(), Algorithm::ES256);
        let shared = signed(r#"{"alg":"HS256","kid":"new"}"#, &secret, Algorithm::HS256);
        let none = signed(r#"{"alg":"none","kid":"new"}"#, &secret, Algorithm::HS256);
        for token in [known, shared, none, named("new") + "=", "a.b.c".to_owned()] {
            let expected = if token.ends_with('=') { expected } else { Invalid };
            assert_eq!(read(&token), Err(expected), "{state:?}");
        }
    }
    ring.set_fetching(Ready);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    assert_eq!(read(&named("new")), Err(KeyPending));
    runtime.block_on(ring.fetch_requested());
    assert_eq!(read(&named("new")), Err(KeyPending), "the fetch is under way");
    ring.set_fetched(Some(KeySet::from_json(&set_of(&[ED.jwk(json!({ "kid": "new" }))])).expect("a set")));
    ring.set_fetching(Cooldown);
    assert_eq!(read(&named("new")), Ok("42".to_owned()));
    assert_eq!(read(&nameless), Ok("42".to_owned()));
    assert_eq!(read(&named("old")), Err(KeyPending));
    let known = || {
        let token = with_claims(r#"{"alg":"EdDSA"}"#, r#"{"sub":"42"}"#, &ED.signer(), Algorithm::EdDSA);
        ring.authenticate_cached(&token, at(NOW)).map(|who| who.user.clone())
    };
    assert_eq!([known(), known()], [Ok("42".to_owned()), Ok("42".to_owned())]);
    ring.set_fetched(None);
    ring.set_fetching(Off);
    assert_eq!(read(&named("new")), Err(Invalid));
    assert_eq!(known(), Err(Invalid), "what an issuer has taken back is not known any more");
    ring.replace(by_pem(&ED));
    assert_eq!(read(&named("new")), Ok("42".to_owned()));
}

#[test]
fn a_token_is_refused_for_good_only_by_a_set_that_was_fetched_after_it_was_shown() {
    use TokenError::{Invalid, KeyPending};
    let token = |kid: &str, claims: &str| {
        with_claims(&format!(r#"{{"alg":"EdDSA"{kid}}}"#), claims, &ED.signer(), Algorithm::EdDSA)
    };
    let ring = KeyRing::from(no_keys());
    let read = |token: &str| ring.authenticate(token, at(NOW)).map(|who| who.user);
    let other_set = || KeySet::from_json(&set_of(&[P256.jwk(json!({ "kid": "a" }))])).expect("a set");
    let fetched = || {
        ring.set_fetched(Some(other_set()));
        ring.count_fetch();
        ring.set_fetching(Fetching::Cooldown);
    };
    fetched();
    // The same key under a name that the set does not have, and without a name.
    for kid in [r#","kid":"new""#, ""] {
        let (first, later) = (token(kid, r#"{"sub":"ana"}"#), token(kid, r#"{"sub":"ben"}"#));
        assert_eq!(read(&first), Err(KeyPending), "the key may be newer than the set");
        fetched();
        assert_eq!(read(&first), Err(KeyPending), "this fetch may have begun before it was shown");
        assert_eq!(read(&later), Err(KeyPending));
        fetched();
        assert_eq!((read(&first), read(&later)), (Err(Invalid), Err(KeyPending)));
        ring.set_fetching(Fetching::Ready);
        assert_eq!(read(&first), Err(KeyPending), "it is looked for again");
    }
}

#[test]
fn public_keys_do_not_print() {
    let text = format!("{:?}", by_pem(&RSA));
    assert!(!text.contains("RsaModulusExponent { n: [") && text.contains("redacted"), "{text}");
}
