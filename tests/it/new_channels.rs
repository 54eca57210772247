//! Names cost nothing: channels that nobody follows are bounded, and so are new ones.

use serde_json::json;

use crate::support::app::{Backend, TestApp, stream_request};
use crate::support::sse::Stream;
use crate::support::websocket::Client;

const NEWS: &str = "[[channel.namespaces]]
name = \"news\"
history_size = 10
history_ttl = \"1h\"
allow_subscribe_for_client = true
";

async fn connected(app: &TestApp, user: &str) -> Client {
    Client::connected(app, &app.token(json!({ "sub": user }))).await
}

#[tokio::test]
async fn channels_that_nobody_follows_are_bounded_and_the_oldest_ends() {
    let options = format!("channel.linger_limit = 10\nchannel.linger = \"1h\"\n{NEWS}");
    let app = TestApp::with(Backend::Sqlite, &options).await;
    let mut client = connected(&app, "ana").await;
    client.subscribe("news:kept").await;
    for number in 0..50 {
        let channel = format!("news:{number}");
        client.subscribe(&channel).await;
        client.ask(json!({ "unsubscribe": { "channel": channel } })).await;
    }
    // One is followed.
    app.until_metric("channels", "", 11).await;
    app.until_metric("channels_evicted", "", 40).await;
    app.result("publish", json!({ "channel": "news:kept", "data": "still there" })).await;
    assert_eq!(client.push().await["pub"]["data"], "still there");
    client.subscribe("news:0").await;
    app.result("publish", json!({ "channel": "news:0", "data": "back" })).await;
    assert_eq!(client.push().await["pub"]["data"], "back");
}

#[tokio::test]
async fn a_user_opens_so_many_new_channels_a_minute() {
    let options = format!("limits.new_channels_per_minute = 5\n{NEWS}");
    let app = TestApp::with(Backend::Sqlite, &options).await;
    let (mut ana, mut again) = (connected(&app, "ana").await, connected(&app, "ana").await);
    for number in 0..5 {
        ana.subscribe(&format!("news:{number}")).await;
    }
    for client in [&mut ana, &mut again] {
        assert_eq!(client.error(json!({ "subscribe": { "channel": "news:new" } })).await, 100);
    }
    assert_eq!(app.metric("channels", "").await, 5);
    assert_eq!(app.metric("channels_refused", "").await, 2);
    again.subscribe("news:0").await;
    connected(&app, "ben").await.subscribe("news:new").await;
}

#[tokio::test]
async fn event_streams_open_no_more_than_sockets_do() {
    let options = format!("limits.new_channels_per_minute = 5\n{NEWS}");
    let app = TestApp::with(Backend::Sqlite, &options).await;
    let (ana, ben) = (app.token(json!({ "sub": "ana" })), app.token(json!({ "sub": "ben" })));
    let open = async |channels: &str, token: &str| {
        Stream::open(app.address(), &stream_request(channels, token, None)).await
    };
    let names: Vec<String> = (0..5).map(|number| format!("news:{number}")).collect();
    let _five = open(&names.join(","), &ana).await.expect("they are new");
    open("news:new", &ana).await.expect_err("too many").refused(429, "too_many_new_channels");
    assert_eq!(
        connected(&app, "ana").await.error(json!({ "subscribe": { "channel": "news:new" } })).await,
        100
    );
    assert_eq!((app.metric("channels", "").await, app.metric("channels_refused", "").await), (5, 2));
    let _known = open(&names[0], &ana).await.expect("it is followed already");
    let _of_ben = open("news:new", &ben).await.expect("another user");
}

#[tokio::test]
async fn a_channel_that_nobody_may_have_costs_no_memory() {
    let options =
        format!("{NEWS}[[channel.namespaces]]\nname = \"closed\"\nhistory_size = 10\nhistory_ttl = \"1h\"");
    let app = TestApp::with(Backend::Sqlite, &options).await;
    let ana = app.token(json!({ "sub": "ana" }));
    let mut client = connected(&app, "ana").await;
    for (channel, code) in [("closed:x", 103), ("unknown:x", 102), ("repo:acme/api", 103), ("#ben", 103)] {
        assert_eq!(client.error(json!({ "subscribe": { "channel": channel } })).await, code, "{channel}");
        Stream::open(app.address(), &stream_request(channel, &ana, None))
            .await
            .map(drop)
            .expect_err("refused");
        let poll = format!("/api/events?channel={}", channel.replace('#', "%23"));
        assert!(app.get(&poll, &ana).await.status >= 400, "{channel}");
    }
    assert_eq!(app.metric("channels", "").await, 0);
}
