//! What returning clients get is bounded, for a connection and for a node.

use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::support::app::{Backend, TestApp, on_both, stream_request};
use crate::support::client::DEADLINE;
use crate::support::sse::Stream;
use crate::support::websocket::Client;

const NEWS: &str = "client.recovery_max_size = \"300KiB\"
[[channel.namespaces]]
name = \"news\"
history_size = 100
history_ttl = \"1h\"
force_recovery = true
allow_subscribe_for_client = true
allow_history_for_client = true
";

fn channels(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("news:{number}")).collect()
}

/// Each channel has 120 KB.
async fn filled(backend: Backend, options: &str, count: usize) -> TestApp {
    let app = TestApp::with(backend, &format!("{options}{NEWS}")).await;
    for channel in channels(count) {
        for _ in 0..30 {
            app.result("publish", json!({ "channel": channel, "data": "x".repeat(4000) })).await;
        }
    }
    app
}

/// How many channels a client that comes back to all of them recovers, and how many events that are.
async fn recovered(app: &TestApp, user: &str, count: usize) -> (usize, usize) {
    let token = app.token(json!({ "sub": user, "channels": channels(count) }));
    let since = json!({ "recover": true, "epoch": "", "offset": 0 });
    let subs: Map<String, Value> =
        channels(count).into_iter().map(|channel| (channel, since.clone())).collect();
    let mut client = Client::open(app.address()).await;
    let reply = client.ask(json!({ "connect": { "token": token, "subs": subs } })).await;
    let subs = reply["connect"]["subs"].as_object().unwrap_or_else(|| panic!("{reply}"));
    assert_eq!(subs.len(), count);
    let whole: Vec<&Value> = subs.values().filter(|sub| sub["recovered"] == true).collect();
    let events = whole.iter().map(|sub| sub["publications"].as_array().map_or(0, Vec::len)).sum();
    (whole.len(), events)
}

async fn a_wide_token_gets_one_reply_and_not_one_for_each_channel(backend: Backend) {
    let app = filled(backend, "", 8).await;
    assert_eq!(recovered(&app, "ana", 8).await, (2, 60), "no more than 300 KiB");
    assert_eq!(recovered(&app, "ana", 2).await, (2, 60));
    app.until_metric("limit_used", "replies", 0).await;
}

on_both!(a_wide_token_gets_one_reply_and_not_one_for_each_channel);

#[tokio::test]
async fn large_replies_wait_for_each_other_and_all_come() {
    // Room for one.
    let app = filled(Backend::Sqlite, "limits.replies_in_flight = \"300KiB\"\n", 2).await;
    let users: Vec<String> = (0..12).map(|number| format!("user-{number}")).collect();
    let all = futures_util::future::join_all(users.iter().map(|user| recovered(&app, user, 2)));
    let all = timeout(DEADLINE, all).await.expect("all of them in time");
    assert!(all.iter().all(|found| *found == (2, 60)), "{all:?}");
    app.until_metric("limit_used", "replies", 0).await;
}

#[tokio::test]
async fn history_of_one_reply_fits_into_the_same_room() {
    let app = filled(Backend::Sqlite, "", 1).await;
    let mut client = Client::connected(&app, &app.token(json!({ "sub": "ana" }))).await;
    client.subscribe("news:0").await;
    let history = json!({ "history": { "channel": "news:0", "limit": 30 } });
    for _ in 0..3 {
        let reply = client.ask(history.clone()).await;
        assert_eq!(reply["history"]["publications"].as_array().map(Vec::len), Some(30), "{reply}");
    }
    app.until_metric("limit_used", "replies", 0).await;
}

#[tokio::test]
async fn a_stream_of_many_channels_replays_all_of_them() {
    let app = filled(Backend::Sqlite, "", 8).await;
    let names = channels(8).join(",");
    let heads = app.stream(&names, &app.token(json!({ "sub": "ana" })), None).await;
    drop(heads);
    let cursor = app.poll("channel=news:0&limit=1", &app.token(json!({ "sub": "ana" }))).await;
    assert!(cursor["cursor"].is_string(), "{cursor}");
    let request = stream_request("news:0", &app.token(json!({ "sub": "ana" })), cursor["cursor"].as_str());
    let mut stream = Stream::open(app.address(), &request).await.expect("a stream");
    for offset in 2..=30 {
        let frame = stream.next_event().await;
        assert!(frame.id.as_deref().is_some_and(|id| id.ends_with(&format!(".{offset}"))), "{frame:?}");
    }
}
