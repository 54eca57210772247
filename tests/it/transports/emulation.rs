//! What clients post: to which node and session, in any order, from many connections at once, and
//! more than may wait.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{SPACES, over, start};
use crate::support::app::{Backend, TestApp};
use crate::support::client::Request;
use crate::support::stream_client::StreamClient;

async fn a_post_finds_its_session_or_its_node_does_not_exist(transport: &str) {
    let app = start().await;
    let lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
    let post = |session: &str, node: &str| {
        let body = json!({ "session": session, "node": node, "data": "{}" });
        Request::post("/emulation").json(&body)
    };
    for node in ["", "x", &Uuid::new_v4().to_string(), &lines.node.to_uppercase()] {
        app.send(post(&lines.session, node)).await.refused(404, "not_found");
    }
    let info = app.call("info", json!({})).await.expect(200).json();
    assert_eq!(info["result"]["nodes"][0]["uid"], lines.node.as_str(), "one node, one id");
    // Who guesses a session learns nothing.
    app.send(post(&Uuid::new_v4().simple().to_string(), &lines.node)).await.expect(204);
    for impossible in ["", "x"] {
        app.send(post(impossible, &lines.node)).await.refused(404, "not_found");
    }
    app.send(post(&lines.session, &lines.node)).await.expect(204);
    let bad = [
        json!({}),
        json!([]),
        json!({ "session": lines.session, "node": lines.node }),
        json!({ "session": lines.session, "node": lines.node, "data": { "id": 2 } }),
        json!({ "session": 1, "node": lines.node, "data": "" }),
    ];
    for body in bad {
        app.send(Request::post("/emulation").json(&body)).await.refused(400, "bad_post");
    }
    app.send(Request::post("/emulation").body("{")).await.refused(400, "bad_post");
}

async fn garbage_in_a_post_ends_the_connection(transport: &str) {
    let app = start().await;
    for (text, code) in [
        ("", 3501),
        ("garbage", 3501),
        (r#"{"id":1,"connect":{}}"#, 3501),
        (r#"{"id":2,"subscribe":{}}"#, 3501),
        (r#"{"id":2}"#, 3501),
        (r#"{"send":{"data":{}}}"#, 3508),
    ] {
        let mut lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
        lines.subscribe("news:x").await;
        lines.send_text(text).await;
        assert_eq!(lines.closed_with().await, code, "{text}");
        // Nobody is there any more; that is no fault of whoever posts.
        lines.send_text(text).await;
    }
    app.until_metric("subscriptions", "", 0).await;
}

async fn posts_may_come_together_and_in_any_order(transport: &str) {
    let app = start().await;
    let mut lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
    // From connections of their own, so on both worker threads, and the later ids first.
    let posts = (2..=100u32).rev().map(|id| {
        let command = match id % 3 {
            0 => json!({ "id": id, "publish": { "channel": "news:x", "data": id } }),
            1 => json!({ "id": id, "subscribe": { "channel": format!("news:{id}") } }),
            _ => json!({ "id": id, "presence_stats": { "channel": "room:x" } }),
        };
        lines.post_of(&command.to_string())
    });
    let posts: Vec<Request> = posts.collect();
    let subscribe = lines.subscribe("news:x").await;
    assert_eq!(subscribe["recoverable"], true);
    let address = app.address();
    let reading = async {
        let (mut replies, mut offsets) = (BTreeSet::new(), Vec::new());
        while replies.len() < 98 || offsets.len() < 33 {
            let message = lines.message().await;
            match message["id"].as_u64() {
                Some(id) => assert!(message["error"].is_null() && replies.insert(id), "{message}"),
                None => offsets.push(message["push"]["pub"]["offset"].as_u64().expect("an offset")),
            }
        }
        (replies, offsets)
    };
    // The last of the list is id 2, which the subscribe above had.
    let sending = join_all(posts[..98].iter().map(|post| post.send(address)));
    let ((replies, offsets), answers) = tokio::join!(reading, sending);
    assert!(answers.iter().all(|answer| answer.status == 204));
    assert_eq!(replies, (3..=100).collect());
    assert_eq!(offsets, (1..=33).collect::<Vec<_>>(), "in order, each once");
}

async fn a_subscribe_may_overtake_an_unsubscribe(transport: &str) {
    let app = start().await;
    let mut lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
    lines.subscribe("room:x").await;
    for round in 0..20u64 {
        let (first, second) = (100 + 2 * round, 101 + 2 * round);
        let subscribe =
            lines.post_of(&json!({ "id": first, "subscribe": { "channel": "room:x" } }).to_string());
        let leave =
            lines.post_of(&json!({ "id": second, "unsubscribe": { "channel": "room:x" } }).to_string());
        let (one, other) = tokio::join!(subscribe.send(app.address()), leave.send(app.address()));
        assert_eq!((one.status, other.status), (204, 204));
        let mut replies: Vec<Value> = Vec::new();
        while replies.len() < 2 {
            let message = lines.message().await;
            if message["id"].is_u64() {
                replies.push(message);
            }
        }
        let subscribed = replies.iter().find(|reply| reply["id"] == first).expect("a reply");
        // The one that comes first decides; whichever it is, presence is what the client was told last.
        let there = match subscribed["error"]["code"].as_u64() {
            Some(105) => 0,
            None => u64::from(replies[0]["id"] == second),
            Some(code) => panic!("{code}"),
        };
        let stats = lines.ask(json!({ "presence_stats": { "channel": "room:x" } })).await;
        assert_eq!(stats["presence_stats"]["num_clients"], there, "{replies:?}");
        if there == 0 {
            lines.subscribe("room:x").await;
        }
        lines.pushes.clear();
    }
}

async fn who_posts_more_than_may_wait_is_told_and_ended(transport: &str) {
    let small = format!("{SPACES}\n[emulation]\nqueue_max_size = \"2KiB\"\n");
    let app = TestApp::with(Backend::Sqlite, &small).await;
    let mut lines = StreamClient::connected(app.address(), transport, &app.ana()).await;
    lines.subscribe("news:x").await;
    // A single one may be longer than the bound.
    let long = json!({ "publish": { "channel": "news:x", "data": "x".repeat(10_000) } });
    assert_eq!(lines.ask(long).await["publish"], json!({}));
    // Each of these waits for its commit, and all of them for one another.
    let publish = |n: u32| json!({ "id": n, "publish": { "channel": "news:x", "data": n } }).to_string();
    lines.send_text(&(1000..1500).map(publish).collect::<Vec<_>>().join("\n")).await;
    let one_more = lines.post_of(&publish(1500));
    app.send(one_more.clone()).await.refused(429, "session_busy");
    // The session is no more.
    app.send(one_more).await.expect(204);
    assert_eq!(lines.closed_with().await, 3013);
    assert_eq!(app.metric("refusals", "session_busy").await, 1);
    assert_eq!(app.metric("disconnects", "3013").await, 1);
}

over!(http_stream, sse: [
    a_post_finds_its_session_or_its_node_does_not_exist,
    garbage_in_a_post_ends_the_connection,
    posts_may_come_together_and_in_any_order,
    a_subscribe_may_overtake_an_unsubscribe,
    who_posts_more_than_may_wait_is_told_and_ended,
]);
