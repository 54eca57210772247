//! What proxies, load balancers, probes, apps and old clients send, each in its own way.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::app::{Backend, TestApp, in_seconds, on_both};
use crate::support::client::{Answer, DEADLINE, Request, send_raw};

const PROXIED: &str = "github.allowed_addresses = [\"192.30.252.0/22\", \"2001:db8::/32\"]
server.trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n";

/// The status of a delivery with these headers.
async fn delivered(app: &TestApp, headers: &[(&str, &str)]) -> u16 {
    let delivery = app.webhook("star", "{}");
    let request = headers.iter().fold(delivery, |request, (name, value)| request.header(name, value));
    app.send(request).await.status
}

async fn a_proxy_may_write_a_port_and_brackets(backend: Backend) {
    let app = TestApp::with(backend, PROXIED).await;
    for (hops, status) in [
        ("192.30.252.44:41234", 202),
        ("[2001:db8::7]:41234", 202),
        ("[2001:db8::7]", 202),
        ("198.51.100.7, 192.30.252.44:80, 10.1.2.3:9", 202),
        ("192.30.252.44, 198.51.100.7:41234", 403),
        ("192.30.252.44, unknown", 403),
        ("192.30.252.44:port", 403),
    ] {
        assert_eq!(delivered(&app, &[("X-Forwarded-For", hops)]).await, status, "{hops}");
    }
}

async fn only_the_named_header_is_read(backend: Backend) {
    let app = TestApp::with(backend, PROXIED).await;
    let (good, other) = ("for=192.30.252.44", "198.51.100.7");
    assert_eq!(delivered(&app, &[("Forwarded", good)]).await, 403, "it was not named");
    assert_eq!(delivered(&app, &[("Forwarded", good), ("X-Forwarded-For", other)]).await, 403);
    let config = format!("{PROXIED}server.forwarded_header = \"forwarded\"\n");
    let app = TestApp::with(backend, &config).await;
    for (element, status) in [
        (good, 202),
        ("for=\"192.30.252.44:41234\";proto=https", 202),
        ("For=\"[2001:db8::7]:_x\", for=10.0.0.9", 202),
        ("for=unknown", 403),
        ("for=_hidden, for=10.0.0.9", 403),
        ("for=192.30.252.44, for=198.51.100.7", 403),
        ("proto=https", 403),
    ] {
        assert_eq!(delivered(&app, &[("Forwarded", element)]).await, status, "{element}");
    }
    let both = [("X-Forwarded-For", "192.30.252.44"), ("Forwarded", "for=198.51.100.7")];
    assert_eq!(delivered(&app, &both).await, 403, "strangers write the other one");
}

async fn a_stream_over_http_1_0_ends_with_its_connection(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=2).await;
    let first = app.poll("channel=org:acme&limit=1", &app.ana()).await["cursor"].clone();
    let token = app.token(json!({ "sub": "ana", "orgs": ["acme"], "exp": in_seconds(2) }));
    let head = format!(
        "GET /api/events/stream?channels=org:acme HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Last-Event-ID: {}\r\n\r\n",
        first.as_str().expect("a cursor")
    );
    let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut all = Vec::new();
    tokio::time::timeout(DEADLINE, socket.read_to_end(&mut all)).await.expect("it ends").expect("read");
    let (head, length) = Answer::parse_head(&all).expect("a head");
    assert_eq!((head.status, head.header("transfer-encoding")), (200, None));
    let body = std::str::from_utf8(&all[length..]).expect("text");
    assert!(body.starts_with("retry: ") && body.contains("\nevent: workflow:started\n"), "{body}");
    assert!(body.ends_with("\n\n") && body.contains("event: stream:expired"), "{body}");
}

async fn an_upgrade_over_http_1_0_is_none(backend: Backend) {
    let app = TestApp::start(backend).await;
    let ask = async |version: &str| {
        let head = format!(
            "GET /connection/websocket HTTP/{version}\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
        socket.write_all(head.as_bytes()).await.expect("written");
        let mut bytes = Vec::new();
        loop {
            if let Some((head, _)) = Answer::parse_head(&bytes) {
                return head.status;
            }
            let read = tokio::time::timeout(DEADLINE, socket.read_buf(&mut bytes)).await.expect("an answer");
            assert!(read.is_ok_and(|count| count > 0), "an answer");
        }
    };
    assert_eq!((ask("1.0").await, ask("1.1").await), (426, 101));
}

async fn pages_without_a_site_are_allowed_by_name_or_with_all(backend: Backend) {
    let sites = ["https://app.example.com", "capacitor://localhost", "null", "file://"];
    for (allowed, expected) in [
        ("[\"*\"]", [true; 4]),
        ("[\"null\", \"file://\"]", [false, false, true, true]),
        ("[\"null\"]", [false, false, true, false]),
        ("[\"capacitor://localhost\"]", [false, true, false, false]),
    ] {
        let app = TestApp::with(backend, &format!("client.allowed_origins = {allowed}")).await;
        for (site, expected) in sites.into_iter().zip(expected) {
            let stream = Request::get("/api/events/stream?channels=org:acme").header("Origin", site);
            // Whoever gets past the origin is asked for a token.
            let answer = app.send(stream).await;
            let preflight = Request::new("OPTIONS", "/emulation").header("Origin", site);
            let preflight = app.send(preflight).await;
            let allowed = preflight.header("access-control-allow-origin");
            assert_eq!(allowed, expected.then_some(site), "{site}");
            assert_eq!(preflight.status, if expected { 204 } else { 403 }, "{site}");
            assert_eq!(answer.status, if expected { 401 } else { 403 }, "{site}");
        }
    }
}

async fn a_parameter_that_means_nothing_is_refused_with_the_right_one(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=2).await;
    let ana = app.ana();
    for (path, unknown, hint) in [
        ("/api/events/stream?channels=org:acme&lastEventId=x.1", "lastEventId", "did you mean `cursor`?"),
        ("/api/events/stream?channels=org:acme&Last-Event-ID=x.1", "Last-Event-ID", "did you mean `cursor`?"),
        ("/api/events/stream?channels=org:acme&last_event_id=x.1", "last_event_id", "did you mean `cursor`?"),
        ("/api/events/stream?channel=org:acme", "channel", "did you mean `channels`?"),
        ("/api/events/stream?channels=org:acme&cursr=x.1", "cursr", "there are channels, cursor, token"),
        ("/api/events?channel=org:acme&since=x.1", "since", "did you mean `cursor`?"),
        ("/api/events?channel=org:acme&token=x", "token", "there are channel, channels, cursor, limit"),
        ("/api/repos?page=2", "page", "there are org, q, status, cursor, limit"),
        ("/api/repos/acme%2Fapi/runs?day=2026-11-21", "day", "there are date"),
        ("/api/dashboard/activity?n=5", "n", "there are limit"),
        ("/api/build-events/0195d3a0-0000-7000-8000-000000000000?x=1", "x", "there are cursor, limit"),
    ] {
        let refused = app.get(path, &ana).await.refused(400, "bad_query").json();
        let message = refused["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("there is no parameter `{unknown}` here")), "{message}");
        assert!(message.contains(hint), "{message}");
    }
    // What SDKs and apps put beside the commands is theirs.
    let sse = "/connection/sse?cf_protocol=json&cf_ws_frame_ping_pong=true&v=2";
    app.get(sse, "").await.refused(400, "cf_connect_missing");
}

async fn the_webhook_is_also_there_with_a_slash(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.send(app.webhook("star", "{}").to("/webhooks/github/")).await.expect(202);
    app.send(app.webhook("star", "{}").to("/webhooks/github/").without("X-Hub-Signature-256"))
        .await
        .refused(401, "signature_missing");
    let other = app.get("/webhooks/github/", "").await.refused(405, "method_not_allowed");
    assert_eq!(other.header("allow"), Some("POST"));
}

async fn probes_are_answered_however_they_ask(backend: Backend) {
    let app = TestApp::start(backend).await;
    for path in ["/", "/healthz", "/health", "/readyz", "/metrics", "/api/openapi.json"] {
        assert_eq!((head_of(&app, path).await, app.get(path, "").await.status), (200, 200), "{path}");
    }
    // HAProxy's own way, and what a server says about itself as a whole.
    let plain = send_raw(app.address(), b"OPTIONS / HTTP/1.0\r\n\r\n").await.expect(204);
    assert_eq!(plain.header("allow"), Some("GET, OPTIONS"));
    send_raw(app.address(), b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect(204);
    let known = app.send(Request::new("OPTIONS", "/api/builds/x/events")).await.expect(204);
    assert_eq!(known.header("allow"), Some("POST, OPTIONS"));
    app.send(Request::new("OPTIONS", "/nothing")).await.refused(404, "not_found");
    app.send(Request::new("DELETE", "/readyz")).await.refused(405, "method_not_allowed");
    // Readiness is told to every method that may ask for it.
    let ready = app.send(Request::new("OPTIONS", "/readyz")).await.expect(200).json();
    assert_eq!(ready["status"], Value::from("ready"));
}

/// The status of an answer to HEAD, which announces a body and has none.
async fn head_of(app: &TestApp, path: &str) -> u16 {
    let head = format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut bytes = Vec::new();
    tokio::time::timeout(DEADLINE, socket.read_to_end(&mut bytes)).await.expect("an answer").expect("read");
    let (answer, length) = Answer::parse_head(&bytes).expect("a head");
    assert_eq!(bytes.len(), length, "no body");
    answer.status
}

on_both!(
    a_proxy_may_write_a_port_and_brackets,
    only_the_named_header_is_read,
    a_stream_over_http_1_0_ends_with_its_connection,
    an_upgrade_over_http_1_0_is_none,
    pages_without_a_site_are_allowed_by_name_or_with_all,
    a_parameter_that_means_nothing_is_refused_with_the_right_one,
    the_webhook_is_also_there_with_a_slash,
    probes_are_answered_however_they_ask,
);
