//! The key set on the network: what is fetched when, what a failure costs, and what is said to
//! whoever brings a key that nobody knows yet.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use campanile::auth::{KeyRing, Keys, TokenError};
use campanile::config::JwksUrl;
use campanile::tasks::Metrics;
use campanile::tasks::jwks::{self, FetchIntervals};
use campanile::tasks::metrics::FetchOutcome;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::app::{Backend, TestApp, stream_request};
use crate::support::client::{DEADLINE, Request};
use crate::support::issuer::{Issuer, Mood, OPEN, Pair, key_set};
use crate::support::sse::Stream;
use crate::support::websocket::Client;

/// Shorter than anyone would have it, so that no test waits for long.
const QUICK: FetchIntervals = FetchIntervals {
    refresh: Duration::from_millis(40),
    cooldown: Duration::from_millis(60),
    deadline: Duration::from_millis(300),
};
/// Nothing but what is asked for.
const CALM: FetchIntervals =
    FetchIntervals { refresh: Duration::from_secs(3600), cooldown: Duration::from_secs(3600), ..QUICK };

/// The task on its own, with the keys that it keeps.
struct Fetcher {
    keys: KeyRing,
    metrics: Arc<Metrics>,
    source: watch::Sender<Option<JwksUrl>>,
    task: JoinHandle<()>,
}

impl Fetcher {
    fn start(url: &str, pace: FetchIntervals) -> Self {
        let keys = KeyRing::from(Keys::hmac([""; 0], None, None));
        let (source, metrics) = (watch::Sender::new(Some(place(url))), Arc::<Metrics>::default());
        let task = jwks::run(keys.clone(), source.subscribe(), pace, metrics.clone());
        Self { keys, metrics, source, task: tokio::spawn(task) }
    }

    fn read(&self, pair: &Pair) -> Result<String, TokenError> {
        let token = pair.token(&json!({ "sub": "ana" }));
        self.keys.authenticate(&token, chrono::Utc::now()).map(|who| who.user)
    }

    async fn until(&self, pair: &Pair, expected: Result<&str, TokenError>) {
        let reached = async {
            while self.read(pair) != expected.map(str::to_owned) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        assert!(reached.is_ok(), "{} stays {:?}", pair.kid, self.read(pair));
    }

    fn fetches(&self, outcome: &'static str) -> u64 {
        self.metrics.jwks_fetches.with(FetchOutcome(outcome)).get()
    }

    async fn until_fetched(&self, outcome: &'static str, times: u64) {
        let reached = async {
            while self.fetches(outcome) < times {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        assert!(reached.is_ok(), "no fetch ends as {outcome}: {:?}", self.metrics);
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn place(url: &str) -> JwksUrl {
    JwksUrl::try_from(url.to_owned()).expect("a URL")
}

#[tokio::test]
async fn whatever_fails_the_last_good_set_stays() {
    let (a, b) = (Pair::ed("a"), Pair::ed("b"));
    let elsewhere = Issuer::of(&[&b]).await;
    let failures = [
        (Mood::HangsUp, "unreachable"),
        (Mood::Sleeps, "timeout"),
        (Mood::Stalls, "timeout"),
        (Mood::Floods, "too_large"),
        (Mood::Says(key_set(&[&b]) + &" ".repeat(70_000)), "too_large"),
        (Mood::Redirects(elsewhere.url()), "redirect"),
        (Mood::Status(404, key_set(&[&b])), "status"),
        (Mood::Status(500, String::new()), "status"),
        (Mood::Says("<html>".to_owned()), "bad_set"),
        (Mood::Says(r#"{"keys":[]}"#.to_owned()), "bad_set"),
    ];
    let issuer = Issuer::of(&[&a]).await;
    let fetcher = Fetcher::start(&issuer.url(), QUICK);
    fetcher.until(&a, Ok("ana")).await;
    for (mood, kind) in failures {
        let before = fetcher.fetches(kind);
        issuer.turns(mood.clone());
        fetcher.until_fetched(kind, before + 1).await;
        assert_eq!(fetcher.read(&a), Ok("ana".to_owned()), "{mood:?}");
        assert_eq!(fetcher.read(&b), Err(TokenError::KeyPending), "{mood:?}");
    }
    assert_eq!(elsewhere.asked(), 0, "no redirect is followed");
    issuer.turns(Mood::NeverSaysHowMuch(key_set(&[&b])));
    fetcher.until(&b, Ok("ana")).await;
    fetcher.until(&a, Err(TokenError::Invalid)).await;
}

#[tokio::test]
async fn a_start_without_the_endpoint_works_and_heals() {
    let a = Pair::ed("a");
    let issuer = Issuer::start(Mood::HangsUp).await;
    let fetcher = Fetcher::start(&issuer.url(), QUICK);
    fetcher.until_fetched("unreachable", 2).await;
    assert_eq!(fetcher.read(&a), Err(TokenError::KeyPending), "nobody knows what is invalid");
    issuer.publishes(&[&a]);
    fetcher.until(&a, Ok("ana")).await;
    fetcher.until_fetched("ok", 2).await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_makes_one_fetch() {
    let (a, b) = (Pair::ed("a"), Pair::ed("b"));
    let issuer = Issuer::of(&[&a]).await;
    let fetcher = Fetcher::start(&issuer.url(), CALM);
    fetcher.until(&a, Ok("ana")).await;
    let invented = |n: u32| {
        let header = json!({ "alg": "EdDSA", "kid": format!("invented-{n}") }).to_string();
        format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(header))
    };
    let tokens: Vec<String> = (0..2_000).map(invented).collect();
    let read = |token: &String| fetcher.keys.authenticate(token, chrono::Utc::now());
    assert!(tokens.iter().all(|token| read(token) == Err(TokenError::KeyPending)));
    fetcher.until_fetched("ok", 2).await;
    // It has been asked just now: what is unknown has to wait, and asks for nothing.
    for token in &tokens {
        assert_eq!(read(token), Err(TokenError::KeyPending));
        tokio::task::yield_now().await;
    }
    assert_eq!(fetcher.read(&b), Err(TokenError::KeyPending));
    assert_eq!((issuer.asked(), fetcher.fetches("ok")), (2, 2));
    assert_eq!(fetcher.read(&a), Ok("ana".to_owned()));
}

#[tokio::test]
async fn after_a_rest_an_unknown_key_is_worth_a_fetch_again() {
    let (a, b, c) = (Pair::ed("a"), Pair::ed("b"), Pair::ed("c"));
    let issuer = Issuer::of(&[&a]).await;
    let fetcher = Fetcher::start(&issuer.url(), FetchIntervals { refresh: CALM.refresh, ..QUICK });
    fetcher.until(&a, Ok("ana")).await;
    for (kid, pair) in [(2, &b), (3, &c)] {
        issuer.publishes(&[&a, pair]);
        fetcher.until(pair, Ok("ana")).await;
        assert!(issuer.asked() >= kid);
    }
}

#[tokio::test]
async fn strangers_do_not_keep_a_new_key_out() {
    let (a, b, stranger) = (Pair::ed("a"), Pair::ed("b"), Pair::ed("b"));
    let issuer = Issuer::of(&[&a]).await;
    let fetcher = Fetcher::start(&issuer.url(), FetchIntervals { refresh: CALM.refresh, ..QUICK });
    fetcher.until(&a, Ok("ana")).await;
    // A stranger has the set fetched in time, even by the name of the key that comes next.
    assert_eq!(fetcher.read(&stranger), Err(TokenError::KeyPending));
    fetcher.until_fetched("ok", 2).await;
    issuer.publishes(&[&a, &b]);
    let mut answers = Vec::new();
    let got_in = async {
        while answers.last() != Some(&Ok("ana".to_owned())) {
            let _ = fetcher.read(&stranger);
            answers.push(fetcher.read(&b));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, got_in).await.expect("the new key gets in");
    assert!(!answers.contains(&Err(TokenError::Invalid)), "{answers:?}");
    fetcher.until(&stranger, Err(TokenError::Invalid)).await;
}

#[tokio::test]
async fn a_key_that_never_comes_is_refused_in_the_end() {
    let (a, never) = (Pair::ed("a"), Pair::ed("never"));
    let issuer = Issuer::of(&[&a]).await;
    let fetcher = Fetcher::start(&issuer.url(), FetchIntervals { refresh: CALM.refresh, ..QUICK });
    fetcher.until(&a, Ok("ana")).await;
    fetcher.until(&never, Err(TokenError::Invalid)).await;
    assert!(issuer.asked() >= 3, "the first set, and two fetches for it");
}

#[tokio::test]
async fn another_endpoint_brings_other_keys_and_none_brings_none() {
    let (a, b) = (Pair::ed("a"), Pair::ed("b"));
    let (first, second) = (Issuer::of(&[&a]).await, Issuer::of(&[&b]).await);
    let fetcher = Fetcher::start(&first.url(), CALM);
    fetcher.until(&a, Ok("ana")).await;
    fetcher.source.send_replace(Some(place(&first.url())));
    first.until_asked(2).await;
    fetcher.source.send_replace(Some(place(&second.url())));
    fetcher.until(&b, Ok("ana")).await;
    assert_ne!(fetcher.read(&a), Ok("ana".to_owned()));
    fetcher.source.send_replace(None);
    fetcher.until(&b, Err(TokenError::Invalid)).await;
}

#[tokio::test]
async fn keys_rotate_while_clients_are_connected() {
    let (a, b, never) = (Pair::ed("a"), Pair::ed("b"), Pair::ed("never"));
    let issuer = Issuer::of(&[&a]).await;
    let app = TestApp::with(Backend::Sqlite, &(issuer.config() + OPEN)).await;
    app.until_metric("jwks_fetches", "ok", 1).await;
    let (by_a, by_b) = (a.token(&json!({ "sub": "ana" })), b.token(&json!({ "sub": "ben" })));
    let mut ana = Client::connected(&app, &by_a).await;
    ana.subscribe("open:x").await;

    issuer.publishes(&[&b]);
    let mut ben = Client::open(app.address()).await;
    assert_eq!(ben.error(json!({ "connect": { "token": by_b } })).await, 100, "come back soon");
    app.until_metric("jwks_fetches", "ok", 2).await;
    let mut ben = Client::connected(&app, &by_b).await;
    ben.subscribe("open:x").await;
    app.publish(json!({ "channel": "open:x", "data": 1 })).await.expect(200);
    assert_eq!(ana.push().await["pub"]["data"], 1);
    assert_eq!(ben.push().await["pub"]["data"], 1);

    let strangers = [by_a, never.token(&json!({ "sub": "eve" }))];
    for token in &strangers {
        let mut stranger = Client::open(app.address()).await;
        assert_eq!(stranger.error(json!({ "connect": { "token": token } })).await, 100, "it may be newer");
        app.get("/api/events?channel=open:x", token).await.refused(503, "token_key_awaited");
    }
    assert_eq!(issuer.asked(), 2);
    ana.is_quiet().await;
}

#[tokio::test]
async fn while_the_endpoint_is_down_nobody_is_sent_away_for_good() {
    let a = Pair::ed("a");
    let issuer = Issuer::start(Mood::Sleeps).await;
    let app = TestApp::with(Backend::Sqlite, &(issuer.config() + OPEN)).await;
    let token = a.token(&json!({ "sub": "ana" }));
    let answer = app.get("/api/events?channel=open:x", &token).await;
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
    answer.refused(503, "token_key_awaited");
    let path = format!("/api/events/stream?channels=open:x&token={token}");
    app.send(Request::get(&path)).await.refused(503, "token_key_awaited");
    let refused = Stream::open(app.address(), &stream_request("open:x", &token, None)).await;
    refused.expect_err("no key yet").refused(503, "token_key_awaited");
    let mut client = Client::open(app.address()).await;
    assert_eq!(client.error(json!({ "connect": { "token": token } })).await, 100);
    // Whom the secret of the configuration lets in is in, and its subscriptions wait alike.
    let mut client = Client::connected(&app, &app.ana()).await;
    let admitting = a.token(&json!({ "sub": "ana", "channel": "$open:x" }));
    let subscribe = json!({ "subscribe": { "channel": "$open:x", "token": admitting } });
    assert_eq!(client.error(subscribe).await, 100);
    client.is_quiet().await;
}
