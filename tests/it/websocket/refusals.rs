//! Commands that fail while their connection stays: each with its own number, and the next command
//! is answered as if nothing had been.

use serde_json::{Value, json};
use testkit::proxy::{Link, Proxy};

use crate::support::app::{Backend, TestApp, in_seconds, on_both};
use crate::support::database::Database;
use crate::support::websocket::Client;

const SPACES: &str = "channel.max_publication_size = \"32KiB\"
[[channel.namespaces]]
name = \"open\"
allow_subscribe_for_client = true

[[channel.namespaces]]
name = \"kept\"
history_size = 100
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true

[[channel.namespaces]]
name = \"shut\"
";

fn subscribe(channel: &str) -> Value {
    json!({ "subscribe": { "channel": channel } })
}

pub(super) async fn what_a_client_may_not_do_is_said(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    client.subscribe("open:x").await;
    let forged = app.token(json!({ "sub": "ana", "channel": "open:y" })) + "x";
    let long = format!("open:{}", "x".repeat(255));
    let with = |name: &str, rest: Value| {
        let mut command = json!({ name: { "channel": "open:y" } });
        command[name].as_object_mut().expect("a command").extend(rest.as_object().expect("fields").clone());
        command
    };
    let cases = [
        (102, subscribe("nobody:x")),
        (102, with("publish", json!({ "channel": "nobody:x", "data": 1 }))),
        (102, with("history", json!({ "channel": "nobody:x" }))),
        (103, subscribe("shut:x")),
        (103, subscribe("$open:x")),
        (103, subscribe("repo:evil/api")),
        (103, subscribe("org:evil")),
        (103, subscribe("#ben")),
        (103, subscribe("job:00000000-0000-4000-8000-000000000000")),
        (103, with("publish", json!({ "data": 1 }))),
        (103, with("publish", json!({ "channel": "repo:acme/api", "data": 1 }))),
        (103, with("subscribe", json!({ "token": forged }))),
        (103, with("subscribe", json!({ "type": 1 }))),
        (103, with("sub_refresh", json!({ "token": "x" }))),
        (105, subscribe("open:x")),
        (107, subscribe(&long)),
        (107, subscribe("open:ä")),
        (107, subscribe("repo:acme")),
        (107, with("subscribe", json!({ "tf": {} }))),
        (107, with("publish", json!({ "channel": "kept:x" }))),
        (107, with("publish", json!({ "channel": "kept:x", "data": "x".repeat(60_000) }))),
        (107, with("sub_refresh", json!({ "channel": "open:x" }))),
        (107, with("history", json!({ "channel": "kept:x", "reverse": true, "since": { "offset": 0 } }))),
        (108, with("history", json!({}))),
        (108, with("presence", json!({}))),
        (108, with("presence_stats", json!({ "channel": "org:acme" }))),
        (108, json!({ "rpc": { "method": "sum" } })),
    ];
    for (code, command) in cases {
        let told = command.to_string();
        assert_eq!(client.error(command).await, code, "{told:.200}");
    }
    client.subscribe("open:y").await;
    client.is_quiet().await;
    assert_eq!(app.sql().count("events").await, 0);
}

pub(super) async fn a_token_out_of_time_is_to_be_renewed(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    for claims in [json!({ "exp": 1 }), json!({ "nbf": in_seconds(60) }), json!({ "expire_at": 1 })] {
        let mut client = Client::open(app.address()).await;
        let token = app.token(claims);
        assert_eq!(client.error(json!({ "connect": { "token": token } })).await, 109);
        client.command(subscribe("open:x")).await;
        assert_eq!(client.closed_with().await, 3501, "there is no second try");
    }
    let mut client = Client::connected(&app, &app.ana()).await;
    let token = |exp| app.token(json!({ "sub": "ana", "channel": "$open:x", "exp": exp }));
    let with = |name: &str, exp| json!({ name: { "channel": "$open:x", "token": token(exp) } });
    assert_eq!(client.error(with("subscribe", 1)).await, 109);
    let reply = client.ask(with("subscribe", in_seconds(60))).await;
    assert_eq!(reply["subscribe"]["expires"], true);
    assert_eq!(client.error(with("sub_refresh", 1)).await, 110);
    let ttl = client.ask(with("sub_refresh", in_seconds(600))).await["sub_refresh"]["ttl"].as_u64();
    assert!(ttl.is_some_and(|ttl| (590..=600).contains(&ttl)), "{ttl:?}");
}

pub(super) async fn a_place_that_is_gone_is_said(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    for n in 1..=3 {
        app.publish(json!({ "channel": "kept:x", "data": n })).await.expect(200);
    }
    let mut client = Client::connected(&app, &app.ana()).await;
    let epoch = client.subscribe("kept:x").await["epoch"].clone();
    client.ask(json!({ "unsubscribe": { "channel": "kept:x" } })).await;
    let from = |epoch: &Value, offset: u64, flag: u64| {
        let from =
            json!({ "channel": "kept:x", "recover": true, "epoch": epoch, "offset": offset, "flag": flag });
        json!({ "subscribe": from })
    };
    let other = json!("other");
    assert_eq!(client.error(from(&other, 1, 2)).await, 112);
    assert_eq!(client.error(from(&epoch, 4, 3)).await, 112, "nobody was there yet");
    let since = json!({ "channel": "kept:x", "since": { "epoch": "other", "offset": 1 } });
    assert_eq!(client.error(json!({ "history": since })).await, 112);
    // Who does not ask for the error goes on from here, and is told so too.
    let reply = client.ask(from(&other, 1, 1)).await["subscribe"].clone();
    assert_eq!((&reply["recovered"], &reply["publications"]), (&Value::Null, &Value::Null));
    assert_eq!((&reply["was_recovering"], &reply["offset"]), (&json!(true), &json!(3)));
    client.ask(json!({ "unsubscribe": { "channel": "kept:x" } })).await;
    let reply = client.ask(from(&epoch, 1, 2)).await["subscribe"].clone();
    assert_eq!((&reply["recovered"], &reply["publications"][0]["offset"]), (&json!(true), &json!(2)));
}

/// The connection outlives its store, and goes on where it was.
#[tokio::test]
async fn a_store_that_is_away() {
    a_store_that_is_away_is_our_fault(Backend::Postgres).await;
}

pub(super) async fn a_store_that_is_away_is_our_fault(_: Backend) {
    let proxy = Proxy::to(Database::server()).await.expect("a proxy");
    let options = format!("store.deadline = \"1s\"\n{SPACES}");
    let app = TestApp::on(Database::through(proxy.address).await, &options).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    client.subscribe("kept:x").await;
    for mode in [Link::Refused, Link::Stalled] {
        proxy.set(mode);
        for command in [
            subscribe("kept:y"),
            json!({ "publish": { "channel": "kept:x", "data": 1 } }),
            json!({ "history": { "channel": "kept:x", "limit": 1 } }),
        ] {
            let told = command.to_string();
            assert_eq!(client.error(command).await, 100, "{mode:?}: {told}");
        }
        client.is_quiet().await;
        proxy.set(Link::Open);
        app.until_metric("store_up", "", 1).await;
    }
    // A commit that nobody confirmed may have happened: what is in the log is told, in order.
    let kept = u64::try_from(app.sql().count("events").await).expect("a count");
    client.ask(json!({ "publish": { "channel": "kept:x", "data": "again" } })).await;
    for offset in 1..=kept + 1 {
        assert_eq!(client.push().await["pub"]["offset"], offset);
    }
    client.subscribe("kept:y").await;
    client.is_quiet().await;
}

on_both!(
    what_a_client_may_not_do_is_said,
    a_token_out_of_time_is_to_be_renewed,
    a_place_that_is_gone_is_said,
);
