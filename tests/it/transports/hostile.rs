//! Clients that mean harm: what is no protocol, what is never finished, what is never read. Each
//! ends with the right code; nothing panics, and nothing of them stays.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::uni::Listener;
use super::{SPACES, over, start};
use crate::support::app::{Backend, TestApp};
use crate::support::client::{Answer, Request};
use crate::support::stream_client::{StreamClient, opening};
use crate::support::websocket::{Client, Received};

/// Texts that are no frame of commands.
fn nonsense() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "\0",
        "{",
        "}",
        "[]",
        "null",
        "true",
        "0",
        "\"\"",
        "{}{}",
        "\n{}",
        "{}\n\n{}",
        "\u{feff}{}",
        r#"{"id":2,"id":2,"rpc":{}}"#,
        r#"{"id":2,"rpc":{},"publish":{}}"#,
        r#"{"id":-1,"rpc":{}}"#,
        r#"{"id":4294967296,"rpc":{}}"#,
        r#"{"id":1e3,"rpc":{}}"#,
        r#"{"id":"2","rpc":{}}"#,
        r#"{"id":2,"rpc":[]}"#,
        r#"{"id":2,"rpc":{"method":7}}"#,
        r#"{"id":2,"subscribe":{"channel":"\ud800"}}"#,
        r#"{"id":2,"subscribe":{"channel":"news:x","offset":-1}}"#,
        r#"{"id":2,"subscribe":{"channel":"news:x","delta":"other"}}"#,
        r#"{"id":2,"history":{"channel":"news:x","limit":99999999999}}"#,
    ]
    .map(str::to_owned)
    .into();
    texts.push("[".repeat(60_000));
    texts.push("\n".repeat(20_000));
    texts.push("{\"a\":".repeat(5_000));
    texts
}

/// Nobody is there any more, and the node serves on.
async fn is_as_before(app: &TestApp) {
    app.until_metric("connections", "", 0).await;
    app.until_metric("subscriptions", "", 0).await;
    let mut client = Client::connected(app, &app.ana()).await;
    client.subscribe("news:x").await;
}

async fn nonsense_ends_a_stream_at_any_time(transport: &str) {
    let app = start().await;
    for text in nonsense() {
        let mut first = StreamClient::open(app.address(), &opening(transport, &text)).await;
        assert_eq!(first.closed_with().await, 3501, "{:.60}", text);
        let mut later = StreamClient::connected(app.address(), transport, &app.ana()).await;
        later.subscribe("news:x").await;
        later.send_text(&text).await;
        // A pong is none.
        if text != "{}" {
            assert_eq!(later.closed_with().await, 3501, "{:.60}", text);
        }
    }
    is_as_before(&app).await;
}

async fn who_does_not_read_is_cut_and_nobody_else_feels_it(transport: &str) {
    let queue = SPACES.replacen("[client]", "[client]\nqueue_max_size = \"64KiB\"", 1);
    let small = format!("channel.max_publication_size = \"32KiB\"\n{queue}");
    let app = TestApp::with(Backend::Sqlite, &small).await;
    let mut reads = StreamClient::connected(app.address(), transport, &app.ana()).await;
    reads.subscribe("news:x").await;
    let mut stands = StreamClient::connected(app.address(), transport, &app.ana()).await;
    socket2::SockRef::from(&stands.body.socket).set_recv_buffer_size(4096).expect("a small buffer");
    stands.subscribe("news:x").await;
    let data = "x".repeat(30_000);
    for n in 1.. {
        assert!(n < 600, "everything waits for a client that does not read");
        app.publish(json!({ "channel": "news:x", "data": data })).await.expect(200);
        assert_eq!(reads.push().await["pub"]["offset"], n);
        if app.metric("disconnects", "3008").await == 1 {
            break;
        }
    }
    assert_eq!(app.metric("slow_disconnects", "queue").await, 1);
    app.until_metric("connections", transport, 1).await;
    // It finds the end behind what it had been sent.
    let mut rest = Vec::new();
    let _ = stands.body.socket.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut is no proper end");
}

over!(http_stream, sse: [nonsense_ends_a_stream_at_any_time, who_does_not_read_is_cut_and_nobody_else_feels_it]);

#[tokio::test]
async fn nonsense_ends_who_only_listens() {
    let app = start().await;
    for text in nonsense() {
        for transport in ["uni_websocket", "uni_http_stream", "uni_sse"] {
            let mut client = Listener::open(&app, transport, &text).await;
            assert_eq!(client.closed_with().await, 3501, "{transport} {:.60}", text);
        }
    }
    is_as_before(&app).await;
}

#[tokio::test]
async fn nonsense_ends_a_socket() {
    let app = start().await;
    for text in nonsense() {
        let mut client = Client::connected(&app, &app.ana()).await;
        client.subscribe("news:x").await;
        client.send_text(&text).await;
        // A pong is none.
        if text != "{}" {
            assert_eq!(client.closed_with().await, 3501, "{:.60}", text);
        }
    }
    is_as_before(&app).await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_awaited() {
    let app = TestApp::with(Backend::Sqlite, "client.stale_close_delay = \"200ms\"").await;
    let endpoints =
        ["http_stream", "sse", "uni_http_stream", "uni_sse"].map(|name| format!("/connection/{name}"));
    for endpoint in endpoints.iter().map(String::as_str).chain(["/emulation"]) {
        let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
        let head = Request::post(endpoint).header("Content-Length", "100").head();
        socket.write_all(format!("{head}\r\n{{").as_bytes()).await.expect("written");
        Answer::read(&mut socket).await.refused(408, "body_timeout");
    }
    assert_eq!(app.metric("connections", "").await, 0);
}

#[tokio::test]
async fn what_comes_at_once_is_bounded() {
    let app = TestApp::with(Backend::Sqlite, "limits.client_bodies_in_flight = \"1KiB\"").await;
    for endpoint in ["/connection/http_stream", "/emulation"] {
        let post = Request::post(endpoint).body("x".repeat(2000));
        app.send(post).await.refused(503, "overloaded");
    }
}

#[tokio::test]
async fn a_listening_socket_takes_no_more_than_a_message() {
    let app = TestApp::with(Backend::Sqlite, "uni_websocket.message_size_limit = \"1KiB\"").await;
    let mut client = Listener::open(&app, "uni_websocket", &"x".repeat(1025)).await;
    let Listener::Socket(client) = &mut client else { panic!("a socket") };
    assert!(matches!(client.next().await, Received::Close(1009, _)));
}

#[tokio::test]
async fn posts_for_other_nodes_are_limited_by_address_and_must_name_what_can_be() {
    let options = "limits.relayed_posts_per_minute = 2\nserver.trusted_proxies = [\"127.0.0.1\"]";
    let app = TestApp::with(Backend::Sqlite, options).await;
    let elsewhere = uuid::Uuid::new_v4().to_string();
    let post = |node: &str, session: &str, address: &str| {
        let post = json!({ "session": session, "node": node, "data": "{}" });
        Request::post("/emulation").header("X-Forwarded-For", address).json(&post)
    };
    let session = "0123456789abcdef".repeat(2);
    for impossible in [elsewhere.to_uppercase(), format!("{{{elsewhere}}}"), "x".to_owned()] {
        app.send(post(&impossible, &session, "192.0.2.1")).await.refused(404, "not_found");
    }
    app.send(post(&elsewhere, "nobody", "192.0.2.1")).await.refused(404, "not_found");
    for _ in 0..2 {
        app.send(post(&elsewhere, &session, "192.0.2.1")).await.refused(404, "not_found");
    }
    app.send(post(&elsewhere, &session, "192.0.2.1")).await.refused(429, "too_many_relayed_posts");
    app.send(post(&elsewhere, &session, "192.0.2.2")).await.refused(404, "not_found");
}
