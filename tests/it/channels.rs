//! What the options of a namespace do to its channels, as clients meet it: who gets in, what may be
//! published, what recovery brings, and how data comes.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::websocket::Client;

async fn publish(app: &TestApp, channel: &str, data: Value) {
    app.result("publish", json!({ "channel": channel, "data": data })).await;
}

async fn connected(app: &TestApp, user: &str) -> (Client, Value) {
    let mut client = Client::open(app.address()).await;
    let connect = client.connect(&app.token(json!({ "sub": user }))).await;
    (client, connect)
}

const NAMESPACES: &str = "
[[channel.namespaces]]
name = \"open\"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_user_limited_channels = true
channel_regex = \"^[a-z#,0-9]+$\"
publication_data_format = \"json_object\"
";

async fn private_channels_need_a_token_of_their_own(backend: Backend) {
    let app = TestApp::with(backend, NAMESPACES).await;
    let (mut ana, _) = connected(&app, "ana").await;
    let subscribe = |token: String| json!({ "subscribe": { "channel": "$open:room", "token": token } });
    assert_eq!(ana.error(subscribe(String::new())).await, 103);
    let token = app.token(json!({ "sub": "ana", "channel": "$open:room" }));
    assert!(ana.ask(subscribe(token)).await["subscribe"].is_object());
    let foreign = app.token(json!({ "sub": "bob", "channel": "$open:room" }));
    let (mut bob, _) = connected(&app, "bob").await;
    assert!(bob.ask(subscribe(foreign)).await["subscribe"].is_object());
    let (mut eve, _) = connected(&app, "eve").await;
    eve.command(subscribe(app.token(json!({ "sub": "bob", "channel": "$open:room" })))).await;
    assert_eq!(eve.closed_with().await, 3500);
}

async fn a_list_of_users_is_the_only_way_in(backend: Backend) {
    let app = TestApp::with(backend, NAMESPACES).await;
    for (user, channel, admitted) in [
        ("42", "open:dialog#42,43", true),
        ("43", "open:dialog#42,43", true),
        ("4", "open:dialog#42,43", false),
        ("42,43", "open:dialog#42,43", false),
        ("42", "open:dialog#", false),
    ] {
        let (mut client, _) = connected(&app, user).await;
        let reply = client.ask(json!({ "subscribe": { "channel": channel } })).await;
        assert_eq!(reply["subscribe"].is_object(), admitted, "{user} {channel} {reply}");
        assert!(admitted || reply["error"]["code"] == 103, "{reply}");
    }
}

async fn names_and_data_are_what_the_operator_wants(backend: Backend) {
    let app = TestApp::with(backend, NAMESPACES).await;
    let (mut ana, _) = connected(&app, "ana").await;
    assert_eq!(ana.error(json!({ "subscribe": { "channel": "open:ROOM" } })).await, 107);
    ana.subscribe("open:room").await;
    let publish = |data: Value| json!({ "publish": { "channel": "open:room", "data": data } });
    for bad in [json!(1), json!("{}"), json!([{}]), Value::Bool(true)] {
        assert_eq!(ana.error(publish(bad.clone())).await, 107, "{bad}");
        let body = json!({ "channel": "open:room", "data": bad });
        assert_eq!(app.call("publish", body).await.json()["error"]["code"], 107);
    }
    ana.ask(publish(json!({ "n": 1 }))).await;
    assert_eq!(ana.push().await["pub"]["data"], json!({ "n": 1 }));
    for method in ["publish", "subscribe"] {
        let body = json!({ "channel": "open:ROOM", "data": {}, "user": "ana" });
        assert_eq!(app.call(method, body).await.json()["error"]["code"], 107, "{method}");
    }
}

fn personal(more: &str) -> String {
    format!(
        "[client.subscribe_to_user_personal_channel]
enabled = true
{more}
[channel.without_namespace]
history_size = 10
history_ttl = \"1h\"
force_recovery = true
[[channel.namespaces]]
name = \"mail\"
"
    )
}

async fn a_notification_waits_for_its_user_if_nothing_is_configured(backend: Backend) {
    let app = TestApp::with(backend, "[client.subscribe_to_user_personal_channel]\nenabled = true").await;
    publish(&app, "#ana", json!("before")).await;
    let (mut ana, connect) = connected(&app, "ana").await;
    let own = &connect["subs"]["#ana"];
    assert_eq!((&own["recoverable"], &own["offset"]), (&json!(true), &json!(1)), "{connect}");
    publish(&app, "#ana", json!("live")).await;
    assert_eq!(ana.push().await, json!({ "channel": "#ana", "pub": { "data": "live", "offset": 2 } }));
    let history = app.call("history", json!({ "channel": "#ana", "limit": 10 })).await.json();
    let publications = history["result"]["publications"].as_array().map(Vec::len);
    assert_eq!(publications, Some(2), "{history}");
    // Others without a namespace have nothing.
    let history = app.call("history", json!({ "channel": "ana", "limit": 10 })).await.json();
    assert_eq!(history["error"]["code"], 108, "{history}");
}

async fn every_user_has_a_channel_of_its_own(backend: Backend) {
    let app = TestApp::with(backend, &personal("")).await;
    let (mut ana, connect) = connected(&app, "ana").await;
    assert_eq!(connect["subs"]["#ana"]["recoverable"], true, "{connect}");
    let (mut bob, connect) = connected(&app, "bob").await;
    assert_eq!(
        connect["subs"].as_object().map(|subs| subs.keys().cloned().collect::<Vec<_>>()),
        Some(vec!["#bob".to_owned()])
    );
    publish(&app, "#ana", json!("for ana")).await;
    assert_eq!(ana.push().await, json!({ "channel": "#ana", "pub": { "data": "for ana", "offset": 1 } }));
    bob.is_quiet().await;
    assert_eq!(bob.error(json!({ "subscribe": { "channel": "#ana" } })).await, 103);
    let (_, connect) = connected(&app, "").await;
    assert!(connect["subs"].is_null(), "nobody has none");
    let (_, connect) = connected(&app, "a,b").await;
    assert!(connect["subs"].is_null(), "a list is nobody");

    // Who comes back gets what came meanwhile.
    publish(&app, "#ana", json!("missed")).await;
    let since = json!({ "#ana": { "recover": true, "epoch": "", "offset": 1 } });
    let mut again = Client::open(app.address()).await;
    let token = app.token(json!({ "sub": "ana" }));
    let reply = again.ask(json!({ "connect": { "token": token, "subs": since } })).await;
    let own = &reply["connect"]["subs"]["#ana"];
    assert_eq!(
        (&own["recovered"], &own["publications"][0]["data"]),
        (&json!(true), &json!("missed")),
        "{reply}"
    );

    let app = TestApp::with(backend, &personal("personal_channel_namespace = \"mail\"")).await;
    let (_, connect) = connected(&app, "ana").await;
    assert_eq!(connect["subs"], json!({ "mail:#ana": {} }));
}

async fn a_new_connection_ends_the_older_ones(backend: Backend) {
    let app = TestApp::with(backend, &personal("single_connection = true")).await;
    let (mut first, _) = connected(&app, "ana").await;
    let (mut bob, _) = connected(&app, "bob").await;
    let (mut second, _) = connected(&app, "ana").await;
    assert_eq!(first.closed().await, (3504, "connection limit".to_owned()));
    let (mut third, _) = connected(&app, "ana").await;
    assert_eq!(second.closed_with().await, 3504);
    for _ in 0..2 {
        drop(connected(&app, "").await);
    }
    third.is_quiet().await;
    bob.is_quiet().await;
}

const CACHE: &str = "
[[channel.namespaces]]
name = \"state\"
history_size = 5
history_ttl = \"1h\"
force_recovery = true
force_recovery_mode = \"cache\"
allow_subscribe_for_client = true
[[channel.namespaces]]
name = \"auto\"
history_size = 5
history_ttl = \"1h\"
force_recovery = true
force_recovery_mode = \"cache\"
auto_cache_recover = true
allow_subscribe_for_client = true
";

async fn a_cache_brings_the_latest_publication(backend: Backend) {
    let app = TestApp::with(backend, CACHE).await;
    let (mut ana, _) = connected(&app, "ana").await;
    let recover = |channel: &str, offset: u64, epoch: &str| json!({ "subscribe": { "channel": channel, "recover": true, "offset": offset, "epoch": epoch } });
    let leave = |channel: &str| json!({ "unsubscribe": { "channel": channel } });
    let empty = ana.ask(recover("state:x", 0, "")).await["subscribe"].clone();
    assert_eq!((&empty["recovered"], &empty["was_recovering"]), (&Value::Null, &json!(true)));
    ana.ask(leave("state:x")).await;
    for n in 1..=9 {
        publish(&app, "state:x", json!({ "n": n })).await;
    }
    let latest = json!([{ "data": { "n": 9 }, "offset": 9 }]);
    let mut epoch = String::new();
    for offset in [0, 1, 8] {
        let found = ana.ask(recover("state:x", offset, &epoch)).await["subscribe"].clone();
        assert_eq!((&found["recovered"], &found["publications"]), (&json!(true), &latest), "{found}");
        epoch = found["epoch"].as_str().expect("an epoch").to_owned();
        ana.ask(leave("state:x")).await;
    }
    let had = ana.ask(recover("state:x", 9, &epoch)).await["subscribe"].clone();
    assert_eq!((&had["recovered"], &had["publications"]), (&json!(true), &Value::Null), "{had}");
    publish(&app, "state:x", json!({ "n": 10 })).await;
    assert_eq!(ana.push().await["pub"]["offset"], 10);

    publish(&app, "auto:x", json!({ "n": 1 })).await;
    let found = ana.subscribe("auto:x").await;
    assert_eq!(found["publications"], json!([{ "data": { "n": 1 }, "offset": 1 }]), "without asking");
    publish(&app, "auto:x", json!({ "n": 2 })).await;
    assert_eq!(ana.push().await["pub"]["offset"], 2);
}

const FILTERED: &str = "
[[channel.namespaces]]
name = \"news\"
history_size = 20
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true
allow_tags_filter = true
allowed_delta_types = [\"fossil\"]
delta_publish = true
[[channel.namespaces]]
name = \"plain\"
history_size = 20
history_ttl = \"1h\"
allow_subscribe_for_client = true
";

async fn a_filter_lets_through_what_is_wanted(backend: Backend) {
    let app = TestApp::with(backend, FILTERED).await;
    let tagged = |n: u64, color: &str| {
        let body = json!({ "channel": "news:x", "data": n, "tags": { "color": color } });
        app.result("publish", body)
    };
    let filter = json!({ "key": "color", "cmp": "eq", "val": "red" });
    let subscribe = |filter: Value| json!({ "subscribe": { "channel": "news:x", "tf": filter } });
    let (mut ana, _) = connected(&app, "ana").await;
    let (mut bob, _) = connected(&app, "bob").await;
    assert!(ana.ask(subscribe(filter.clone())).await["subscribe"].is_object());
    bob.subscribe("news:x").await;
    for (n, color) in [(1, "red"), (2, "blue"), (3, "blue"), (4, "red")] {
        tagged(n, color).await;
    }
    publish(&app, "news:x", json!(5)).await;
    app.result(
        "publish",
        json!({ "channel": "news:x", "data": 6, "tags": { "color": "red" }, "skip_history": true }),
    )
    .await;
    for n in [1, 4, 6] {
        assert_eq!(ana.push().await["pub"]["data"], n);
    }
    for n in 1..=6 {
        assert_eq!(bob.push().await["pub"]["data"], n);
    }
    ana.is_quiet().await;

    ana.ask(json!({ "unsubscribe": { "channel": "news:x" } })).await;
    let back = json!({ "subscribe": { "channel": "news:x", "tf": filter, "recover": true, "offset": 0, "epoch": "" } });
    let back = ana.ask(back).await["subscribe"].clone();
    let data: Vec<_> =
        back["publications"].as_array().expect("a list").iter().map(|one| one["data"].clone()).collect();
    assert_eq!((data, &back["recovered"]), (vec![json!(1), json!(4)], &json!(true)));
    tagged(7, "red").await;
    assert_eq!(ana.push().await["pub"]["offset"], 6, "nothing is missing, though it was not sent");

    let (mut eve, _) = connected(&app, "eve").await;
    assert_eq!(eve.error(subscribe(json!({ "cmp": "eq" }))).await, 107);
    let elsewhere = json!({ "subscribe": { "channel": "plain:x", "tf": filter } });
    assert_eq!(eve.error(elsewhere).await, 107);
}

/// What a client has after a publication that takes differences.
fn apply(had: &mut String, publication: &Value) -> Value {
    let text = publication["data"].as_str().expect("a text");
    *had = if publication["delta"] == true { patched(had, text) } else { text.to_owned() };
    serde_json::from_str(had).expect("JSON")
}

/// A delta of the format of Fossil applied, by its grammar.
fn patched(base: &str, delta: &str) -> String {
    const DIGITS: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
    let number = |text: &str| {
        let end = text.find(|c| !DIGITS.contains(c)).expect("a mark");
        let value = |sum: usize, c: char| sum * 64 + DIGITS.find(c).unwrap_or(0);
        (text[..end].chars().fold(0, value), end)
    };
    let (length, end) = number(delta);
    let (mut rest, mut target) = (&delta[end + 1..], String::new());
    loop {
        let (count, end) = number(rest);
        let mark = rest.as_bytes()[end];
        rest = &rest[end + 1..];
        match mark {
            b'@' => {
                let (from, end) = number(rest);
                target.push_str(&base[from..from + count]);
                rest = &rest[end + 1..];
            }
            b':' => {
                target.push_str(&rest[..count]);
                rest = &rest[count..];
            }
            _ => break,
        }
    }
    assert_eq!(target.len(), length);
    target
}

async fn data_comes_as_differences_to_who_asks(backend: Backend) {
    let app = TestApp::with(backend, FILTERED).await;
    let state = |n: u64| json!({ "title": "a long text that stays as it is, ä and all", "rows": vec!["same"; 30], "n": n });
    let subscribe = json!({ "subscribe": { "channel": "news:x", "delta": "fossil" } });
    let (mut ana, _) = connected(&app, "ana").await;
    let (mut bob, _) = connected(&app, "bob").await;
    assert_eq!(ana.ask(subscribe.clone()).await["subscribe"]["delta"], true);
    bob.subscribe("news:x").await;
    let (mut had, mut kinds) = (String::new(), Vec::new());
    for n in 1..=3 {
        publish(&app, "news:x", state(n)).await;
        let told = ana.push().await["pub"].clone();
        kinds.push(told["delta"] == true);
        assert_eq!(apply(&mut had, &told), state(n), "{told}");
        assert_eq!(bob.push().await["pub"], json!({ "data": state(n), "offset": n }));
    }
    assert_eq!(kinds, [false, true, true]);

    // What is not kept is told whole, and what follows it too.
    app.result("publish", json!({ "channel": "news:x", "data": state(77), "skip_history": true })).await;
    publish(&app, "news:x", state(4)).await;
    for n in [77, 4] {
        let told = ana.push().await["pub"].clone();
        assert_eq!((apply(&mut had, &told), &told["delta"]), (state(n), &Value::Null));
    }
    // What has nothing in common as well.
    publish(&app, "news:x", json!(1)).await;
    let told = ana.push().await["pub"].clone();
    assert_eq!((apply(&mut had, &told), &told["delta"]), (json!(1), &Value::Null));

    ana.ask(json!({ "unsubscribe": { "channel": "news:x" } })).await;
    let back = json!({ "subscribe": { "channel": "news:x", "delta": "fossil", "recover": true, "offset": 1, "epoch": "" } });
    let back = ana.ask(back).await["subscribe"].clone();
    let publications = back["publications"].as_array().expect("a list");
    let told: Vec<Value> = publications.iter().map(|one| apply(&mut had, one)).collect();
    assert_eq!(told, [state(2), state(3), state(4), json!(1)]);
    assert_eq!((&publications[0]["delta"], &publications[1]["delta"]), (&Value::Null, &json!(true)));
    publish(&app, "news:x", state(9)).await;
    assert_eq!(apply(&mut had, &ana.push().await["pub"]), state(9));

    let elsewhere = json!({ "subscribe": { "channel": "plain:x", "delta": "fossil" } });
    assert_eq!(ana.ask(elsewhere).await["subscribe"]["delta"], Value::Null, "not everywhere");
    publish(&app, "plain:x", state(1)).await;
    assert_eq!(ana.push().await["pub"]["data"], state(1));
}

async fn a_filter_and_differences_go_together(backend: Backend) {
    let app = TestApp::with(backend, FILTERED).await;
    let filter = json!({ "key": "color", "cmp": "eq", "val": "red" });
    let state = |n: u64| json!({ "rows": vec!["a row that is always the same"; 9], "n": n });
    let (mut ana, _) = connected(&app, "ana").await;
    ana.ask(json!({ "subscribe": { "channel": "news:x", "delta": "fossil", "tf": filter } })).await;
    let mut had = String::new();
    for (n, color, delta) in
        [(1, "red", false), (2, "red", true), (3, "blue", false), (4, "red", false), (5, "red", true)]
    {
        let body = json!({ "channel": "news:x", "data": state(n), "tags": { "color": color } });
        app.result("publish", body).await;
        if color == "red" {
            let told = ana.push().await["pub"].clone();
            assert_eq!((apply(&mut had, &told), told["delta"] == true), (state(n), delta), "{n}");
        }
    }
}

on_both!(
    private_channels_need_a_token_of_their_own,
    a_list_of_users_is_the_only_way_in,
    names_and_data_are_what_the_operator_wants,
    every_user_has_a_channel_of_its_own,
    a_notification_waits_for_its_user_if_nothing_is_configured,
    a_new_connection_ends_the_older_ones,
    a_cache_brings_the_latest_publication,
    a_filter_lets_through_what_is_wanted,
    data_comes_as_differences_to_who_asks,
    a_filter_and_differences_go_together,
);
