//! What the server API does to the subscriptions and lives of clients: `subscribe`, `unsubscribe`,
//! `refresh`; and what it says about a node: `channels`, `info`, `rpc`.

use serde_json::json;

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::websocket::Client;

const SPACES: &str = "client.channel_limit = 2
[[channel.namespaces]]
name = \"news\"
history_size = 10
history_ttl = \"1h\"
force_recovery = true
[[channel.namespaces]]
name = \"lobby\"
presence = true
[[channel.namespaces]]
name = \"open\"
allow_subscribe_for_client = true
";

async fn connected(app: &TestApp, user: &str) -> (Client, String) {
    let mut client = Client::open(app.address()).await;
    let connect = client.connect(&app.token(json!({ "sub": user }))).await;
    let id = connect["client"].as_str().expect("an id").to_owned();
    (client, id)
}

async fn clients_are_subscribed_without_asking(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let (mut ana, id) = connected(&app, "ana").await;
    let (mut other, _) = connected(&app, "ana").await;
    let (mut bob, _) = connected(&app, "bob").await;
    let epoch = app.result("publish", json!({ "channel": "news:x", "data": 1 })).await["epoch"].clone();

    let asked = json!({ "user": "ana", "client": id, "channel": "news:x", "data": { "hello": 1 } });
    assert_eq!(app.result("subscribe", asked.clone()).await, json!({}));
    let told = json!({
        "channel": "news:x",
        "subscribe": { "recoverable": true, "positioned": true, "epoch": epoch, "offset": 1, "data": { "hello": 1 } },
    });
    assert_eq!(ana.push().await, told);
    app.result("publish", json!({ "channel": "news:x", "data": 2 })).await;
    assert_eq!(ana.push().await["pub"], json!({ "data": 2, "offset": 2 }));
    assert_eq!(app.result("subscribe", asked).await, json!({}), "once is enough");
    ana.is_quiet().await;

    // Everybody of the name, and only these.
    app.result("subscribe", json!({ "user": "ana", "channel": "lobby:1", "info": { "n": 7 } })).await;
    assert_eq!(ana.push().await["channel"], "lobby:1");
    assert_eq!(other.push().await["channel"], "lobby:1");
    bob.is_quiet().await;
    let presence = app.result("presence", json!({ "channel": "lobby:1" })).await;
    let shown = json!({ "user": "ana", "client": id, "chan_info": { "n": 7 } });
    assert_eq!(presence["presence"][&id], shown);
    assert_eq!(presence["presence"].as_object().map(serde_json::Map::len), Some(2));
    assert_eq!(ana.error(json!({ "subscribe": { "channel": "lobby:1" } })).await, 105);

    assert_eq!(app.result("subscribe", json!({ "user": "nobody", "channel": "news:x" })).await, json!({}));
    for (body, code) in [
        (json!({ "user": "ana", "channel": "nobody:knows" }), 102),
        (json!({ "user": "ana" }), 107),
        (json!({ "user": "ana", "channel": "news:x", "b64info": "!" }), 107),
        (json!({ "user": "ana", "channel": "news:x", "expire_at": 1 }), 110),
    ] {
        assert_eq!(app.error("subscribe", body).await, code);
    }
    app.call("subscribe", json!({ "channel": "news:x" })).await.refused(400, "bad_request");
}

async fn what_was_missed_follows_the_push(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let (mut ana, _) = connected(&app, "ana").await;
    for n in 1..=4 {
        app.result("publish", json!({ "channel": "news:x", "data": n })).await;
    }
    let since = json!({ "user": "ana", "channel": "news:x", "recover_since": { "offset": 2, "epoch": "" } });
    app.result("subscribe", since).await;
    assert_eq!(ana.push().await["subscribe"]["offset"], 2);
    app.result("publish", json!({ "channel": "news:x", "data": 5 })).await;
    for n in 3..=5 {
        assert_eq!(ana.push().await["pub"], json!({ "data": n, "offset": n }));
    }
}

async fn one_subscription_too_many_ends_the_connection(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let (mut ana, _) = connected(&app, "ana").await;
    for channel in ["lobby:1", "lobby:2", "lobby:3"] {
        app.result("subscribe", json!({ "user": "ana", "channel": channel })).await;
    }
    assert_eq!(ana.closed().await, (3505, "channel limit".to_owned()));
}

async fn clients_are_unsubscribed(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let (mut ana, id) = connected(&app, "ana").await;
    ana.subscribe("open:1").await;
    app.result("subscribe", json!({ "user": "ana", "channel": "lobby:1" })).await;
    ana.push().await;
    let gone = |channel: &str| json!({ "channel": channel, "unsubscribe": { "code": 2000, "reason": "server unsubscribe" } });
    let nobody = json!({ "user": "ana", "channel": "open:1", "client": uuid::Uuid::nil() });
    assert_eq!(app.result("unsubscribe", nobody).await, json!({}));
    ana.is_quiet().await;
    let one = json!({ "user": "ana", "channel": "open:1", "session": id });
    assert_eq!(app.result("unsubscribe", one.clone()).await, json!({}));
    assert_eq!(ana.push().await, gone("open:1"));
    assert_eq!(app.result("unsubscribe", one).await, json!({}));
    app.result("publish", json!({ "channel": "open:1", "data": 1 })).await;
    ana.is_quiet().await;

    ana.subscribe("open:1").await;
    app.result("unsubscribe", json!({ "user": "ana", "channel": "" })).await;
    let both = [ana.push().await, ana.push().await];
    assert!(both.contains(&gone("open:1")) && both.contains(&gone("lobby:1")), "{both:?}");
    assert_eq!(app.error("unsubscribe", json!({ "user": "ana", "channel": "nobody:knows" })).await, 102);
}

async fn connections_live_longer_or_shorter(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let (mut ana, id) = connected(&app, "ana").await;
    let (mut bob, _) = connected(&app, "bob").await;
    let until = chrono::Utc::now().timestamp() + 600;
    let body = json!({ "user": "ana", "client": id, "expire_at": until, "info": { "name": "Ana" } });
    assert_eq!(app.result("refresh", body).await, json!({}));
    let push = ana.push().await;
    let ttl = push["refresh"]["ttl"].as_u64().expect("a ttl");
    assert!(push["refresh"]["expires"] == true && (590..=600).contains(&ttl), "{push}");
    app.result("subscribe", json!({ "user": "ana", "channel": "lobby:1" })).await;
    ana.push().await;
    let presence = app.result("presence", json!({ "channel": "lobby:1" })).await;
    assert_eq!(presence["presence"][&id]["conn_info"], json!({ "name": "Ana" }));

    app.result("refresh", json!({ "user": "ana" })).await;
    assert_eq!(ana.push().await, json!({ "refresh": {} }), "for ever");
    bob.is_quiet().await;
    app.result("refresh", json!({ "user": "ana", "expired": true })).await;
    assert_eq!(ana.closed().await, (3005, "connection expired".to_owned()));
    app.result("refresh", json!({ "user": "bob", "expire_at": 1 })).await;
    assert_eq!(bob.closed_with().await, 3005);
}

async fn a_node_says_what_it_carries(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    assert_eq!(app.result("channels", json!({})).await, json!({ "channels": {} }));
    let mut clients = Vec::new();
    for (user, channels) in
        [("ana", ["open:1", "open:2"]), ("ana", ["open:1", "open:22"]), ("bob", ["open:1", "open:3"])]
    {
        let (mut client, _) = connected(&app, user).await;
        for channel in channels {
            client.subscribe(channel).await;
        }
        clients.push(client);
    }
    let count = |clients: u64| json!({ "num_clients": clients });
    let all = json!({ "open:1": count(3), "open:2": count(1), "open:22": count(1), "open:3": count(1) });
    for pattern in ["", "*", "open:*"] {
        assert_eq!(app.result("channels", json!({ "pattern": pattern })).await["channels"], all);
    }
    let some = app.result("channels", json!({ "pattern": "*:2*" })).await;
    assert_eq!(some["channels"], json!({ "open:2": count(1), "open:22": count(1) }));
    assert_eq!(app.error("channels", json!({ "pattern": "[" })).await, 107);

    let info = app.result("info", json!({})).await;
    let node = &info["nodes"][0];
    for (field, number) in [("num_clients", 3), ("num_users", 2), ("num_channels", 4), ("num_subs", 6)] {
        assert_eq!(node[field], number, "{field}: {info}");
    }
    assert!(node["uid"].is_string() && node["name"].is_string() && node["version"].is_string(), "{info}");
    assert_eq!(app.error("rpc", json!({ "method": "sum" })).await, 104);
    drop(clients);
}

on_both!(
    clients_are_subscribed_without_asking,
    what_was_missed_follows_the_push,
    one_subscription_too_many_ends_the_connection,
    clients_are_unsubscribed,
    connections_live_longer_or_shorter,
    a_node_says_what_it_carries,
);
