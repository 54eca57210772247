//! The examples of proxies, run: a real nginx and a real HAProxy with our files, their addresses
//! alone replaced, before two real nodes that share a PostgreSQL and a Redis.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;
use testkit::server::Server;

use crate::support::app::stream_request;
use crate::support::client::Request;
use crate::support::process::{API_KEY, Gateway, Home, on_postgres, token};
use crate::support::sse::Stream;
use crate::support::store::eventually;
use crate::support::stream_client::StreamClient;
use crate::support::websocket;

const CHANNEL: &str = "repo:acme/api";

#[test]
fn everything_goes_through_nginx() {
    on_postgres(async |home| everything_goes_through(home, "nginx", nginx).await);
}

#[test]
fn everything_goes_through_haproxy() {
    on_postgres(async |home| everything_goes_through(home, "haproxy", haproxy).await);
}

#[test]
fn a_stranger_takes_no_node_away_through_nginx() {
    on_postgres(async |home| a_stranger_takes_no_node_away(home, "nginx", nginx, 16 << 20).await);
}

#[test]
fn a_stranger_takes_no_node_away_through_haproxy() {
    // What does not fit on the way it does not hear out itself.
    on_postgres(async |home| a_stranger_takes_no_node_away(home, "haproxy", haproxy, 1 << 20).await);
}

/// `file` with these replacements, each of which must have something to replace.
fn adapted(file: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(file).expect(file);
    for (from, to) in replacements {
        assert!(text.contains(from), "{file} has no {from}");
        text = text.replace(from, to);
    }
    text
}

fn nginx(folder: &Path, nodes: [SocketAddr; 2], port: u16) -> Vec<String> {
    let place = folder.display();
    let config = adapted(
        "deploy/nginx.conf",
        &[
            ("node-1:8080", &nodes[0].to_string()),
            ("node-2:8080", &nodes[1].to_string()),
            ("listen 80 ", &format!("listen 127.0.0.1:{port} ")),
            ("/dev/stdout", &format!("{place}/access.log")),
            ("/dev/stderr", &format!("{place}/error.log")),
            // Where an ordinary user may write.
            (
                "http {",
                &format!(
                    "http {{ client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; \
                     fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;"
                ),
            ),
        ],
    );
    std::fs::write(folder.join("nginx.conf"), config).expect("a configuration");
    let (folder, more) = (place.to_string(), format!("daemon off; pid {place}/pid;"));
    ["-p", &folder, "-c", "nginx.conf", "-e", "error.log", "-g", &more].map(str::to_owned).to_vec()
}

fn haproxy(folder: &Path, nodes: [SocketAddr; 2], port: u16) -> Vec<String> {
    let config = adapted(
        "deploy/haproxy.cfg",
        &[
            ("node-1:8080", &nodes[0].to_string()),
            ("node-2:8080", &nodes[1].to_string()),
            ("bind :80\n", &format!("bind 127.0.0.1:{port}\n")),
            // As many files as an ordinary user may open.
            ("maxconn 200000", "maxconn 100"),
        ],
    );
    std::fs::write(folder.join("haproxy.cfg"), config).expect("a configuration");
    ["-f", "haproxy.cfg"].map(str::to_owned).to_vec()
}

/// Writes the configuration of a proxy into a folder, and gives its arguments.
type Configure = fn(&Path, [SocketAddr; 2], u16) -> Vec<String>;

async fn everything_goes_through(home: Home, program: &str, configure: Configure) {
    let redis = std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is missing: run tests/run");
    let home = home
        .with("REDIS_URL", &redis)
        .with("CAMPANILE_BUS__PREFIX", &uuid::Uuid::new_v4().to_string())
        .with("CAMPANILE_SERVER__TRUSTED_PROXIES", r#"["127.0.0.1"]"#)
        .with("CAMPANILE_SERVER__DRAIN_TIMEOUT", "2s")
        .with("CAMPANILE_LIMITS__INVALID_SIGNATURES_PER_MINUTE", "2");
    let (first, second) = (Gateway::start(&home).await, Gateway::start(&home).await);
    let folder = tempfile::tempdir().expect("a folder");
    let nodes = [first.address, second.address];
    let proxy = Server::start(program, folder.path(), |port| configure(folder.path(), nodes, port));
    let proxy = proxy.await.expect("the proxy starts");
    let entry = proxy.address;

    let token = token();
    let mut socket = websocket::Client::open(entry).await;
    socket.connect(&token).await;
    socket.subscribe(CHANNEL).await;
    // Its posts go to any node, and find the one that has the stream.
    let mut streamed = StreamClient::connected(entry, "http_stream", &token).await;
    streamed.subscribe(CHANNEL).await;
    let mut events = StreamClient::connected(entry, "sse", &token).await;
    events.subscribe(CHANNEL).await;
    let mut stream = Stream::open(entry, &stream_request(CHANNEL, &token, None)).await.expect("a stream");

    for number in 0..6 {
        let mark = format!("event number {number}");
        publish(entry, &mark).await;
        for push in [socket.push().await, streamed.push().await, events.push().await] {
            assert!(push.to_string().contains(&mark), "{push} has no {mark}");
        }
        let frame = stream.next_event().await;
        assert!(frame.data.as_deref().is_some_and(|data| data.contains(&mark)), "{frame:?} has no {mark}");
    }

    // Whoever says that it comes from elsewhere is counted as who it is.
    let forged = |number: u8| {
        let delivery = Request::post("/webhooks/github").header("Content-Type", "application/json");
        let delivery = delivery.header("X-GitHub-Event", "ping").header("X-GitHub-Delivery", "a-delivery");
        let delivery = delivery.header("X-Hub-Signature-256", &format!("sha256={}", "0".repeat(64)));
        delivery.header("X-Forwarded-For", &format!("198.51.100.{number}")).body(vec![b' '; 4 << 20])
    };
    let mut statuses = Vec::new();
    for number in 0..5 {
        statuses.push(forged(number).send(entry).await.status);
    }
    assert!(statuses.contains(&401) && statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|status| [401, 429].contains(status)), "{statuses:?}");
    Request::get("/metrics").send(entry).await.expect(404);

    // A node goes, in peace: its clients are told, and the proxy stays reachable.
    second.stop().await;
    for number in 0..4 {
        publish(entry, &format!("afterwards {number}")).await;
    }
    let mut again = websocket::Client::open(entry).await;
    again.connect(&token).await;
    again.subscribe(CHANNEL).await;

    let in_query = Request::get(&format!("/api/events/stream?channels={CHANNEL}&token={token}"));
    drop(Stream::open(entry, &in_query).await.expect("a stream"));
    Request::get(&format!("/nowhere?token={token}")).send(entry).await.expect(404);
    let log = || std::fs::read_to_string(folder.path().join("access.log")).unwrap_or_else(|_| proxy.log());
    eventually("the last request is in the log", async || log().contains("/nowhere")).await;
    let log = log();
    assert!(log.contains("/api/publish") && !log.contains(&token[..40]), "{log}");
}

/// A long body that nobody wants, and one for which there is no room: their sender is told so, and nobody else
/// notices. Where the node does not even listen to the end of one, the sender alone is hurt.
async fn a_stranger_takes_no_node_away(
    mut home: Home,
    program: &str,
    configure: Configure,
    heard_out: usize,
) {
    home = home.with("CAMPANILE_LIMITS__CLIENT_BODIES_IN_FLIGHT", "1KiB");
    // Longer than what the system keeps of it on its way.
    for (listening, length, told) in [("32MiB", heard_out, true), ("1KiB", 16 << 20, false)] {
        let unwanted = Request::post("/webhooks/github").body(vec![b'x'; length]);
        home = home.with("CAMPANILE_LIMITS__LINGERING_SIZE", listening);
        let (first, second) = (Gateway::start(&home).await, Gateway::start(&home).await);
        let folder = tempfile::tempdir().expect("a folder");
        let nodes = [first.address, second.address];
        let proxy = Server::start(program, folder.path(), |port| configure(folder.path(), nodes, port));
        let proxy = proxy.await.expect("the proxy starts");
        for _ in 0..10 {
            let refused = unwanted.try_send(proxy.address).await.map(|answer| answer.status);
            assert!(
                refused == Some(401) || !told && refused.is_none_or(|status| status == 502),
                "{refused:?}"
            );
            Request::get("/readyz").send(proxy.address).await.expect(200);
        }
        for _ in 0..10 {
            Request::post("/emulation").body(vec![b'x'; 2 << 10]).send(proxy.address).await.expect(503);
        }
        Request::get("/readyz").send(proxy.address).await.expect(200);
        second.stop().await;
        first.stop().await;
    }
}

async fn publish(entry: SocketAddr, mark: &str) {
    let event = json!({ "channel": CHANNEL, "data": { "type": "build:done", "data": { "mark": mark } } });
    let request = Request::post("/api/publish").header("X-API-Key", API_KEY).json(&event);
    let answer = request.send(entry).await.expect(200);
    assert!(answer.json()["result"].is_object(), "{}", answer.text());
}
