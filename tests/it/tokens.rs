//! Tokens of every algorithm over every transport, good ones and bad ones, against one
//! configuration that has keys of all kinds.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp};
use crate::support::client::Request;
use crate::support::issuer::{OPEN, Pair, key_set};
use crate::support::sse::Stream;
use crate::support::websocket::{Client, Received};

/// What a token is answered: over HTTP, by `connect`, by `subscribe`. 0 is good.
type Verdict = (u16, &'static str, u16, u16);

const GOOD: Verdict = (200, "", 0, 0);
const INVALID: Verdict = (401, "token_invalid", 3500, 103);
const EXPIRED: Verdict = (401, "token_expired", 109, 109);
const TOO_EARLY: Verdict = (401, "token_not_yet_valid", 109, 109);

/// Brings a token in every way, `claims` as they are and as those of a subscription.
async fn expect(
    app: &TestApp,
    told: &str,
    token: impl Fn(&Value) -> String,
    claims: Value,
    verdict: Verdict,
) {
    let (status, code, connect, subscribe) = verdict;
    let bearer = token(&claims);
    let answer = app.get("/api/events?channel=open:x", &bearer).await;
    assert_eq!(answer.status, status, "{told}, polled: {}", answer.text());
    let by_query = Request::get(&format!("/api/events/stream?channels=open:x&token={bearer}"));
    match Stream::open(app.address(), &by_query).await {
        Ok(_) => assert_eq!(status, 200, "{told}, streamed"),
        Err(answer) => drop(answer.refused(status, code)),
    }
    if status != 200 {
        answer.refused(status, code);
    }
    let mut client = Client::open(app.address()).await;
    assert_eq!(code_of(&mut client, json!({ "connect": { "token": bearer } })).await, connect, "{told}");

    let ana = app.token(json!({ "sub": "ana", "aud": "us" }));
    let mut client = Client::connected(app, &ana).await;
    let mut claims = claims;
    claims["channel"] = "$open:x".into();
    let command = json!({ "subscribe": { "channel": "$open:x", "token": token(&claims) } });
    assert_eq!(code_of(&mut client, command).await, subscribe, "{told}, to subscribe");
}

/// The code of the error, or of the end, that a command gets; 0 if it goes well.
async fn code_of(client: &mut Client, command: Value) -> u16 {
    client.command(command).await;
    match client.next().await {
        Received::Message(reply) => reply["error"]["code"].as_u64().unwrap_or(0).try_into().expect("a code"),
        Received::Close(code, _) => code,
        said => panic!("{said:?}"),
    }
}

#[tokio::test]
async fn every_transport_takes_what_our_keys_signed_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let in_pem = [Pair::new("", Algorithm::RS256), Pair::new("", Algorithm::ES384), Pair::ed("")];
    let [rsa, ec, ed] = &in_pem;
    let in_file = Pair::new("file", Algorithm::ES256);
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, key_set(&[&in_file])).expect("written");
    let config = format!(
        "[client.token]\naudience = \"us\"\nrsa_public_key = '''\n{}'''\necdsa_public_key = '''\n{}'''\n\
         ed25519_public_key = '''\n{}'''\njwks_file = \"{}\"\n{OPEN}",
        rsa.public,
        ec.public,
        ed.public,
        file.display()
    );
    let app = TestApp::with(Backend::Sqlite, &config).await;
    let ana = json!({ "sub": "ana", "aud": "us" });
    for pair in in_pem.iter().chain([&in_file]) {
        let told = format!("{:?}", pair.algorithm);
        let good = |claims: &Value| pair.token(claims);
        expect(&app, &told, good, ana.clone(), GOOD).await;
        let foreign = Pair::new(pair.kid, pair.algorithm);
        expect(&app, &format!("{told} forged"), |claims| foreign.token(claims), ana.clone(), INVALID).await;
    }
    let good = |claims: &Value| ed.token(claims);
    let with = |name: &str, value: Value| {
        let mut claims = ana.clone();
        claims[name] = value;
        claims
    };
    let future = chrono::Utc::now().timestamp() + 600;
    expect(&app, "expired", good, with("exp", 1.into()), EXPIRED).await;
    expect(&app, "too early", good, with("nbf", future.into()), TOO_EARLY).await;
    expect(&app, "for others", good, with("aud", "them".into()), INVALID).await;
    expect(&app, "for nobody", good, json!({ "sub": "ana" }), INVALID).await;
    expect(&app, "oversized", good, with("info", "x".repeat(13_000).into()), INVALID).await;
    expect(&app, "of a wrong type", good, with("sub", 7.into()), INVALID).await;
    for pair in &in_pem {
        for secret in [pair.public.as_str(), pair.public.trim_end()] {
            let confused = |claims: &Value| {
                let secret = EncodingKey::from_secret(secret.as_bytes());
                jsonwebtoken::encode(&Header::default(), claims, &secret).expect("a token")
            };
            expect(&app, "a public key as secret", confused, ana.clone(), INVALID).await;
        }
    }
    let unnamed = Pair { kid: "other", ..in_file.clone() };
    expect(&app, "another name", |claims| unnamed.token(claims), ana.clone(), INVALID).await;
    let headless = |claims: &Value| {
        let token = ed.token(claims);
        let (_, rest) = token.split_once('.').expect("parts");
        format!("eyJhbGciOiJub25lIn0.{}.", rest.split_once('.').expect("parts").0)
    };
    expect(&app, "alg none", headless, ana, INVALID).await;
}

#[tokio::test]
async fn clocks_may_differ_by_the_leeway_that_is_configured() {
    let config = format!("[client.token]\naudience = \"us\"\nleeway = \"5m\"\n{OPEN}");
    let app = TestApp::with(Backend::Sqlite, &config).await;
    let now = chrono::Utc::now().timestamp();
    let of = |claim: &str, at: i64| json!({ "sub": "ana", "aud": "us", claim: at });
    let token = |claims: &Value| app.token(claims.clone());
    expect(&app, "a little late", token, of("exp", now - 200), GOOD).await;
    expect(&app, "late", token, of("exp", now - 301), EXPIRED).await;
    expect(&app, "a little early", token, of("nbf", now + 200), GOOD).await;
    expect(&app, "early", token, of("nbf", now + 600), TOO_EARLY).await;
    expect(&app, "made in the future", token, of("iat", now + 600), GOOD).await;
}

#[tokio::test]
async fn an_answer_names_the_claim_that_is_wrong() {
    let config = format!("[client.token]\naudience = \"us\"\nissuer = \"me\"\n{OPEN}");
    let app = TestApp::with(Backend::Sqlite, &config).await;
    let wrong = [
        ("sub", json!(7)),
        ("exp", json!("soon")),
        ("nbf", json!(null)),
        ("aud", json!("them")),
        ("iss", json!("them")),
        ("channel", json!("news:x")),
        ("orgs", json!("acme")),
    ];
    for (claim, value) in wrong {
        let mut claims = json!({ "sub": "ana", "aud": "us", "iss": "me" });
        claims[claim] = value;
        let refused = app.get("/api/events?channel=open:x", &app.token(claims)).await;
        let message = refused.refused(401, "token_invalid").json()["error"]["message"].to_string();
        assert!(message.contains(&format!("the claim `{claim}`")), "{claim}: {message}");
    }
}
