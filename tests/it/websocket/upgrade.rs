//! The upgrade: which requests become sockets, which do not and why, and what happens to sockets when
//! the server goes away.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::client::{Answer, Request};
use crate::support::websocket::*;

async fn what_is_no_websocket_is_refused_in_words(backend: Backend) {
    let app = TestApp::with(backend, "client.allowed_origins = [\"https://live.acme.example\"]").await;
    let no_upgrade = app.send(Request::get("/connection/websocket")).await.refused(426, "upgrade_required");
    assert_eq!(no_upgrade.header("upgrade"), Some("websocket"));
    for version in ["12", "8", "0"] {
        let old = app.send(upgrade().header("Sec-WebSocket-Version", version)).await;
        assert_eq!(old.refused(426, "websocket_version").header("sec-websocket-version"), Some("13"));
    }
    app.send(upgrade().without("Sec-WebSocket-Version")).await.refused(426, "websocket_version");
    app.send(upgrade().without("Sec-WebSocket-Key")).await.refused(400, "bad_upgrade");
    let with = |request: Request| {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let request = request.header("Connection", "Upgrade").header("Upgrade", "websocket");
        request.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", key)
    };
    app.send(with(Request::post("/connection/websocket"))).await.refused(405, "method_not_allowed");
    app.send(with(Request::get("/connection/websockets"))).await.refused(404, "not_found");
    app.send(with(Request::get("/api/events/stream"))).await.refused(404, "not_found");
    for origin in ["https://evil.example", "null", "https://live.acme.example.evil.example"] {
        app.send(upgrade().header("Origin", origin)).await.refused(403, "origin_forbidden");
    }
    let offer = |names: &str| upgrade().header("Sec-WebSocket-Protocol", names);
    app.send(offer("centrifuge-protobuf")).await.refused(400, "bad_subprotocol");
    for query in ["format=protobuf", "x=1&cf_protocol=protobuf"] {
        let request = with(Request::get(&format!("/connection/websocket?{query}")));
        app.send(request).await.refused(400, "bad_subprotocol");
    }
    assert_eq!(app.metric("refusals", "origin_forbidden").await, 3);
    assert_eq!(app.metric("connections", "websocket").await, 0);

    let let_in = async |request: Request| {
        let socket = tokio::net::TcpStream::connect(app.address()).await.expect("a connection");
        let mut client = Client::over(socket, &request.bytes()).await;
        client.connect(&app.ana()).await;
        client.head
    };
    for names in ["centrifuge-json", "centrifuge-protobuf, centrifuge-json"] {
        let head = let_in(offer(names)).await;
        assert_eq!(head.header("sec-websocket-protocol"), Some("centrifuge-json"));
    }
    assert_eq!(let_in(upgrade()).await.header("sec-websocket-protocol"), None);
    // Behind another request on the same connection.
    let mut socket = tokio::net::TcpStream::connect(app.address()).await.expect("a connection");
    let first = Request::get("/healthz").header("Connection", "keep-alive").bytes();
    socket.write_all(&first).await.expect("written");
    Answer::read(&mut socket).await;
    Client::over(socket, &upgrade().bytes()).await.connect(&app.ana()).await;
    // Other upgrades that clients offer are none of this endpoint's business.
    let h2c =
        Request::get("/healthz").header("Connection", "Upgrade, HTTP2-Settings").header("Upgrade", "h2c");
    app.send(h2c).await.expect(200);
    let_in(upgrade().header("Origin", "https://live.acme.example")).await;
    let_in(upgrade().header("Origin", &format!("http://{}", app.address()))).await;
    let_in(with(Request::get("/connection/websocket?format=json"))).await;
}

pub(super) async fn a_full_node_lets_nobody_in(backend: Backend) {
    let app = TestApp::with(backend, "client.connection_limit = 2\nclient.user_connection_limit = 1").await;
    let first = Client::connected(&app, &app.ana()).await;
    let mut second = Client::open(app.address()).await;
    app.send(upgrade()).await.refused(503, "too_many_connections");
    second.command(json!({ "connect": { "token": app.ana() } })).await;
    assert_eq!(second.closed().await, (3504, "connection limit".to_owned()));
    // Refused ones do not count, and whoever leaves makes room for the same user and for others.
    app.until_metric("connections", "websocket", 1).await;
    drop(first);
    app.until_metric("connections", "websocket", 0).await;
    let _again = Client::connected(&app, &app.ana()).await;
    let _ben = Client::connected(&app, &app.token(json!({ "sub": "ben" }))).await;
    app.send(upgrade()).await.refused(503, "too_many_connections");
}

async fn sockets_can_be_switched_off(backend: Backend) {
    let app = TestApp::with(backend, "websocket.enabled = false").await;
    app.send(upgrade()).await.refused(404, "transport_disabled");
}

pub(super) async fn a_server_that_goes_away_tells_every_client(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let mut clients = Vec::new();
    for n in 0..8 {
        let mut client = Client::open(app.address()).await;
        // Two have not connected yet.
        if n > 1 {
            client.connect(&app.ana()).await;
            client.subscribe("org:acme").await;
        }
        clients.push(client);
    }
    app.until_metric("connections", "websocket", 8).await;
    let began = Instant::now();
    let read = tokio::spawn(async move {
        for client in &mut clients {
            assert_eq!(client.closed().await, (3001, "shutdown".to_owned()));
        }
    });
    app.stop().await;
    read.await.expect("everyone is told");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(Request::get("/healthz").try_send(app.address()).await.is_none(), "nobody listens");
    app.restart().await;
    // Nobody needs to answer: those who do not read hold nothing up for long.
    let _deaf = Client::connected(&app, &app.ana()).await;
    let began = Instant::now();
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Also those are told who come in at the very last moment.
async fn nobody_is_forgotten_when_the_server_goes_away(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let mut coming = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let address = app.address();
        coming.spawn(async move {
            let (mut told, mut count) = (tokio::task::JoinSet::new(), 0);
            while let Some(mut client) = Client::try_open(address).await {
                told.spawn(async move { assert_eq!(client.closed_with().await, 3001) });
                count += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            while let Some(told) = told.join_next().await {
                told.expect("it is told");
            }
            count
        });
    }
    while app.metric("connections", "websocket").await < 100 {}
    let began = Instant::now();
    app.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let count: u32 = coming.join_all().await.into_iter().sum();
    assert!(count >= 100, "{count}");
}

on_both!(
    nobody_is_forgotten_when_the_server_goes_away,
    what_is_no_websocket_is_refused_in_words,
    a_full_node_lets_nobody_in,
    sockets_can_be_switched_off,
    a_server_that_goes_away_tells_every_client,
);
