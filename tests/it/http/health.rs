//! How the node says that it is well, and what it does while its store is away.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::proxy::{Link, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::app::{Backend, TestApp, on_both, run_of};
use crate::support::client::{Answer, DEADLINE, Request};
use crate::support::database::Database;
use crate::support::websocket::Client;

async fn a_healthy_node_says_so(backend: Backend) {
    let app = TestApp::start(backend).await;
    assert_eq!(app.get("/healthz", "").await.expect(200).json()["status"], "alive");
    for path in ["/healthz", "/health", "/readyz"] {
        assert_eq!(head(app.address(), path).await, "HTTP/1.1 200 OK", "HEAD {path}");
    }
    assert_eq!(app.get("/health", "").await.expect(200).json(), json!({}));
    let store = if backend == Backend::Sqlite { "sqlite" } else { "postgres" };
    let ready = app.get("/readyz", "").await.expect(200).json();
    assert_eq!(ready, json!({ "status": "ready", "store": store }));
    assert!(app.get("/", "").await.expect(200).text().starts_with("Campanile"));
}

async fn a_route_that_is_not_there_is_refused_in_json(backend: Backend) {
    let app = TestApp::start(backend).await;
    for path in ["/nothing", "/api", "/api/", "/api/events/", "/webhooks", "/%00", "/api/events/stream/x"] {
        let refused = app.get(path, "").await.refused(404, "not_found");
        assert_eq!(refused.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(refused.header("referrer-policy"), Some("no-referrer"));
    }
    for (method, path) in [
        ("POST", "/api/events"),
        ("PUT", "/api/events/stream"),
        ("GET", "/webhooks/github"),
        ("DELETE", "/api/repos"),
        ("GET", "/api/deliveries/x/process"),
        ("POST", "/metrics"),
    ] {
        let refused = app.send(Request::new(method, path)).await.refused(405, "method_not_allowed");
        let allowed = if method == "GET" { "POST" } else { "GET" };
        assert_eq!(refused.header("allow"), Some(allowed), "{method} {path}");
    }
    assert_eq!(app.metric("refusals", "not_found").await, 7);
    assert_eq!(app.metric("refusals", "method_not_allowed").await, 6);
}

async fn metrics_are_open_metrics(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=2).await;
    app.get("/nothing", "").await.expect(404);
    let answer = app.get("/metrics", "").await.expect(200);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.header("content-type"), Some(kind));
    let text = answer.text();
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    let (mut types, mut samples) = (std::collections::BTreeMap::new(), 0);
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => {
                assert!(types.insert(name, kind).is_none(), "twice: {line}");
                assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            }
            ["#", "HELP" | "UNIT", name, _] => assert!(name.starts_with("campanile_"), "{line}"),
            ["#", "EOF"] => {}
            _ => {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                value.parse::<f64>().expect("a number");
                let name = series.split('{').next().expect("a name");
                let family = ["_total", "_bucket", "_count", "_sum", "_info"]
                    .iter()
                    .find_map(|end| types.get_key_value(name.strip_suffix(end)?).map(|(family, _)| *family));
                assert!(family.is_some() || types.get(name) == Some(&"gauge"), "no family: {line}");
                samples += 1;
            }
        }
    }
    assert!(samples > 20 && types.len() > 10, "{samples} samples of {} families", types.len());
    assert_eq!(app.metric("events", "").await, 4);
    assert_eq!(app.metric("store_up", "").await, 1);
}

/// Asks until the answer has this status.
async fn until_ready_is(app: &TestApp, status: u16) -> Duration {
    let began = Instant::now();
    while app.get("/readyz", "").await.status != status {
        assert!(began.elapsed() < DEADLINE, "readyz does not become {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Postgres goes away in this way and comes back: nothing is confirmed meanwhile, streams stay
/// open, and afterwards everything is there once.
async fn postgres_goes_and_comes_back(mode: Link) {
    let proxy = Proxy::to(Database::server()).await.expect("a proxy");
    let options = "store.deadline = \"1s\"\nlimits.polls_per_minute = 10000";
    let app = TestApp::on(Database::through(proxy.address).await, options).await;
    let ana = app.ana();
    let mut stream = app.stream("repo:acme/api", &ana, None).await;
    app.post_runs(1..=3).await;
    assert_eq!(stream.runs(3).await, [1, 2, 3]);
    let before = app.sql().counts().await;

    proxy.set(mode);
    until_ready_is(&app, 503).await;
    let refused = app.get("/readyz", "").await.expect(503).json();
    assert_eq!(refused["unavailable"], json!(["store"]));
    assert_eq!(app.get("/healthz", "").await.expect(200).json()["status"], "alive");
    let delivery = app.webhook("workflow_run", run_of("acme/api", 4).to_string());
    let mut refusals = 0;
    for answer in futures_util::future::join_all((0..8).map(|_| app.send(delivery.clone()))).await {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
        refusals += 1;
    }
    let counted = app.metric("webhooks", "unconfirmed").await + app.metric("webhooks", "overloaded").await;
    assert_eq!(counted, refusals);
    let poll = app.get("/api/events?channel=repo:acme/api", &ana).await.refused(503, "store_unavailable");
    assert!(poll.header("retry-after").is_some());
    // A channel that nobody follows yet cannot be joined; the one that is followed stays open.
    app.get("/api/events/stream?channels=repo:acme/web", &ana).await.refused(503, "store_unavailable");
    app.until_metric("store_up", "", 0).await;
    assert_eq!(app.metric("connections", "sse").await, 1);
    assert_eq!(app.sql().counts().await, before, "5xx here means that nothing was committed");

    proxy.set(Link::Open);
    let took = until_ready_is(&app, 200).await;
    assert!(took < Duration::from_secs(5), "ready again only after {took:?}");
    let began = Instant::now();
    loop {
        let answer = app.send(delivery.clone()).await;
        if matches!(answer.status, 200 | 202) {
            break;
        }
        assert_eq!(answer.status, 503);
        assert!(began.elapsed() < Duration::from_secs(5), "webhooks are still refused");
    }
    app.post_runs(5..=6).await;
    assert_eq!(stream.runs(3).await, [4, 5, 6], "on the stream that was open all the time");
    let page = app.poll("channel=repo:acme/api", &ana).await;
    let runs: Vec<_> =
        page["events"].as_array().unwrap().iter().map(|e| e["data"]["runId"].clone()).collect();
    assert_eq!(json!(runs), json!([1, 2, 3, 4, 5, 6]));
    app.until_metric("store_up", "", 1).await;
}

#[tokio::test]
async fn nothing_is_confirmed_while_postgres_refuses_and_all_goes_on_after() {
    postgres_goes_and_comes_back(Link::Refused).await;
}

#[tokio::test]
async fn nothing_is_confirmed_while_postgres_is_silent_and_all_goes_on_after() {
    postgres_goes_and_comes_back(Link::Stalled).await;
}

async fn a_node_that_drains_is_not_ready_and_finishes_what_it_began(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut kept = TcpStream::connect(app.address()).await.expect("a connection");
    ask(&mut kept, &request("/readyz"), 200).await;
    // Who polls at the end of a channel is answered without a look at the routes.
    let ana = app.ana();
    let cursor = app.poll("channel=org:acme", &ana).await["cursor"].as_str().expect("a cursor").to_owned();
    let path = format!("/api/events?channel=org:acme&cursor={cursor}");
    let tag = app.get(&path, &ana).await.expect(200).header("etag").expect("a tag").to_owned();
    let poll = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ana}\r\nIf-None-Match: {tag}\r\n\r\n"
    );
    let mut poller = TcpStream::connect(app.address()).await.expect("a connection");
    ask(&mut poller, &poll, 304).await;
    // A delivery whose second half comes during the drain.
    let delivery = app.webhook("star", "{}      ");
    let mut slow = delivery.send_beginning(app.address(), 8, b"{}  ").await;
    let admin = app.admin();
    let finish = async {
        loop {
            kept.write_all(request("/readyz").as_bytes()).await.expect("kept");
            let answer = Answer::read(&mut kept).await;
            // An answer that was ready when the drain began says so by its connection's end.
            if answer.status == 503 || answer.header("connection") == Some("close") {
                break;
            }
        }
        poller.write_all(poll.as_bytes()).await.expect("kept");
        let answer = Answer::read(&mut poller).await.expect(304);
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        slow.write_all(b"    ").await.expect("written");
        Answer::read(&mut slow).await.expect(202);
    };
    tokio::join!(app.stop(), finish);
    app.restart().await;
    let list = app.get("/api/deliveries", &admin).await.expect(200).json();
    assert_eq!(list["deliveries"].as_array().map(Vec::len), Some(1));
}

async fn ask(socket: &mut TcpStream, request: &str, status: u16) {
    socket.write_all(request.as_bytes()).await.expect("written");
    Answer::read(socket).await.expect(status);
}

async fn metrics_tell_of_clients_that_do_not_answer_and_of_what_the_process_uses(backend: Backend) {
    let options = "client.ping_interval = \"3s\"\nclient.pong_timeout = \"2900ms\"";
    let app = TestApp::with(backend, options).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    client.subscribe("org:acme").await;
    client.pongs = false;
    assert_eq!(app.metric("messages_received", "websocket").await, 2);
    app.until_metric("connections_unhealthy", "", 1).await;
    assert_eq!(client.closed_with().await, 3012);
    app.until_metric("connections_unhealthy", "", 0).await;
    assert_eq!(app.metric("messages_received", "").await, 2, "what was said, and no more");
    let used = app.metric("resident_memory_bytes", "").await;
    assert!(used > 1 << 20 && used < app.metric("memory_limit_bytes", "").await, "{used}");
    let text = app.get("/metrics", "").await.expect(200).text().to_owned();
    assert!(text.contains("outcome=\"signature_invalid\"} 0"), "the first one is an increase");
}

on_both!(
    metrics_tell_of_clients_that_do_not_answer_and_of_what_the_process_uses,
    a_healthy_node_says_so,
    a_route_that_is_not_there_is_refused_in_json,
    metrics_are_open_metrics,
    a_node_that_drains_is_not_ready_and_finishes_what_it_began,
);

/// The status line of an answer to HEAD, which has no body whatever its length says.
async fn head(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("the node listens");
    let request = format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("the node reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer and the end");
    assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
    answer.lines().next().unwrap_or_default().to_owned()
}
