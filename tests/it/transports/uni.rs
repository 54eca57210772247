//! Clients that only listen, over each of the three transports: their frames, their subscriptions,
//! what ends them.

use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{over, start};
use crate::support::app::{Backend, TestApp};
use crate::support::stream_client::{StreamClient, opening};
use crate::support::websocket::{Client, Received, upgrade};

/// A client that listens.
pub(super) enum Listener {
    StreamClient(StreamClient),
    Socket(Client),
}

impl Listener {
    pub(super) async fn open(app: &TestApp, transport: &str, connect: &str) -> Self {
        if transport != "uni_websocket" {
            return Self::StreamClient(StreamClient::open(app.address(), &opening(transport, connect)).await);
        }
        let mut client = Self::socket(app, "").await;
        client.send_text(connect).await;
        Self::Socket(client)
    }

    async fn socket(app: &TestApp, query: &str) -> Client {
        let stream = TcpStream::connect(app.address()).await.expect("a connection");
        let path = format!("/connection/uni_websocket{query}");
        Client::over(stream, &upgrade().to(&path).bytes()).await
    }

    pub(super) async fn message(&mut self) -> Value {
        match self {
            Self::StreamClient(lines) => lines.message().await,
            Self::Socket(client) => client.message().await,
        }
    }

    /// The code in the last push, and in the Close frame if there is one. Nothing else comes.
    pub(super) async fn closed_with(&mut self) -> u64 {
        match self {
            Self::StreamClient(lines) => lines.closed_with().await,
            Self::Socket(client) => {
                let last = client.message().await;
                let code = client.closed_with().await;
                assert_eq!(last["disconnect"]["code"], code, "{last}");
                code.into()
            }
        }
    }
}

async fn pushes_stand_bare(transport: &str) {
    let app = start().await;
    let token = app.token(json!({ "sub": "ana", "channels": ["news:x"] }));
    let connect = json!({ "token": token, "subs": { "room:x": {}, "repo:acme/api": {} } }).to_string();
    let mut ana = Listener::open(&app, transport, &connect).await;
    let mut first = ana.message().await;
    let connected = first["connect"].as_object_mut().expect("an object");
    let gone = |name: &str| connected[name].as_str().map(str::len);
    assert_eq!((gone("client"), gone("session"), gone("version")), (Some(36), Some(32), Some(5)));
    let client = connected["client"].clone();
    let epoch = connected["subs"]["news:x"]["epoch"].clone();
    for name in ["client", "session", "version", "time"] {
        connected.remove(name);
    }
    let expected = json!({ "connect": { "ping": 25, "subs": {
        "news:x": { "recoverable": true, "positioned": true, "epoch": epoch },
        "room:x": {},
    } } });
    assert_eq!(first, expected, "what it may not have is left out");
    let ana_is = json!({ "user": "ana", "client": client });
    assert_eq!(ana.message().await, json!({ "channel": "room:x", "join": { "info": ana_is } }));
    app.publish(json!({ "channel": "news:x", "data": { "n": 1 } })).await.expect(200);
    let publication = json!({ "channel": "news:x", "pub": { "data": { "n": 1 }, "offset": 1 } });
    assert_eq!(ana.message().await, publication);
    app.until_metric("connections", transport, 1).await;
    assert!(app.metric("messages_sent", transport).await >= 1);
    assert!(app.metric("sent_bytes", transport).await >= publication.to_string().len() as u64);
    let listed = app.call("connections", json!({})).await.expect(200).json();
    assert_eq!(listed["result"]["connections"][client.as_str().expect("an id")]["transport"], transport);
    app.call("disconnect", json!({ "user": "ana" })).await.expect(200);
    assert_eq!(ana.closed_with().await, 3503);
}

async fn who_returns_gets_what_it_missed(transport: &str) {
    let app = start().await;
    let token = app.ana();
    let connect = |sub: Value| json!({ "token": token, "subs": { "news:x": sub } }).to_string();
    let mut ana = Listener::open(&app, transport, &connect(json!({}))).await;
    let epoch = ana.message().await["connect"]["subs"]["news:x"]["epoch"].clone();
    drop(ana);
    app.until_metric("connections", transport, 0).await;
    for n in 1..=3 {
        app.publish(json!({ "channel": "news:x", "data": n })).await.expect(200);
    }
    let since = |epoch: &Value| connect(json!({ "recover": true, "epoch": epoch, "offset": 1 }));
    let mut ana = Listener::open(&app, transport, &since(&epoch)).await;
    let sub = ana.message().await["connect"]["subs"]["news:x"].take();
    assert_eq!((&sub["recovered"], &sub["offset"]), (&json!(true), &json!(1)));
    let missed = json!([{ "data": 2, "offset": 2 }, { "data": 3, "offset": 3 }]);
    assert_eq!(sub["publications"], missed);
    app.publish(json!({ "channel": "news:x", "data": 4 })).await.expect(200);
    assert_eq!(ana.message().await["pub"]["offset"], 4);
    let mut other = Listener::open(&app, transport, &since(&json!("other"))).await;
    let sub = other.message().await["connect"]["subs"]["news:x"].take();
    assert_eq!((&sub["was_recovering"], &sub["offset"]), (&json!(true), &json!(4)));
    assert!(sub["recovered"].is_null());
}

async fn errors_are_ends(transport: &str) {
    let app = start().await;
    let with = |claims: Value| json!({ "token": app.token(claims) }).to_string();
    for (connect, code) in [
        ("garbage".to_owned(), 3501),
        ("{}".to_owned(), 3501),
        (json!({ "id": 1, "connect": {} }).to_string(), 3501),
        (json!({ "token": "x" }).to_string(), 3500),
        (with(json!({ "sub": "ana", "exp": 1 })), 3005),
        (with(json!({ "sub": "ana", "channels": ["build:0195d3a0-1111-7000-8000-000000000001"] })), 3507),
        (with(json!({ "sub": "ana", "channels": ["nowhere:x"] })), 3004),
    ] {
        let mut client = Listener::open(&app, transport, &connect).await;
        assert_eq!(client.closed_with().await, code, "{connect}");
    }
    app.until_metric("connections", transport, 0).await;
    // 3004 says that the fault is ours.
    assert_eq!(
        (
            app.metric("connection_attempts", "refused").await,
            app.metric("connection_attempts", "failed").await
        ),
        (6, 1)
    );
}

over!(uni_websocket, uni_http_stream, uni_sse: [pushes_stand_bare, who_returns_gets_what_it_missed, errors_are_ends]);

#[tokio::test]
async fn a_socket_may_say_who_it_is_in_its_address() {
    let app = start().await;
    let connect = json!({ "token": app.ana(), "subs": { "news:x": {} } }).to_string();
    let text: String = url::form_urlencoded::byte_serialize(connect.as_bytes()).collect();
    let mut client = Listener::socket(&app, &format!("?cf_connect={text}")).await;
    assert!(client.message().await["connect"]["subs"]["news:x"].is_object());
    // It is not heard any more, whatever it says.
    client.send_text("garbage").await;
    app.publish(json!({ "channel": "news:x", "data": 1 })).await.expect(200);
    assert_eq!(client.message().await["pub"]["data"], 1);
    client.send(&crate::support::websocket::frame(crate::support::websocket::BINARY, b"x")).await;
    assert_eq!(client.message().await["disconnect"]["code"], 3506);
    assert!(matches!(client.next().await, Received::Close(3506, _)));
}

#[tokio::test]
async fn an_event_source_without_a_request_is_anonymous() {
    let config = "[client]\nallow_anonymous_connect_without_token = true";
    let app = TestApp::with(Backend::Sqlite, config).await;
    let request = crate::support::client::Request::get("/connection/uni_sse");
    let mut lines = StreamClient::open(app.address(), &request).await;
    assert_eq!(lines.message().await["connect"]["ping"], 25);
}
