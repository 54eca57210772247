//! `GET /api/events/stream`: what a reader gets, from where, and what it is told when it cannot
//! have it.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of, stream_request};
use crate::support::client::Request;
use crate::support::sse::Stream;

const NEWS: &str = "[[channel.namespaces]]
name = \"news\"
history_size = 3
history_ttl = \"1h\"
allow_subscribe_for_client = true
[[channel.namespaces]]
name = \"fleeting\"
allow_subscribe_for_client = true
";

async fn a_stream_begins_with_its_cursor_and_carries_what_comes(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut stream = app.stream("repo:acme/api", &app.ana(), None).await;
    assert_eq!(stream.head.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(stream.head.header("x-accel-buffering"), Some("no"));
    assert!(stream.head.header("cache-control").is_some_and(|value| value.contains("no-store")));
    let opening = stream.next().await.expect("an opening");
    assert!(opening.id.is_some() && opening.retry.is_some() && opening.data.is_none(), "{opening:?}");
    app.post_runs(1..=3).await;
    let first = stream.next_event().await;
    assert_eq!((first.name(), first.run()), ("workflow:started", 1));
    assert_eq!(first.json()["repo"], "acme/api");
    assert_eq!(stream.runs(2).await, [2, 3]);
    assert_eq!(app.metric("messages_sent", "sse").await, 3);
}

async fn a_returning_reader_gets_what_it_missed_exactly_once(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    let ana = app.ana();
    let mut stream = app.stream("repo:acme/api", &ana, None).await;
    app.post_runs(1..=2).await;
    assert_eq!(stream.runs(2).await, [1, 2]);
    let cursor = stream.last_id.clone();
    drop(stream);
    app.post_runs(3..=4).await;
    app.restart().await;
    app.post_runs(5..=5).await;
    let mut stream = app.stream("repo:acme/api", &ana, cursor.as_deref()).await;
    app.post_runs(6..=6).await;
    assert_eq!(stream.runs(4).await, [3, 4, 5, 6]);
}

async fn a_reader_who_left_before_the_first_event_misses_nothing(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut stream = app.stream("org:acme", &app.ana(), None).await;
    let opening = stream.next().await.expect("an opening");
    drop(stream);
    app.post_runs(1..=1).await;
    let mut stream = app.stream("org:acme", &app.ana(), opening.id.as_deref()).await;
    assert_eq!(stream.runs(1).await, [1]);
}

async fn what_cannot_be_streamed_is_refused_by_name(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    app.post_runs(1..=1).await;
    let (ana, before) = (app.ana(), app.sql().counts().await);
    let many: Vec<String> = (0..33).map(|n| format!("repo:acme/r{n}")).collect();
    let of_both = app.stream("repo:acme/api,repo:acme/web", &ana, None).await.next().await;
    let of_both = of_both.and_then(|opening| opening.id).expect("a cursor");
    let many = many.join(",");
    for (query, status, code) in [
        ("?channels=", 400, "bad_channel"),
        ("?channels=org:acme,", 400, "bad_channel"),
        ("?channels=org:acme,repo:acme", 400, "bad_channel"),
        ("?channels=org:acme&channels=org:acme", 400, "bad_query"),
        (&format!("?channels={many}"), 400, "too_many_channels"),
        ("?channels=org:other", 403, "forbidden"),
        ("?channels=org:acme,org:other", 403, "forbidden"),
        ("?channels=org:acme,%23ben", 403, "forbidden"),
        ("?channels=org:acme,build:0195d3a0-0000-7000-8000-000000000000", 403, "forbidden"),
        ("?channels=org:acme,nobody:knows", 404, "unknown_channel"),
        ("?channels=org:acme&cursor=x", 400, "bad_cursor"),
        ("?channels=org:acme&cursor=e.01", 400, "bad_cursor"),
        ("?channels=org:acme,repo:acme/api&cursor=e.1", 400, "bad_cursor"),
        (&format!("?channels=repo:acme/api&cursor={of_both}"), 400, "bad_cursor"),
        (&format!("?channels=org:acme,repo:acme/api&cursor={of_both}"), 400, "bad_cursor"),
        ("?channels=fleeting:x&cursor=e.1", 400, "bad_cursor"),
    ] {
        let counted = app.metric("refusals", code).await;
        app.get(&format!("/api/events/stream{query}"), &ana).await.refused(status, code);
        assert_eq!(app.metric("refusals", code).await, counted + 1, "{query}");
    }
    let header = Request::get("/api/events/stream?channels=org:acme").bearer(&ana);
    app.send(header.clone().header("Last-Event-ID", "x")).await.refused(400, "bad_cursor");
    app.send(header.header("Last-Event-ID", "\u{fc}.1")).await.refused(400, "bad_cursor");
    app.get("/api/events/stream", &app.token(json!({ "sub": "x" }))).await.refused(400, "bad_channel");
    app.get("/api/events/stream?token=x", "").await.refused(401, "token_invalid");
    app.get("/api/events/stream", "").await.refused(401, "token_missing");
    assert_eq!(app.sql().counts().await, before);
}

async fn the_header_wins_over_the_query(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=3).await;
    let ana = app.ana();
    let page = app.poll("channel=org:acme&limit=1", &ana).await;
    let after_one = page["cursor"].as_str().expect("a cursor").to_owned();
    let (epoch, _) = after_one.split_once('.').expect("epoch.offset");
    let request =
        Request::get(&format!("/api/events/stream?channels=org:acme&cursor={after_one}")).bearer(&ana);
    let mut by_query = Stream::open(app.address(), &request).await.expect("a stream");
    assert_eq!(by_query.runs(2).await, [2, 3]);
    let request = request.header("Last-Event-ID", &format!("{epoch}.2"));
    let mut by_header = Stream::open(app.address(), &request).await.expect("a stream");
    assert_eq!(by_header.runs(1).await, [3]);
}

async fn a_lost_cursor_is_told_and_the_stream_goes_on_live(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let ana = app.ana();
    app.post_runs(1..=3).await;
    let page = app.poll("channel=org:acme", &ana).await;
    let (epoch, _) = page["cursor"].as_str().and_then(|cursor| cursor.split_once('.')).expect("a cursor");
    for n in 1..=5 {
        app.publish(json!({ "channel": "news:x", "data": n })).await.expect(200);
    }
    let lost = [("org:acme", "other.2", 0, 3), ("org:acme", "ahead.7", 0, 3), ("news:x", "trimmed.1", 2, 5)];
    for (channel, cursor, oldest, head) in lost {
        let (kind, offset) = cursor.split_once('.').expect("kind.offset");
        let cursor = format!("{}.{offset}", if kind == "other" { kind } else { epoch });
        let mut stream = app.stream(channel, &ana, Some(&cursor)).await;
        let reset = stream.next_event().await;
        assert_eq!(reset.name(), "stream:reset");
        let head = format!("{epoch}.{head}");
        let expected = json!({ "channel": channel, "oldest": format!("{epoch}.{oldest}"), "head": head });
        assert_eq!(reset.json(), expected);
        assert_eq!(reset.id.as_deref(), Some(head.as_str()), "who comes back after it misses nothing");
        if channel == "news:x" {
            app.publish(json!({ "channel": channel, "data": 6 })).await.expect(200);
            assert_eq!(stream.next_event().await.json(), json!({ "offset": 6, "data": 6 }));
        }
    }
    // One of two is lost: the other one is replayed all the same.
    let positions = json!({ "org:acme": [epoch, 1], "repo:acme/api": ["other", 1] });
    let cursor =
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, positions.to_string());
    let mut stream = app.stream("org:acme,repo:acme/api", &ana, Some(&cursor)).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        names.push(stream.next_event().await.name().to_owned());
    }
    names.sort();
    assert_eq!(names, ["stream:reset", "workflow:started", "workflow:started"]);
    app.post_runs(9..=9).await;
    assert_eq!(stream.runs(2).await, [9, 9]);
}

async fn several_channels_share_one_cursor(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let ana = app.ana();
    let channels = "org:acme,news:x,fleeting:x,repo:acme/web";
    let publish =
        |channel: &'static str, data: Value| app.publish(json!({ "channel": channel, "data": data }));
    let mut stream = app.stream(channels, &ana, None).await;
    app.post_runs(1..=1).await;
    assert_eq!(stream.runs(1).await, [1]);
    publish("news:x", json!("a")).await.expect(200);
    assert_eq!(stream.next_event().await.json(), json!({ "offset": 1, "data": "a" }));
    publish("fleeting:x", json!("gone")).await.expect(200);
    let fleeting = stream.next_event().await;
    assert_eq!((fleeting.json(), fleeting.id), (json!({ "data": "gone" }), None));
    let cursor = stream.last_id.clone();
    drop(stream);
    app.post_webhook("workflow_run", &run_of("acme/web", 2)).await.expect(202);
    publish("news:x", json!("b")).await.expect(200);
    let mut stream = app.stream(channels, &ana, cursor.as_deref()).await;
    let mut got = Vec::new();
    for _ in 0..3 {
        let event = stream.next_event().await;
        got.push(if event.name() == "message" { 0 } else { event.run() });
    }
    got.sort_unstable();
    assert_eq!(got, [0, 2, 2], "org: and repo: of the run, and the news");
    publish("news:x", json!("c")).await.expect(200);
    assert_eq!(stream.next_event().await.json(), json!({ "offset": 3, "data": "c" }));
}

async fn the_claims_say_what_is_streamed_if_the_request_does_not(backend: Backend) {
    let app = TestApp::start(backend).await;
    let token = app.token(json!({ "sub": "ana", "orgs": ["acme"], "repos": ["other/one", "acme/api"] }));
    let request = Request::get(&format!("/api/events/stream?token={token}"));
    let mut stream = Stream::open(app.address(), &request).await.expect("a stream");
    app.post_runs(1..=1).await;
    for (repo, run) in [("other/two", 2), ("other/one", 3)] {
        app.post_webhook("workflow_run", &run_of(repo, run)).await.expect(202);
    }
    app.post_runs(4..=4).await;
    assert_eq!(stream.runs(3).await, [1, 3, 4]);
}

async fn data_is_one_line_whatever_was_published(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let mut stream = app.stream("news:x,org:acme", &app.ana(), None).await;
    let post = |body: &str| {
        let key = crate::support::app::API_KEY;
        app.send(Request::post("/api/publish").header("X-API-Key", key).body(body))
    };
    post("{\"channel\":\"news:x\",\"data\":{\r\n\"a\":\n[1,\r\n\"x\\n\\u2028\"]}}").await.expect(200);
    assert_eq!(stream.next_event().await.json()["data"], json!({ "a": [1, "x\n\u{2028}"] }));
    let built_in = "{\"channel\":\"org:acme\",\"data\":{\"type\":\"x:y\",\"data\":{\n\r\"b\":\n1}}}";
    post(built_in).await.expect(200);
    let event = stream.next_event().await;
    assert_eq!((event.name(), event.json()["data"].clone()), ("x:y", json!({ "b": 1 })));
}

async fn events_that_are_not_kept_have_no_cursor_and_are_not_replayed(backend: Backend) {
    let app = TestApp::with(backend, NEWS).await;
    let mut stream = app.stream("news:x", &app.ana(), None).await;
    let publish = |data: u64, skip: bool| {
        app.publish(json!({ "channel": "news:x", "data": data, "skip_history": skip }))
    };
    publish(1, false).await.expect(200);
    publish(2, true).await.expect(200);
    publish(3, false).await.expect(200);
    let mut ids = Vec::new();
    for data in 1..=3 {
        let event = stream.next_event().await;
        assert_eq!(event.json()["data"], data);
        ids.push(event.id);
    }
    assert!(ids[0].is_some() && ids[1].is_none() && ids[2].is_some(), "{ids:?}");
    let mut again = app.stream("news:x", &app.ana(), ids[0].as_deref()).await;
    assert_eq!(again.next_event().await.json(), json!({ "offset": 2, "data": 3 }));
}

async fn a_stream_that_is_switched_off_is_not_there(backend: Backend) {
    let app = TestApp::with(backend, "sse.enabled = false").await;
    let refused = Stream::open(app.address(), &stream_request("org:acme", &app.ana(), None)).await;
    refused.expect_err("no stream").refused(404, "transport_disabled");
}

on_both!(
    a_stream_begins_with_its_cursor_and_carries_what_comes,
    a_returning_reader_gets_what_it_missed_exactly_once,
    a_reader_who_left_before_the_first_event_misses_nothing,
    what_cannot_be_streamed_is_refused_by_name,
    the_header_wins_over_the_query,
    a_lost_cursor_is_told_and_the_stream_goes_on_live,
    several_channels_share_one_cursor,
    the_claims_say_what_is_streamed_if_the_request_does_not,
    data_is_one_line_whatever_was_published,
    events_that_are_not_kept_have_no_cursor_and_are_not_replayed,
    a_stream_that_is_switched_off_is_not_there,
);
