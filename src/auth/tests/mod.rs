//! Tokens, good and bad. Bad ones are made by hand: no library would sign them.

mod pairs;
mod public;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use proptest::prelude::*;

use super::*;
use crate::domain::access::Principal;
use crate::domain::access::Scopes;
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::principal::Rights;

const SECRET: &str = "a secret of the tests";
const NOW: i64 = 1_800_000_000;
const FUTURE: i64 = NOW + 60;

fn at(secs: i64) -> Time {
    Time::from_timestamp(secs, 0).expect("a time")
}

fn keys() -> Keys {
    Keys::hmac([SECRET], None, None)
}

/// `header.payload.signature`, signed by HMAC of the given size whatever the header says.
fn token_of(header: &str, claims: &str, secret: &str, size: Algorithm) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, size).expect("a signature");
    format!("{message}.{signature}")
}

fn token(claims: &str) -> String {
    token_of(r#"{"alg":"HS256","typ":"JWT"}"#, claims, SECRET, Algorithm::HS256)
}

fn forged(claims: &str) -> String {
    token_of(r#"{"alg":"HS256"}"#, claims, "another secret", Algorithm::HS256)
}

fn read(claims: &str) -> Result<Principal, TokenError> {
    keys().authenticate(&token(claims), at(NOW))
}

#[test]
fn a_token_that_is_known_is_judged_by_the_times_and_the_keys_of_now() {
    let ring = KeyRing::from(keys());
    let at_work = token(&format!(r#"{{"sub":"42","nbf":{NOW},"exp":{FUTURE},"expire_at":0}}"#));
    let first = ring.authenticate_cached(&at_work, at(NOW)).expect("it is good");
    let again = ring.authenticate_cached(&at_work, at(NOW)).expect("it is good");
    assert!(Arc::ptr_eq(&first, &again), "it is not verified twice");
    assert_eq!((first.user.as_str(), first.expires_at), ("42", None));
    for (when, error) in [(FUTURE, TokenError::Expired), (NOW - 1, TokenError::NotYetValid)] {
        assert_eq!(ring.authenticate_cached(&at_work, at(when)), Err(error));
        assert_eq!(ring.authenticate(&at_work, at(when)), Err(error));
    }
    for _ in 0..2 {
        assert_eq!(ring.authenticate_cached(&forged(r#"{"sub":"42"}"#), at(NOW)), Err(TokenError::Invalid));
    }
    ring.replace(Keys::hmac(["another secret"], None, None));
    assert_eq!(ring.authenticate_cached(&at_work, at(NOW)), Err(TokenError::Invalid));
    assert_eq!(
        ring.authenticate_cached(&forged(r#"{"sub":"7"}"#), at(NOW)).expect("its key is here").user,
        "7"
    );
}

#[test]
fn three_sizes_of_hmac_are_verified_each_by_its_own_name() {
    for (name, size) in
        [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
    {
        let good = token_of(&format!(r#"{{"alg":"{name}"}}"#), r#"{"sub":"42"}"#, SECRET, size);
        assert_eq!(keys().authenticate(&good, at(NOW)).expect(name).user, "42");
        let other = if name == "HS384" { "HS256" } else { "HS384" };
        let bad = token_of(&format!(r#"{{"alg":"{other}"}}"#), r#"{"sub":"42"}"#, SECRET, size);
        assert_eq!(keys().authenticate(&bad, at(NOW)), Err(TokenError::Invalid));
    }
}

#[test]
fn a_token_without_our_signature_is_invalid_whatever_else_it_is() {
    let claims = r#"{"sub":"42"}"#;
    let unsigned =
        |header: &str| format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut bad = vec![forged(claims), forged(r#"{"exp":1}"#), forged(r#"{"nbf":9999999999}"#)];
    bad.extend([r#"{"alg":"none"}"#, r#"{"alg":"None"}"#, r#"{"alg":""}"#, "{}", "[]", "x"].map(unsigned));
    for alg in
        ["none", "NONE", "hs256", "HS256 ", "HS1", "RS256", "PS256", "ES256", "ES384", "EdDSA", "ES512"]
    {
        let header = format!(r#"{{"alg":"{alg}"}}"#);
        bad.push(unsigned(&header));
        bad.push(token_of(&header, claims, SECRET, Algorithm::HS256));
    }
    bad.push(token_of(r#"{"alg":256}"#, claims, SECRET, Algorithm::HS256));
    bad.push(token_of(r#"{"alg":"HS256","crit":["x"],"x":1}"#, claims, SECRET, Algorithm::HS256));
    bad.push(token_of(r#"{"alg":"HS256","crit":null}"#, claims, SECRET, Algorithm::HS256));
    let good = token(claims);
    bad.extend([".", "..", "...", "a.b", "a.b.c", " ", "ä.ö.ü"].map(str::to_owned));
    bad.extend([format!("{good}="), format!("{good}."), format!(" {good}"), format!("{good}\n")]);
    bad.push(good.rsplit_once('.').expect("parts").0.to_owned());
    for token in bad {
        assert_eq!(keys().authenticate(&token, at(NOW)), Err(TokenError::Invalid), "{token}");
    }
    assert!(keys().authenticate(&good, at(NOW)).is_ok());
}

#[test]
fn the_header_s_other_fields_do_not_matter() {
    for header in
        [r#"{"typ":"at+jwt","alg":"HS256"}"#, r#"{"alg":"HS256","typ":7,"kid":"k","jku":"http://x"}"#]
    {
        assert!(keys().authenticate(&token_of(header, "{}", SECRET, Algorithm::HS256), at(NOW)).is_ok());
    }
}

#[test]
fn several_secrets_serve_a_rotation_and_an_empty_one_is_none() {
    let both = Keys::hmac(["new", SECRET], None, None);
    assert!(both.authenticate(&token("{}"), at(NOW)).is_ok());
    let by_nothing = token_of(r#"{"alg":"HS256"}"#, "{}", "", Algorithm::HS256);
    for keys in [Keys::hmac([""], None, None), Keys::hmac([""; 0], None, None), both] {
        assert_eq!(keys.authenticate(&by_nothing, at(NOW)), Err(TokenError::Invalid));
    }
}

#[test]
fn no_token_and_far_too_much_token_are_told_apart() {
    assert_eq!(keys().authenticate("", at(NOW)), Err(TokenError::Missing));
    let filler = |len: usize| token(&format!(r#"{{"sub":"42","info":"{}"}}"#, "x".repeat(len)));
    let large = filler(12_000);
    assert!(large.len() <= MAX_TOKEN && keys().authenticate(&large, at(NOW)).is_ok());
    let oversized = filler(12_400);
    assert!(oversized.len() > MAX_TOKEN);
    assert_eq!(keys().authenticate(&oversized, at(NOW)), Err(TokenError::Invalid));
}

#[test]
fn times_are_checked_to_the_second_and_no_claim_is_required() {
    use TokenError::{Claim, Expired, NotYetValid};
    let ends = |end| Ok(Some(at(end)));
    let table: &[(String, Result<Option<Time>, TokenError>)] = &[
        ("{}".into(), Ok(None)),
        (format!(r#"{{"exp":{FUTURE}}}"#), ends(FUTURE)),
        (format!(r#"{{"exp":{}}}"#, NOW + 1), ends(NOW + 1)),
        (format!(r#"{{"exp":{NOW}}}"#), Err(Expired)),
        (format!(r#"{{"exp":{}.9}}"#, NOW), Err(Expired)),
        (format!(r#"{{"exp":{FUTURE}.9}}"#), ends(FUTURE)),
        (format!(r#"{{"exp":{FUTURE}.0}}"#), ends(FUTURE)),
        (r#"{"exp":1.9e9}"#.into(), ends(1_900_000_000)),
        (r#"{"exp":0}"#.into(), Err(Expired)),
        (r#"{"exp":-1}"#.into(), Err(Expired)),
        (r#"{"exp":-1e300}"#.into(), Err(Expired)),
        (r#"{"exp":18446744073709551615}"#.into(), Ok(None)),
        (r#"{"exp":1e300}"#.into(), Ok(None)),
        (format!(r#"{{"nbf":{NOW}}}"#), Ok(None)),
        (format!(r#"{{"nbf":{}}}"#, NOW + 1), Err(NotYetValid)),
        (format!(r#"{{"nbf":{FUTURE},"exp":{NOW}}}"#), Err(Expired)),
        (format!(r#"{{"iat":{FUTURE}}}"#), Ok(None)),
        (format!(r#"{{"exp":{FUTURE},"expire_at":0}}"#), Ok(None)),
        (format!(r#"{{"exp":{NOW},"expire_at":0}}"#), Err(Expired)),
        (format!(r#"{{"exp":{NOW},"expire_at":{FUTURE}}}"#), Err(Expired)),
        (format!(r#"{{"exp":{FUTURE},"expire_at":{}}}"#, NOW + 5), ends(NOW + 5)),
        (format!(r#"{{"expire_at":{}}}"#, NOW + 5), ends(NOW + 5)),
        (format!(r#"{{"expire_at":{NOW}}}"#), Err(Expired)),
        (format!(r#"{{"channel":"x","exp":{NOW}}}"#), Err(Claim("channel"))),
        (format!(r#"{{"sub":7,"exp":{NOW}}}"#), Err(Claim("sub"))),
    ];
    for (claims, expected) in table {
        assert_eq!(read(claims).map(|who| who.expires_at), *expected, "{claims}");
    }
    let old = token(&format!(r#"{{"sub":"42","exp":1,"nbf":{FUTURE}}}"#));
    let who = KeyRing::from(keys()).authenticate_untimed(&old).expect("insecure reads old tokens");
    assert_eq!((who.user.as_str(), who.expires_at), ("42", None));
    assert_eq!(KeyRing::from(keys()).authenticate_untimed(&forged("{}")), Err(TokenError::Invalid));
}

#[test]
fn leeway_makes_a_token_valid_earlier_and_longer() {
    use TokenError::{Expired, NotYetValid};
    let late = KeyRing::from(keys().with_leeway(Duration::from_secs(30)));
    let read = |claims: String| late.authenticate(&token(&claims), at(NOW)).map(|who| who.expires_at);
    // It ends when its leeway does, so that a connection is not over as it begins.
    let ends = |end| Ok(Some(at(end)));
    assert_eq!(read(format!(r#"{{"exp":{}}}"#, NOW - 29)), ends(NOW + 1));
    assert_eq!(read(format!(r#"{{"exp":{}}}"#, NOW - 30)), Err(Expired));
    assert_eq!(read(format!(r#"{{"exp":{},"expire_at":{}}}"#, NOW - 9, NOW - 20)), ends(NOW + 10));
    assert_eq!(read(format!(r#"{{"exp":{},"expire_at":0}}"#, NOW - 9)), Ok(None));
    assert_eq!(read(format!(r#"{{"nbf":{}}}"#, NOW + 30)), Ok(None));
    assert_eq!(read(format!(r#"{{"nbf":{}}}"#, NOW + 31)), Err(NotYetValid));
    assert_eq!(read(r#"{"exp":-1e300,"nbf":-1e300}"#.to_owned()), Err(Expired));
    assert_eq!(read(r#"{"exp":18446744073709551615}"#.to_owned()), Ok(None));
    let cached = token(&format!(r#"{{"exp":{}}}"#, NOW - 29));
    assert!(late.authenticate_cached(&cached, at(NOW)).is_ok());
    assert_eq!(late.authenticate_cached(&cached, at(NOW + 1)), Err(Expired));
    let subscription = token(&format!(r#"{{"channel":"x","exp":{}}}"#, NOW - 29));
    assert!(late.subscription(&subscription, at(NOW)).is_ok());
}

#[test]
fn a_claim_of_the_wrong_type_makes_the_token_invalid_and_is_named() {
    let mut bad: Vec<String> =
        ["", "null", "[]", "7", "\"x\"", "{", "{}{}", "{'a':1}"].map(str::to_owned).into();
    bad.push(r#"["42"]"#.to_owned());
    bad.push(r#"{"sub":"42","sub":"43"}"#.to_owned());
    let wrong: &[(&str, &[&str])] = &[
        ("sub", &["42", "null", "true", r#"["42"]"#, "{}"]),
        ("exp", &[r#""9999999999""#, "null", "true", "[1]", "{}"]),
        ("nbf", &[r#""1""#, "null", "false", "[]"]),
        ("iat", &[r#""1""#, "null", "{}"]),
        ("expire_at", &[r#""0""#, "null", "false"]),
        ("aud", &["7", "{}", "[7]"]),
        ("iss", &["7", r#"["x"]"#]),
        ("jti", &["7", "{}"]),
        ("channel", &[r#""news""#, r#""""#, "null", "7"]),
        ("channels", &[r#""news""#, "[7]", "{}", r#"[""]"#, r#"["repo:acme"]"#, r#"["zoë"]"#]),
        ("subs", &[r#""news""#, r#"["news"]"#, r#"{"":{}}"#, r#"{"news":7}"#, r#"{"news":{"b64info":"?"}}"#]),
        ("orgs", &[r#""acme""#, "[7]", "{}", "[null]"]),
        ("repos", &[r#""acme/api""#, r#"[["acme"]]"#, "7"]),
        ("scope", &["7", "{}", "[7]", "true"]),
        ("caps", &["{}", r#"["sub"]"#, r#"[{"channels":"*"}]"#, r#"[{"channels":["*"],"allow":"sub"}]"#]),
        ("b64info", &["7", r#""?""#, r#""bm8gSlNPTg==""#]),
        ("meta", &["7", r#""x""#, "[]"]),
    ];
    for (claim, values) in wrong {
        for value in *values {
            let claims = format!(r#"{{"orgs":["acme"],"{claim}":{value},"unknown":null}}"#);
            let claims = if *claim == "orgs" { format!(r#"{{"orgs":{value}}}"#) } else { claims };
            assert_eq!(read(&claims), Err(TokenError::Claim(claim)), "{claims}");
        }
    }
    let overrides = r#"{"subs":{"news":{"override":{"presence":true}}}}"#;
    assert_eq!(read(overrides), Err(TokenError::Claim("subs")));
    for claims in bad {
        assert_eq!(read(&claims), Err(TokenError::Invalid), "{claims}");
    }
    // Nobody learns anything about the claims of a token that we did not sign.
    let forged = forged(r#"{"sub":7}"#);
    assert_eq!(keys().authenticate(&forged, at(NOW)), Err(TokenError::Invalid));
}

#[test]
fn the_claims_become_a_principal() {
    let who = read(
        r##"{"sub":"42","orgs":["acme"],"repos":["other/one"],"scope":"read scan  admin:x","jti":"j-1","aud":"x",
            "channels":["news","repo:acme/api"],"info":{"name":
            "Ana"},"meta":{"plan":"a"},"unknown":[{}],
            "subs":{"#42":{"info":{"a":1},"b64data":"eyJiIjoyfQ","override":{"presence":{"value":true},"x":7}}},
            "caps":[{"channels":["ns:*","plain"],"allow":["sub","hst","fly"],"match":"wildcard"},{}]}"##,
    )
    .expect("a principal");
    assert_eq!(who.user, "42");
    assert!(who.orgs.contains("acme") && who.repos.contains("other/one"));
    assert_eq!(who.scopes, Scopes { scan: true, ..Scopes::default() });
    assert_eq!(who.jti.as_deref(), Some("j-1"));
    let info = who.info.as_ref().expect("info");
    assert!(!info.contains('\n') && info.starts_with(r#"{"name":"#) && info.ends_with(r#""Ana"}"#));
    assert_eq!(who.meta.as_deref(), Some(r#"{"plan":"a"}"#));
    let named: Vec<&str> = who.channels.iter().map(ChannelName::as_str).collect();
    assert_eq!(named, ["#42", "news", "repo:acme/api"]);
    let sub = who.sub_claim(&ChannelName::parse("#42").unwrap()).unwrap();
    assert_eq!((sub.info.as_deref(), sub.data.as_deref()), (Some(r#"{"a":1}"#), Some(r#"{"b":2}"#)));
    assert_eq!((sub.overrides.presence, sub.overrides.join_leave), (Some(true), None));
    assert_eq!(who.caps.len(), 2);
    assert!(who.caps[0].allow.subscribe && who.caps[0].allow.history && !who.caps[0].allow.publish);
    assert_eq!(who.caps[0].channels[0].as_str(), "ns:*");
}

#[test]
fn empty_claims_are_as_absent_ones() {
    let bare = read("{}").expect("a principal");
    assert!(bare.is_anonymous());
    assert_eq!(bare, Principal::default());
    let nulls = r#"{"sub":"","orgs":null,"repos":null,"scope":null,"caps":null,"channels":null,"subs":null,
        "info":null,"b64info":"","meta":null,"aud":null,"iss":null,"jti":null}"#;
    assert_eq!(read(nulls), Ok(bare));
    assert_eq!(
        read(r#"{"scope":["admin","scan publish"]}"#).expect("list").scopes,
        Scopes { admin: true, ..Scopes::default() }
    );
    assert_eq!(read(r#"{"info":{"a":1},"b64info":"W10="}"#).expect("base64").info.as_deref(), Some("[]"));
}

#[test]
fn audience_and_issuer_are_checked_only_if_configured() {
    let ours = |audience: Option<&str>, issuer: Option<&str>, claims: &str| {
        let keys = Keys::hmac([SECRET], audience.map(str::to_owned), issuer.map(str::to_owned));
        keys.authenticate(&token(claims), at(NOW)).map(|_| ())
    };
    let (bad, bad_issuer) = (Err(TokenError::Claim("aud")), Err(TokenError::Claim("iss")));
    assert_eq!(ours(None, None, r#"{"aud":"them","iss":"them"}"#), Ok(()));
    assert_eq!(ours(Some("us"), None, r#"{"aud":"us"}"#), Ok(()));
    assert_eq!(ours(Some("us"), None, r#"{"aud":["them","us"]}"#), Ok(()));
    assert_eq!(ours(Some("us"), None, r#"{"aud":"them"}"#), bad);
    assert_eq!(ours(Some("us"), None, r#"{"aud":"us them"}"#), bad);
    assert_eq!(ours(Some("us"), None, r#"{"aud":[]}"#), bad);
    assert_eq!(ours(Some("us"), None, "{}"), bad);
    assert_eq!(ours(Some("us"), None, r#"{"aud":"them","exp":1}"#), bad);
    assert_eq!(ours(None, Some("us"), r#"{"iss":"us"}"#), Ok(()));
    assert_eq!(ours(None, Some("us"), r#"{"iss":"them"}"#), bad_issuer);
    assert_eq!(ours(None, Some("us"), "{}"), bad_issuer);
}

#[test]
fn a_minted_token_says_what_it_was_told_and_an_id() {
    let new = NewToken {
        user: "ana".into(),
        orgs: vec!["acme".into()],
        repos: vec!["other/one".into()],
        scopes: vec!["scan".into(), "publish".into()],
        channels: vec![ChannelName::parse("chat:lobby").expect("a channel")],
        reads: vec![ChannelName::parse("chat:hall").expect("a channel")],
        ttl: Some(Duration::from_secs(60)),
        audience: Some("us".into()),
        issuer: Some("me".into()),
    };
    let keys = Keys::hmac([SECRET], Some("us".into()), Some("me".into()));
    let minted = mint(SECRET, &new, at(NOW)).expect("a token");
    let who = keys.authenticate(&minted, at(NOW)).expect("a principal");
    assert_eq!((who.user.as_str(), who.expires_at), ("ana", Some(at(NOW + 60))));
    assert!(who.orgs.contains("acme") && who.repos.contains("other/one"));
    assert!(who.scopes.scan && who.scopes.publish && !who.scopes.admin);
    assert!(who.channels.iter().map(ChannelName::as_str).eq(["chat:lobby"]));
    let Rights { subscribe: true, history: true, publish: false, presence: false } = who.caps[0].allow else {
        panic!("{:?}", who.caps)
    };
    assert_eq!(who.caps[0].channels[0].exact(), Some("chat:hall"));
    assert_eq!(keys.authenticate(&minted, at(NOW + 60)), Err(TokenError::Expired));
    let plain = mint(SECRET, &NewToken::default(), at(NOW)).expect("a token");
    let nobody = self::keys().authenticate(&plain, at(NOW)).expect("a principal");
    assert!(nobody.jti.is_some() && nobody.jti != who.jti, "each can be revoked by itself");
    assert_eq!(nobody, Principal { jti: nobody.jti.clone(), ..Principal::default() });
    assert!(matches!(mint("", &new, at(NOW)), Err(MintError::NoSecret)));
    let forever = NewToken { ttl: Some(Duration::MAX), ..new };
    assert!(matches!(mint(SECRET, &forever, at(NOW)), Err(MintError::TooLong)));
}

#[test]
fn a_subscription_token_grants_one_channel() {
    let read = |claims: &str| KeyRing::from(keys()).subscription(&token(claims), at(NOW));
    let claims = format!(
        r#"{{"sub":"42","channel":"$news","exp":{FUTURE},"expire_at":0,"info":{{"a":1}},"data":7,"client":"c",
            "override":{{"force_recovery":{{"value":false}}}}}}"#
    );
    let grant = read(&claims).expect("a grant");
    assert_eq!((grant.user.as_str(), grant.channel.as_str()), ("42", "$news"));
    assert_eq!((grant.expires_at, grant.client.as_deref()), (None, Some("c")));
    assert_eq!((grant.claim.info.as_deref(), grant.claim.data.as_deref()), (Some(r#"{"a":1}"#), Some("7")));
    assert_eq!(grant.claim.overrides.force_recovery, Some(false));
    assert_eq!(read(r#"{"channel":"x"}"#).map(|grant| grant.user), Ok(String::new()));
    assert_eq!(read(r#"{"channel":"x","exp":1}"#), Err(TokenError::Expired));
    for (bad, claim) in [
        ("{}", "channel"),
        (r#"{"channel":""}"#, "channel"),
        (r#"{"channel":["x"]}"#, "channel"),
        (r#"{"channel":null}"#, "channel"),
        (r#"{"channel":"x","client":7}"#, "client"),
        (r#"{"channel":"x","b64data":"?"}"#, "b64data"),
    ] {
        assert_eq!(read(bad), Err(TokenError::Claim(claim)), "{bad}");
    }
    assert_eq!(KeyRing::from(keys()).subscription(&forged(&claims), at(NOW)), Err(TokenError::Invalid));
    assert_eq!(KeyRing::from(keys()).subscription("", at(NOW)), Err(TokenError::Missing));
}

#[test]
fn the_scheme_of_a_bearer_header_has_no_case() {
    assert_eq!(bearer("Bearer a.b.c"), Some("a.b.c"));
    assert_eq!(bearer("bEARER   a.b.c "), Some("a.b.c"));
    for header in ["", "Bearer", "Bearer ", "Basic a.b.c", "Bearera.b.c", "apikey x", "a.b.c"] {
        assert_eq!(bearer(header), None, "{header}");
    }
}

#[test]
fn secrets_are_the_same_only_byte_for_byte() {
    assert!(same_secret("key", "key") && same_secret("", ""));
    for (given, ours) in [("key", "Key"), ("ke", "key"), ("keyy", "key"), ("", "key"), ("key ", "key")] {
        assert!(!same_secret(given, ours), "{given} {ours}");
    }
}

#[test]
fn keys_do_not_print_their_secrets() {
    let text = format!("{:?}", keys());
    let bytes = format!("{:?}", SECRET.as_bytes());
    assert!(!text.contains(SECRET) && !text.contains(&bytes), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_without_panic(text in any::<String>(), claims in "[\\[\\]{}:,\"a-z0-9.eE+-]{0,30}") {
        let _ = (keys().authenticate(&text, at(NOW)), bearer(&text));
        let _ = (read(&claims), read(&format!("{{\"exp\":{claims}}}")));
        let _ = (read(&text), KeyRing::from(keys()).subscription(&token(&claims), at(NOW)));
    }

    #[test]
    fn a_token_with_one_character_changed_is_invalid(place in any::<prop::sample::Index>(), other in "[A-Za-z0-9_.-]") {
        let good = token(r#"{"sub":"42","exp":1}"#);
        let at_byte = place.index(good.len());
        prop_assume!(good[at_byte..=at_byte] != other);
        let bad = format!("{}{other}{}", &good[..at_byte], &good[at_byte + 1..]);
        prop_assert_eq!(keys().authenticate(&bad, at(NOW)), Err(TokenError::Invalid));
    }
}
