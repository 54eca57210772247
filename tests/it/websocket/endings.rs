//! Subscriptions and connections that the server ends: by their tokens, or because their history is
//! no more what it was.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, in_seconds, on_both, token_by};
use crate::support::websocket::Client;

const SPACES: &str = "
client.expired_close_delay = \"50ms\"
client.expired_sub_close_delay = \"50ms\"
channel.position_check_interval = \"100ms\"
[[channel.namespaces]]
name = \"kept\"
history_size = 100
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true

[[channel.namespaces]]
name = \"loose\"
history_size = 100
history_ttl = \"1h\"
allow_subscribe_for_client = true
";

async fn publish(app: &TestApp, channel: &str, data: u64) {
    app.publish(json!({ "channel": channel, "data": data })).await.expect(200);
}

fn unsubscribe(channel: &str, code: u64, reason: &str) -> Value {
    json!({ "channel": channel, "unsubscribe": { "code": code, "reason": reason } })
}

pub(super) async fn a_new_token_can_take_a_right_away(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let token = |orgs: &[&str]| app.token(json!({ "sub": "ana", "orgs": orgs, "exp": in_seconds(60) }));
    let mut client = Client::connected(&app, &token(&["acme", "globex"])).await;
    client.subscribe("org:acme").await;
    client.subscribe("org:globex").await;
    client.subscribe("kept:x").await;
    let reply = client.ask(json!({ "refresh": { "token": token(&["globex"]) } })).await;
    assert_eq!(reply["refresh"]["expires"], true);
    assert_eq!(client.push().await, unsubscribe("org:acme", 2000, "server unsubscribe"));
    app.post_runs(1..=3).await;
    publish(&app, "kept:x", 1).await;
    assert_eq!(client.push().await["channel"], "kept:x", "nothing of acme follows");
    assert_eq!(client.error(json!({ "subscribe": { "channel": "org:acme" } })).await, 103);
    client.is_quiet().await;
}

/// The log of `channel` is cut back to `offset`, as by a failover that lost commits.
async fn lose_after(app: &TestApp, channel: &str, offset: u64) {
    let lost = format!(
        "DELETE FROM events WHERE channel = '{channel}' AND \"offset\" > {offset};
         UPDATE channels SET head = {offset} WHERE name = '{channel}';"
    );
    app.sql().execute(&lost).await;
}

pub(super) async fn a_replaced_history_ends_who_follows_it(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    let first = client.subscribe("kept:x").await;
    assert!(client.subscribe("loose:x").await["positioned"].is_null());
    let by_token = app.token(json!({ "sub": "ben", "channels": ["kept:x"] }));
    let mut server_side = Client::connected(&app, &by_token).await;
    for n in 1..=5 {
        for channel in ["kept:x", "loose:x"] {
            publish(&app, channel, n).await;
            assert_eq!(client.push().await["pub"]["data"], n);
        }
    }
    lose_after(&app, "kept:x", 2).await;
    assert_eq!(client.push().await, unsubscribe("kept:x", 2500, "insufficient state"));
    assert_eq!(server_side.closed().await, (3010, "insufficient state".to_owned()));
    // Who never asked for positions hears nothing, and goes on.
    lose_after(&app, "loose:x", 2).await;
    let metric = app.until_metric("channel_resets", "", 2);
    metric.await;
    publish(&app, "loose:x", 6).await;
    publish(&app, "kept:x", 7).await;
    let push = client.push().await;
    assert_eq!((&push["channel"], &push["pub"]["data"]), (&json!("loose:x"), &json!(6)));
    // It comes back with the place it knew, and is told that it begins anew.
    let from = json!({ "channel": "kept:x", "recover": true, "epoch": first["epoch"], "offset": 2 });
    let reply = client.ask(json!({ "subscribe": from })).await["subscribe"].clone();
    assert_ne!(reply["epoch"], first["epoch"]);
    assert_eq!((&reply["recovered"], &reply["offset"]), (&Value::Null, &json!(3)));
    publish(&app, "kept:x", 8).await;
    assert_eq!(client.push().await["pub"], json!({ "data": 8, "offset": 4 }));
    client.is_quiet().await;
}

async fn who_begins_anew_does_so_in_the_history_of_now(backend: Backend) {
    let app = TestApp::with(backend, &SPACES.replace("100ms", "1h")).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    let first = client.subscribe("kept:x").await;
    for n in 1..=3 {
        publish(&app, "kept:x", n).await;
        assert_eq!(client.push().await["pub"]["data"], n);
    }
    // As after a failover: the channel that the first client keeps here has yet to hear of it.
    app.sql().execute("UPDATE channels SET epoch = 'later' WHERE name = 'kept:x'").await;
    let mut other = Client::connected(&app, &app.ana()).await;
    for offset in [1, 3, 9] {
        let from = json!({ "channel": "kept:x", "recover": true, "epoch": first["epoch"], "offset": offset });
        let reply = other.ask(json!({ "subscribe": from })).await["subscribe"].clone();
        assert_eq!((&reply["recovered"], &reply["offset"]), (&Value::Null, &json!(3)), "{reply}");
        assert_ne!(reply["epoch"], first["epoch"], "{reply}");
        other.ask(json!({ "unsubscribe": { "channel": "kept:x" } })).await;
    }
}

pub(super) async fn what_is_not_renewed_ends(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    let soon = in_seconds(3);
    let token = app.token(json!({ "sub": "ana", "channel": "$kept:x", "exp": soon }));
    let reply = client.ask(json!({ "subscribe": { "channel": "$kept:x", "token": token } })).await;
    assert_eq!(reply["subscribe"]["expires"], true);
    let mut brief = Client::connected(&app, &app.token(json!({ "sub": "ben", "exp": soon }))).await;
    publish(&app, "$kept:x", 1).await;
    assert_eq!(client.push().await["pub"]["offset"], 1);
    assert_eq!(client.push().await, unsubscribe("$kept:x", 2501, "subscription expired"));
    assert!(chrono::Utc::now().timestamp() >= soon);
    publish(&app, "$kept:x", 2).await;
    client.is_quiet().await;
    assert_eq!(brief.closed().await, (3005, "connection expired".to_owned()));
}

pub(super) async fn tokens_that_cannot_be_end_the_connection(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let many: Vec<String> = (0..129).map(|n| format!("kept:{n}")).collect();
    let ben = app.token(json!({ "sub": "ben", "exp": in_seconds(60) }));
    let first = [
        (3500, "x".to_owned()),
        (3500, token_by("another secret of somebody else, long enough", &json!({ "sub": "ana" }))),
        (3500, app.token(json!({ "sub": "ana", "channel": "kept:x" }))),
        (3500, app.token(json!({ "sub": 7 }))),
        (3501, String::new()),
        (3505, app.token(json!({ "sub": "ana", "channels": many }))),
    ];
    for (code, token) in first {
        let mut client = Client::open(app.address()).await;
        client.command(json!({ "connect": { "token": token } })).await;
        assert_eq!(client.closed_with().await, code, "{token:.60}");
    }
    let foreign = app.token(json!({ "sub": "ben", "channel": "kept:x" }));
    let elsewhere = app.token(json!({ "sub": "ana", "channel": "kept:y" }));
    let later = [
        (3500, json!({ "subscribe": { "channel": "kept:x", "token": foreign } })),
        (3500, json!({ "subscribe": { "channel": "kept:x", "token": elsewhere } })),
        (3500, json!({ "refresh": { "token": ben } })),
        (3500, json!({ "refresh": { "token": "x" } })),
        (3501, json!({ "refresh": { "token": "" } })),
        (3005, json!({ "refresh": { "token": app.token(json!({ "sub": "ana", "exp": 1 })) } })),
        (3508, json!({ "send": { "data": 1 } })),
    ];
    for (code, command) in later {
        let ana = app.token(json!({ "sub": "ana", "exp": in_seconds(60) }));
        let mut client = Client::connected(&app, &ana).await;
        let told = command.to_string();
        client.command(command).await;
        assert_eq!(client.closed_with().await, code, "{told}");
    }
    app.until_metric("connections", "websocket", 0).await;
}

on_both!(
    a_new_token_can_take_a_right_away,
    a_replaced_history_ends_who_follows_it,
    who_begins_anew_does_so_in_the_history_of_now,
    what_is_not_renewed_ends,
    tokens_that_cannot_be_end_the_connection,
);
