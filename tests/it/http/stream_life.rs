//! How long an event stream lives: tokens that end, readers that are slow, too many, gone or from
//! elsewhere, and a server that goes away.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use crate::support::app::{Backend, TestApp, on_both, stream_request};
use crate::support::client::Request;
use crate::support::sse::Stream;

async fn a_quiet_stream_gets_comments(backend: Backend) {
    let app = TestApp::with(backend, "sse.ping_interval = \"50ms\"").await;
    let mut stream = app.stream("org:acme", &app.ana(), None).await;
    stream.next().await.expect("an opening");
    for _ in 0..3 {
        let frame = stream.next().await.expect("a comment");
        assert!(frame.comment && frame.data.is_none() && frame.id.is_none(), "{frame:?}");
    }
    app.post_runs(1..=1).await;
    assert_eq!(stream.runs(1).await, [1]);
}

async fn a_stream_ends_with_its_token(backend: Backend) {
    let app = TestApp::start(backend).await;
    let soon = chrono::Utc::now().timestamp() + 2;
    let token = app.token(json!({ "sub": "ana", "orgs": ["acme"], "exp": soon }));
    let mut stream = app.stream("org:acme", &token, None).await;
    app.post_runs(1..=1).await;
    assert_eq!(stream.runs(1).await, [1]);
    let expired = stream.next_event().await;
    assert_eq!((expired.name(), expired.id.as_deref()), ("stream:expired", None));
    assert!(chrono::Utc::now().timestamp() >= soon);
    stream.ends().await;
    app.until_metric("connections", "sse", 0).await;
    let refused = Stream::open(app.address(), &stream_request("org:acme", &token, None)).await;
    refused.expect_err("no stream").refused(401, "token_expired");
    let mut again = app.stream("org:acme", &app.ana(), stream.last_id.as_deref()).await;
    app.post_runs(2..=2).await;
    assert_eq!(again.runs(1).await, [2]);
}

async fn pages_of_other_sites_are_kept_out(backend: Backend) {
    let app = TestApp::with(backend, "client.allowed_origins = [\"https://*.acme.example\"]").await;
    let ana = app.ana();
    let own = format!("http://{}", app.address());
    let listen = |path: &str, origin: &str| Request::get(path).bearer(&ana).header("Origin", origin);
    for origin in ["https://evil.example", "null", "https://a.b.acme.example", "https://acme.example", "x"] {
        for path in ["/api/events/stream?channels=org:acme", "/api/events/%73tream?channels=org:acme"] {
            let refused = Stream::open(app.address(), &listen(path, origin)).await.err();
            let refused = refused.unwrap_or_else(|| panic!("{origin} may listen on {path}"));
            let refused = refused.refused(403, "origin_forbidden");
            assert_eq!(refused.header("access-control-allow-origin"), None);
        }
        let preflight = Request::new("OPTIONS", "/api/events").header("Origin", origin);
        let preflight = preflight.header("Access-Control-Request-Method", "GET");
        app.send(preflight).await.refused(403, "origin_forbidden");
        let read = app.send(listen("/api/events?channel=org:acme", origin)).await.expect(200);
        assert_eq!(read.header("access-control-allow-origin"), None, "the browser keeps it from the page");
        let act = app.webhook("star", "{}").header("Origin", origin);
        app.send(act).await.refused(403, "origin_forbidden");
    }
    assert_eq!(app.metric("refusals", "origin_forbidden").await, 20);
    for origin in [own.as_str(), "https://live.acme.example"] {
        let request = listen("/api/events/stream?channels=org:acme", origin);
        let stream = Stream::open(app.address(), &request).await.expect("a stream");
        assert_eq!(stream.head.header("access-control-allow-origin"), Some(origin));
        assert_eq!(stream.head.header("access-control-allow-credentials"), Some("true"));
        assert!(stream.head.headers.contains(&("vary".to_owned(), "Origin".to_owned())), "{:?}", stream.head);
        let preflight = Request::new("OPTIONS", "/api/events/stream")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "GET")
            .header("Access-Control-Request-Headers", "authorization,last-event-id");
        let preflight = app.send(preflight).await.expect(204);
        assert_eq!(preflight.header("access-control-allow-origin"), Some(origin));
        assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization,last-event-id"));
        let methods = preflight.header("access-control-allow-methods").expect("methods");
        assert!(methods.contains("GET") && methods.contains("POST"));
        let refused = app.send(listen("/api/events", origin)).await.refused(400, "bad_channel");
        assert_eq!(refused.header("access-control-allow-origin"), Some(origin), "pages can read refusals");
    }
}

const SLOW: &str = "channel.max_publication_size = \"32KiB\"
client.queue_max_size = \"64KiB\"
client.user_connection_limit = 0
[[channel.namespaces]]
name = \"news\"
history_size = 1000
history_ttl = \"1h\"
allow_subscribe_for_client = true
";

/// Opens a stream over a socket that takes as little as the kernel allows, and does not read.
async fn a_reader_that_sleeps(app: &TestApp, request: &Request) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut socket = socket.connect(app.address()).await.expect("a connection");
    socket.write_all(&request.bytes()).await.expect("written");
    socket
}

/// Publishes numbered events of 30 KB until the slow reader is cut; answers how many.
async fn publish_until_cut(app: &TestApp, bound: &str) -> u64 {
    let padding = "x".repeat(30_000);
    for n in 1..=600 {
        app.publish(json!({ "channel": "news:x", "data": { "n": n, "p": padding } })).await.expect(200);
        if app.metric("slow_disconnects", bound).await == 1 {
            return n;
        }
    }
    panic!("18 MB wait for a reader that does not read");
}

/// The numbers of the events that a cut stream holds, and its last cursor.
async fn rest_of(socket: tokio::net::TcpStream) -> (Vec<u64>, String) {
    let mut stream = Stream::over(socket).await;
    let mut numbers = Vec::new();
    while let Some(event) = stream.event_or_end().await {
        numbers.push(event.json()["data"]["n"].as_u64().expect("a number"));
    }
    (numbers, stream.last_id.expect("an opening with a cursor"))
}

async fn a_reader_that_does_not_read_is_cut_and_loses_nothing(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let ana = app.ana();
    let request = stream_request("news:x", &ana, None);
    let slow = a_reader_that_sleeps(&app, &request).await;
    app.until_metric("connections", "sse", 1).await;
    let mut swift = app.stream("news:x", &ana, None).await;
    let reading = async {
        for n in 1.. {
            if swift.next_event().await.json()["data"]["n"] != n {
                return n;
            }
        }
        0
    };
    let published = tokio::select! {
        published = publish_until_cut(&app, "queue") => published,
        n = reading => panic!("the swift reader misses {n}"),
    };
    app.until_metric("connections", "sse", 1).await;
    let (mut seen, cursor) = rest_of(slow).await;
    assert!((seen.len() as u64) < published, "nothing was held back");
    let mut again = app.stream("news:x", &ana, Some(&cursor)).await;
    while seen.len() < published as usize {
        seen.push(again.next_event().await.json()["data"]["n"].as_u64().expect("a number"));
    }
    assert_eq!(seen, (1..=published).collect::<Vec<_>>());
}

async fn a_reader_that_takes_nothing_for_too_long_is_cut(backend: Backend) {
    let patient = SLOW.replace("64KiB", "64MiB");
    let app = TestApp::with(backend, &format!("client.write_timeout = \"200ms\"\n{patient}")).await;
    let request = stream_request("news:x", &app.ana(), None);
    let slow = a_reader_that_sleeps(&app, &request).await;
    app.until_metric("connections", "sse", 1).await;
    publish_until_cut(&app, "write_timeout").await;
    app.until_metric("connections", "sse", 0).await;
    drop(slow);
}

/// The queue bounds what a reader leaves lying, not what it missed.
async fn a_long_replay_does_not_count_as_a_slow_reader(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let ana = app.ana();
    let padding = "x".repeat(4_000);
    let mut first = app.stream("news:x,news:y", &ana, None).await;
    let cursor = first.next().await.and_then(|opening| opening.id);
    drop(first);
    for n in 1..=200u64 {
        for channel in ["news:x", "news:y"] {
            app.publish(json!({ "channel": channel, "data": { "n": n, "p": padding } })).await.expect(200);
        }
    }
    let mut stream = app.stream("news:x,news:y", &ana, cursor.as_deref()).await;
    let mut sums = 0;
    for _ in 0..400 {
        sums += stream.next_event().await.json()["data"]["n"].as_u64().expect("a number");
    }
    assert_eq!(sums, 2 * (1..=200).sum::<u64>());
    assert_eq!(app.metric("slow_disconnects", "").await, 0);
}

/// What comes live while a replay lies unread waits in the log, not in the queue.
async fn live_events_during_a_replay_do_not_cut_its_reader(backend: Backend) {
    let app = TestApp::with(backend, SLOW).await;
    let ana = app.ana();
    let mut first = app.stream("news:x,news:y", &ana, None).await;
    let cursor = first.next().await.and_then(|opening| opening.id);
    drop(first);
    let publish = async |channel: &str, n: u64, size: usize| {
        let data = json!({ "n": n, "p": "x".repeat(size) });
        app.publish(json!({ "channel": channel, "data": data })).await.expect(200);
    };
    for n in 1..=150 {
        publish("news:x", n, 30_000).await;
    }
    let request = stream_request("news:x,news:y", &ana, cursor.as_deref());
    let slow = a_reader_that_sleeps(&app, &request).await;
    app.until_metric("connections", "sse", 1).await;
    for n in 151..=250 {
        publish("news:x", n, 4_000).await;
    }
    for n in 1001..=1010 {
        publish("news:y", n, 4_000).await;
    }
    let mut stream = Stream::over(slow).await;
    let (mut of_x, mut of_y) = (Vec::new(), Vec::new());
    while of_x.len() + of_y.len() < 260 {
        let n = stream.next_event().await.json()["data"]["n"].as_u64().expect("a number");
        if n > 1000 { of_y.push(n) } else { of_x.push(n) }
    }
    assert_eq!((of_x, of_y), ((1..=250).collect(), (1001..=1010).collect()));
    assert_eq!(app.metric("slow_disconnects", "").await, 0);
}

async fn a_user_has_so_many_streams_and_no_more(backend: Backend) {
    let app = TestApp::with(backend, "client.user_connection_limit = 2\nlimits.sse_connections = 3").await;
    let (ana, ben) = (app.ana(), app.token(json!({ "sub": "ben", "orgs": ["acme"] })));
    let first = app.stream("org:acme", &ana, None).await;
    let _second = app.stream("org:acme", &ana, None).await;
    let address = app.address();
    let more = |token: &str| {
        let request = stream_request("org:acme", token, None);
        async move { Stream::open(address, &request).await }
    };
    let refused = more(&ana).await.expect_err("no third").refused(429, "connection_limit");
    assert!(refused.header("retry-after").is_some());
    let _of_ben = more(&ben).await.expect("another user");
    let refused = more(&ben).await.expect_err("the node is full").refused(503, "too_many_streams");
    assert!(refused.header("retry-after").is_some());
    // Whoever leaves makes room, long before a ping would find out.
    drop(first);
    app.until_metric("connections", "sse", 2).await;
    let _third = more(&ana).await.expect("room again");
}

async fn a_server_that_goes_away_says_so_and_the_reader_comes_back(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let ana = app.ana();
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(app.stream("repo:acme/api", &ana, None).await);
    }
    let mut sleeping = a_reader_that_sleeps(&app, &stream_request("repo:acme/api", &ana, None)).await;
    app.until_metric("connections", "sse", 6).await;
    app.post_runs(1..=1).await;
    for stream in &mut streams {
        assert_eq!(stream.runs(1).await, [1]);
    }
    app.stop().await;
    let mut last = None;
    for stream in &mut streams {
        let closing = stream.next_event().await;
        assert_eq!((closing.name(), closing.id.as_deref()), ("stream:closing", None));
        stream.ends().await;
        last.clone_from(&stream.last_id);
    }
    let _ = sleeping.shutdown().await;
    assert!(Request::get("/healthz").try_send(app.address()).await.is_none(), "nobody listens");
    app.restart().await;
    app.post_runs(2..=2).await;
    let mut again = app.stream("repo:acme/api", &ana, last.as_deref()).await;
    assert_eq!(again.runs(1).await, [2]);
}

on_both!(
    a_quiet_stream_gets_comments,
    a_stream_ends_with_its_token,
    pages_of_other_sites_are_kept_out,
    a_reader_that_does_not_read_is_cut_and_loses_nothing,
    a_reader_that_takes_nothing_for_too_long_is_cut,
    a_long_replay_does_not_count_as_a_slow_reader,
    live_events_during_a_replay_do_not_cut_its_reader,
    a_user_has_so_many_streams_and_no_more,
    a_server_that_goes_away_says_so_and_the_reader_comes_back,
);
