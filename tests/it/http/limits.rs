//! Limits that outlive the process, and that nothing can slow; each over its real endpoint, with its
//! error and its metric. Those of single endpoints are tested beside these endpoints.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::proxy::{Link, Proxy};
use testkit::sql::Source;

use crate::support::app::{Backend, TestApp, on_both, signature};
use crate::support::client::Request;
use crate::support::database::{Database, Sql};
use crate::support::process::{Gateway, Home, on_sqlite};
use crate::support::store::eventually;
use crate::support::websocket::Client;

const POLL: &str = "/api/events?channel=org:acme";
const BUILD: &str = "/api/builds/0195d3a0-1111-7000-8000-0000000000aa/events";
/// So few that none is earned while a node starts again.
const FEW: &str = "limits.polls_per_minute = 2
limits.build_events_per_minute = 2
limits.invalid_signatures_per_minute = 2";

fn forged(app: &TestApp) -> Request {
    app.webhook("star", "{}").header("X-Hub-Signature-256", &signature("wrong", b"{}"))
}

async fn a_restart_gives_nothing_back(backend: Backend) {
    let mut app = TestApp::with(backend, FEW).await;
    let (ana, ben) = (app.ana(), app.token(json!({ "sub": "ben", "orgs": ["acme"] })));
    let event = |token: &str| Request::post(BUILD).bearer(token).json(&json!({ "type": "build:x" }));
    for _ in 0..2 {
        app.get(POLL, &ana).await.expect(200);
        app.send(event(&ana)).await.expect(201);
        app.send(forged(&app)).await.refused(401, "signature_invalid");
    }
    app.get(POLL, &ben).await.expect(200);
    // An id that is as long as one can be, with what texts rarely hold.
    let odd = app.token(json!({ "sub": "\u{1}\u{fc}".repeat(340), "orgs": ["acme"] }));
    for _ in 0..2 {
        app.get(POLL, &odd).await.expect(200);
    }
    app.restart().await;
    app.get(POLL, &odd).await.refused(429, "rate_limited");
    let refused = app.get(POLL, &ana).await.refused(429, "rate_limited");
    let wait: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=30).contains(&wait), "{wait}");
    app.send(event(&ana)).await.refused(429, "rate_limited");
    app.send(forged(&app)).await.refused(429, "too_many_invalid_signatures");
    // What others have used is theirs.
    let poll = app.get(POLL, &ben).await.expect(200);
    assert_eq!(poll.header("ratelimit-remaining"), Some("0"));
    app.send(app.webhook("star", "{}")).await.expect(202);
    assert_eq!(app.sql().count("rate_limits").await, 5);
}

/// Losing the last second is all that a kill may cost.
#[test]
fn a_kill_gives_back_no_more_than_what_was_not_written_yet() {
    on_sqlite(async |home: Home| {
        let home = home.with("CAMPANILE_LIMITS__POLLS_PER_MINUTE", "2");
        let gateway = Gateway::start(&home).await;
        let began = chrono::Utc::now().timestamp_micros();
        for _ in 0..2 {
            assert_eq!(gateway.get(POLL).await.status, 200);
        }
        assert_eq!(gateway.get(POLL).await.status, 429);
        // Two polls are earned in a minute, one in half of it.
        let sql = Sql(Source::Sqlite(home.data().join("campanile.db")));
        let whole = format!("rate_limits WHERE free_at > {}", began + 50_000_000);
        eventually("both are written", async || sql.count(&whole).await == 1).await;
        gateway.kill9().await;
        let gateway = Gateway::start(&home).await;
        assert_eq!(gateway.get(POLL).await.status, 429);
        gateway.stop().await;
    });
}

#[tokio::test]
async fn a_store_that_is_away_slows_no_decision() {
    let proxy = Proxy::to(Database::server()).await.expect("a proxy");
    let app = TestApp::on(Database::through(proxy.address).await, FEW).await;
    app.get("/readyz", "").await.expect(200);
    proxy.set(Link::Stalled);
    let began = Instant::now();
    for _ in 0..2 {
        app.send(forged(&app)).await.refused(401, "signature_invalid");
    }
    app.send(forged(&app)).await.refused(429, "too_many_invalid_signatures");
    // A decision that waited for the store would take its deadline.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    proxy.set(Link::Open);
    let sql = app.sql();
    let kept = "rate_limits WHERE name = 'invalid_signatures'";
    eventually("it is written when the store is back", async || sql.count(kept).await == 1).await;
    app.send(forged(&app)).await.refused(429, "too_many_invalid_signatures");
}

async fn the_limits_of_a_socket_have_their_codes_and_are_counted(backend: Backend) {
    let options = "client.channel_limit = 2\nclient.user_connection_limit = 2
channel.max_publication_size = \"1KiB\"
[[channel.namespaces]]
name = \"chat\"
allow_subscribe_for_client = true
allow_publish_for_client = true";
    let app = TestApp::with(backend, options).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    client.subscribe("chat:a").await;
    client.subscribe("chat:b").await;
    assert_eq!(client.error(json!({ "subscribe": { "channel": "chat:c" } })).await, 106);
    let publish = |length| json!({ "publish": { "channel": "chat:a", "data": "x".repeat(length) } });
    assert_eq!(client.error(publish(1023)).await, 107);
    assert!(client.ask(publish(1022)).await["publish"].is_object());
    let counted = [app.metric("protocol_errors", "106").await, app.metric("protocol_errors", "107").await];
    assert_eq!((counted, app.metric("protocol_errors", "").await), ([1, 1], 2));

    let many = app.token(json!({ "sub": "ben", "channels": ["chat:a", "chat:b", "chat:c"] }));
    let _second = Client::connected(&app, &app.ana()).await;
    for (code, token) in [(3504, app.ana()), (3505, many)] {
        let mut client = Client::open(app.address()).await;
        client.command(json!({ "connect": { "token": token } })).await;
        assert_eq!(client.closed_with().await, code);
        app.until_metric("disconnects", &code.to_string(), 1).await;
    }
    let too_large = app.publish(json!({ "channel": "chat:a", "data": "x".repeat(1023) })).await.expect(200);
    assert_eq!(too_large.json()["error"]["code"], 107);
    assert_eq!(app.metric("protocol_errors", "107").await, 2);
}

async fn a_stream_carries_so_many_channels(backend: Backend) {
    let app = TestApp::with(backend, "limits.stream_channels = 2").await;
    let path = |names: &str| format!("/api/events/stream?channels={names}");
    app.get(&path("org:acme,repo:acme/a,repo:acme/b"), &app.ana()).await.refused(400, "too_many_channels");
    assert_eq!(app.metric("refusals", "too_many_channels").await, 1);
    app.stream("repo:acme/a,repo:acme/b", &app.ana(), None).await;
}

on_both!(
    a_restart_gives_nothing_back,
    the_limits_of_a_socket_have_their_codes_and_are_counted,
    a_stream_carries_so_many_channels,
);
