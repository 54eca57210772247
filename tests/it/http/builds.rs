//! Builds: told of over HTTP, heard over all three transports, and only by those whom they concern.

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::app::{Backend, TestApp, on_both, stream_request};
use crate::support::client::{Answer, Request};
use crate::support::sse::Stream;
use crate::support::websocket::Client;

const ID: &str = "0195d3a0-1111-7000-8000-0000000000aa";
const OTHER: &str = "0195d3a0-1111-7000-8000-0000000000bb";

/// The event of a build's step.
fn step(n: u64) -> Value {
    json!({ "type": "build:step", "data": { "n": n } })
}

fn telling(id: &str, token: &str, body: &Value) -> Request {
    Request::post(&format!("/api/builds/{id}/events")).bearer(token).json(body)
}

async fn tell(app: &TestApp, id: &str, token: &str, body: &Value) -> Answer {
    app.send(telling(id, token, body)).await
}

fn numbers(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().expect("a list").iter();
    events.map(|event| event["data"]["n"].as_u64().expect("a number")).collect()
}

async fn the_first_event_makes_a_build_and_the_rest_follow(backend: Backend) {
    let app = TestApp::start(backend).await;
    let ana = app.ana();
    let told = json!({ "type": "build:started", "data": { "n": 1, "text": "ü\n" }, "org": "acme" });
    let first = tell(&app, ID, &ana, &told).await.expect(201).json();
    assert_eq!((&first["buildId"], &first["channel"]), (&json!(ID), &json!(format!("build:{ID}"))));
    tell(&app, ID, &ana, &json!({ "type": "build:step", "data": { "n": 2 }, "org": "acme" }))
        .await
        .expect(201);
    let last = tell(&app, ID, &ana, &step(3)).await.expect(201).json();
    tell(&app, ID, &ana, &json!({ "type": "build:failed", "org": "other" })).await.refused(403, "forbidden");
    let both = app.token(json!({ "sub": "ana", "orgs": ["acme", "other"] }));
    tell(&app, ID, &both, &json!({ "type": "build:x", "org": "other" })).await.refused(409, "build_org");

    let path = format!("/api/build-events/{ID}");
    let page = app.get(&path, &ana).await.expect(200).json();
    assert_eq!((numbers(&page), &page["cursor"]), (vec![1, 2, 3], &last["cursor"]));
    let event = &page["events"][0];
    assert_eq!((&event["id"], &event["type"]), (&first["id"], &json!("build:started")));
    assert_eq!(event["data"], told["data"]);
    assert!(event["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
    assert_eq!(page, app.poll(&format!("channel=build:{ID}"), &ana).await, "one poll under two names");
    assert_eq!((app.sql().count("builds").await, app.sql().count("events").await), (1, 3));
    // What is left out is null.
    tell(&app, OTHER, &ana, &json!({ "type": "build:done" })).await.expect(201);
    let page = app.get(&format!("/api/build-events/{OTHER}"), &ana).await.expect(200).json();
    assert_eq!(page["events"][0]["data"], Value::Null);
}

async fn what_makes_no_sense_is_refused_by_name(backend: Backend) {
    let app = TestApp::with(backend, "channel.max_publication_size = \"1KiB\"").await;
    let (ana, before) = (app.ana(), app.sql().counts().await);
    for id in ["x", "1", "0195D3A0-1111-7000-8000-0000000000AA", "0195d3a0111170008000000000000001", "%00"] {
        tell(&app, id, &ana, &step(1)).await.refused(400, "bad_build");
        app.get(&format!("/api/build-events/{id}"), &ana).await.refused(400, "bad_build");
    }
    let long = format!("build:{}", "x".repeat(60));
    for body in [
        json!(null),
        json!([]),
        json!(["build:x", {}]),
        json!({}),
        json!({ "type": 1 }),
        json!({ "type": "build:" }),
        json!({ "type": "workflow:completed" }),
        json!({ "type": "stream:reset" }),
        json!({ "type": "build:a b" }),
        json!({ "type": "build:a\n" }),
        json!({ "type": long }),
        json!({ "type": "build:x", "org": 5 }),
    ] {
        tell(&app, ID, &ana, &body).await.refused(400, "bad_event");
    }
    let raw = |body: &str| app.send(telling(ID, &ana, &json!(0)).body(body));
    raw("").await.refused(400, "bad_event");
    raw("{\"type\":\"build:x\"").await.refused(400, "bad_event");
    raw("{\"type\":\"build:x\",\"data\":\"\u{1}\"}").await.refused(400, "bad_event");
    for org in ["other", "Acme", "", "a\u{0}b"] {
        let body = json!({ "type": "build:x", "org": org });
        tell(&app, ID, &ana, &body).await.refused(403, "forbidden");
    }
    let large = json!({ "type": "build:x", "data": "x".repeat(1023) });
    tell(&app, ID, &ana, &large).await.refused(413, "body_too_large");
    let huge = telling(ID, &ana, &json!({ "type": "build:x", "data": "x".repeat(4000) }));
    app.send(huge.clone()).await.refused(413, "body_too_large");
    app.send(huge.chunked()).await.refused(413, "body_too_large");
    for key in ["", &"k".repeat(256)] {
        app.send(telling(ID, &ana, &step(1)).header("Idempotency-Key", key)).await.refused(400, "bad_key");
    }
    tell(&app, ID, &app.token(json!({ "orgs": ["acme"] })), &step(1)).await.refused(403, "forbidden");
    tell(&app, ID, &app.token(json!({ "sub": "a\u{0}" })), &step(1)).await.refused(401, "token_invalid");
    let request = telling(ID, "", &step(1));
    app.send(request.clone().without("Authorization")).await.refused(401, "token_missing");
    app.send(request.bearer("x")).await.refused(401, "token_invalid");
    app.get(&format!("/api/builds/{ID}/events"), &ana).await.refused(405, "method_not_allowed");
    assert_eq!(app.sql().counts().await, before);
    // One byte less of data is fine.
    let fits = json!({ "type": "build:x", "data": "x".repeat(1022) });
    tell(&app, ID, &ana, &fits).await.expect(201);
}

/// Whether somebody hears of a build: the same over all transports, or the test fails.
async fn hears(app: &TestApp, id: &str, token: &str) -> bool {
    let channel = format!("build:{id}");
    let polled = app.get(&format!("/api/build-events/{id}"), token).await;
    let hears = polled.status == 200;
    let poll = app.get(&format!("/api/events?channel={channel}"), token).await;
    let stream = Stream::open(app.address(), &stream_request(&channel, token, None)).await;
    let mut client = Client::connected(app, token).await;
    let read = client.ask(json!({ "history": { "channel": channel, "limit": 1 } })).await;
    let reply = client.ask(json!({ "subscribe": { "channel": channel } })).await;
    if hears {
        poll.expect(200);
        assert!(stream.is_ok() && read["history"].is_object() && reply["subscribe"].is_object(), "{reply}");
    } else {
        polled.refused(404, "not_found");
        poll.refused(403, "forbidden");
        stream.expect_err("no stream").refused(403, "forbidden");
        assert_eq!((&read["error"]["code"], &reply["error"]["code"]), (&json!(103), &json!(103)));
        assert_eq!(client.error(json!({ "publish": { "channel": channel, "data": 1 } })).await, 103);
    }
    hears
}

async fn a_build_is_heard_by_its_owner_its_account_and_admins(backend: Backend) {
    let app = TestApp::with(backend, "limits.polls_per_minute = 1000").await;
    let ana = app.ana();
    let who = [
        ("its owner", ana.clone()),
        ("its owner without the account", app.token(json!({ "sub": "ana" }))),
        ("a member", app.token(json!({ "sub": "ben", "orgs": ["acme"] }))),
        ("an admin", app.admin()),
        ("a stranger", app.token(json!({ "sub": "eve", "orgs": ["other"], "repos": ["acme/api"] }))),
        ("nobody", app.token(json!({}))),
    ];
    let heard = async |id: &str| {
        let mut heard = Vec::new();
        for (name, token) in &who {
            if hears(&app, id, token).await {
                heard.push(*name);
            }
        }
        heard
    };
    assert!(heard(ID).await.is_empty(), "what is not there is nobody's, not even an admin's");
    tell(&app, ID, &ana, &json!({ "type": "build:started", "org": "acme" })).await.expect(201);
    tell(&app, OTHER, &ana, &json!({ "type": "build:started" })).await.expect(201);
    let all = ["its owner", "its owner without the account", "a member", "an admin"];
    assert_eq!(heard(ID).await, all);
    assert_eq!(heard(OTHER).await, ["its owner", "its owner without the account", "an admin"]);
}

async fn only_its_owner_and_admins_tell_of_a_build(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (ana, eve) = (app.ana(), app.token(json!({ "sub": "eve", "orgs": ["other"] })));
    let ben = app.token(json!({ "sub": "ben", "orgs": ["acme"] }));
    tell(&app, ID, &ana, &json!({ "type": "build:step", "data": { "n": 1 }, "org": "acme" }))
        .await
        .expect(201);
    let before = app.sql().counts().await;
    tell(&app, ID, &eve, &step(2)).await.refused(404, "not_found");
    tell(&app, ID, &ben, &step(2)).await.refused(403, "forbidden");
    // Not even the key of somebody else's event shows that it is there.
    let keyed = |token: &str| telling(ID, token, &step(2)).header("Idempotency-Key", "k");
    app.send(keyed(&eve)).await.refused(404, "not_found");
    assert_eq!(app.sql().counts().await, before);
    app.send(keyed(&ana)).await.expect(201);
    app.send(keyed(&eve)).await.refused(404, "not_found");
    tell(&app, ID, &app.admin(), &step(3)).await.expect(201);
    let page = app.get(&format!("/api/build-events/{ID}"), &ben).await.expect(200).json();
    assert_eq!(numbers(&page), [1, 2, 3]);

    // In a race one wins, and the others never get in.
    let tokens: Vec<String> = (0..6).map(|n| app.token(json!({ "sub": format!("user {n}") }))).collect();
    let race = tokens.iter().map(|token| app.send(telling(OTHER, token, &step(9))));
    let answers = futures_util::future::join_all(race).await;
    let won: Vec<usize> = (0..6).filter(|n| answers[*n].status == 201).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer.status, 201 | 404)), "{answers:?}");
    for (n, token) in tokens.iter().enumerate() {
        let polled = app.get(&format!("/api/build-events/{OTHER}"), token).await;
        assert_eq!(polled.status == 200, n == won[0], "user {n}");
    }
    assert_eq!(app.sql().log(&format!("build:{OTHER}")).await.len(), 1);
}

async fn what_is_told_reaches_everybody_who_listens_in_order(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (ana, channel) = (app.ana(), format!("build:{ID}"));
    let first = tell(&app, ID, &ana, &step(1)).await.expect(201).json();
    let mut client = Client::connected(&app, &ana).await;
    let joined = client.subscribe(&channel).await;
    assert_eq!((&joined["recoverable"], &joined["offset"]), (&json!(true), &json!(1)));
    let mut stream = app.stream(&channel, &ana, None).await;
    for n in 2..=5 {
        tell(&app, ID, &ana, &step(n)).await.expect(201);
    }
    for n in 2..=5 {
        let push = client.push().await;
        assert_eq!((&push["pub"]["data"]["data"]["n"], &push["pub"]["offset"]), (&json!(n), &json!(n)));
        let event = stream.next_event().await;
        assert_eq!((event.name(), &event.json()["data"]["n"]), ("build:step", &json!(n)));
    }
    client.is_quiet().await;
    // The answer's cursor is a place on each transport.
    let cursor = first["cursor"].as_str().expect("a cursor");
    let page = app.get(&format!("/api/build-events/{ID}?cursor={cursor}&limit=2"), &ana).await.expect(200);
    assert_eq!((numbers(&page.json()), &page.json()["hasNext"]), (vec![2, 3], &json!(true)));
    let mut resumed = app.stream(&channel, &ana, Some(cursor)).await;
    assert_eq!(resumed.next_event().await.json()["data"]["n"], 2);
    let (epoch, offset) = cursor.split_once('.').expect("epoch and offset");
    let offset: u64 = offset.parse().expect("an offset");
    let mut again = Client::connected(&app, &ana).await;
    let wish = json!({ "channel": channel, "recover": true, "epoch": epoch, "offset": offset });
    let reply = again.ask(json!({ "subscribe": wish })).await;
    assert_eq!(reply["subscribe"]["recovered"], true);
    assert_eq!(reply["subscribe"]["publications"].as_array().map(Vec::len), Some(4), "{reply}");

    // A subscription that waits for the store is ended by what the client says behind it.
    let mut hasty = Client::connected(&app, &ana).await;
    let subscribe = |id: u64| json!({ "id": id, "subscribe": { "channel": channel } }).to_string();
    let unsubscribe = json!({ "id": 103, "unsubscribe": { "channel": channel } });
    hasty.send_text(&format!("{}\n{}\n{unsubscribe}", subscribe(101), subscribe(102))).await;
    let replies = [hasty.message().await, hasty.message().await, hasty.message().await];
    assert_eq!(replies[0]["subscribe"]["offset"], 5);
    assert_eq!((&replies[1]["error"]["code"], &replies[2]["id"]), (&json!(105), &json!(103)));
    tell(&app, ID, &ana, &step(6)).await.expect(201);
    hasty.is_quiet().await;
}

async fn the_id_of_a_build_that_is_over_is_nobodys_again(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (ana, eve) = (app.ana(), app.token(json!({ "sub": "eve" })));
    tell(&app, ID, &ana, &step(1)).await.expect(201);
    let mut client = Client::connected(&app, &ana).await;
    client.subscribe(&format!("build:{ID}")).await;
    // As the janitor leaves it.
    app.sql().execute("DELETE FROM builds").await;
    for token in [&ana, &eve, &app.admin()] {
        tell(&app, ID, token, &step(2)).await.refused(410, "build_over");
    }
    client.is_quiet().await;
    assert_eq!((app.sql().count("builds").await, app.sql().count("events").await), (0, 1));
}

async fn a_repeated_key_is_answered_without_a_second_event(backend: Backend) {
    let app = TestApp::start(backend).await;
    let ana = app.ana();
    let keyed = |key: &str, n| telling(ID, &ana, &step(n)).header("Idempotency-Key", key);
    let first = app.send(keyed("one", 1)).await.expect(201).json();
    let again = app.send(keyed("one", 2)).await.expect(200).json();
    assert_eq!((&again["duplicate"], &again["cursor"]), (&json!(true), &first["cursor"]));
    app.send(keyed("two", 3)).await.expect(201);
    let at_once = (0..5).map(|n| app.send(keyed("three", n)));
    let mut statuses: Vec<u16> =
        futures_util::future::join_all(at_once).await.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 200, 201]);
    // A user's key is that user's own.
    let root = telling(ID, &app.admin(), &step(4)).header("Idempotency-Key", "one");
    app.send(root).await.expect(201);
    assert_eq!(app.sql().count("events").await, 4);
}

async fn the_poll_of_a_build_is_that_of_any_channel(backend: Backend) {
    let app = TestApp::with(backend, "limits.polls_per_minute = 20").await;
    let ana = app.ana();
    for n in 1..=3 {
        tell(&app, ID, &ana, &step(n)).await.expect(201);
    }
    let path = format!("/api/build-events/{ID}");
    let first = app.get(&path, &ana).await.expect(200);
    assert_eq!(first.header("ratelimit-remaining"), Some("19"));
    let tag = first.header("etag").expect("a tag").to_owned();
    let ask = |path: String| app.send(Request::get(&path).bearer(&ana).header("If-None-Match", &tag));
    assert!(ask(path.clone()).await.expect(304).body.is_empty());
    ask(format!("{path}?limit=1")).await.expect(200);
    app.get(&format!("{path}?limit=101"), &ana).await.refused(400, "bad_limit");
    app.get(&format!("{path}?cursor=x"), &ana).await.refused(400, "bad_cursor");
    let lost = app.get(&format!("{path}?cursor=other.1"), &ana).await.refused(410, "cursor_lost").json();
    assert_eq!(lost["error"]["details"]["head"], first.json()["cursor"]);
    // Whoever may not see it hears nothing of its limits either, and a tag opens nothing.
    let eve = app.token(json!({ "sub": "eve" }));
    app.get(&format!("{path}?cursor=other.1"), &eve).await.refused(404, "not_found");
    app.send(Request::get(&path).bearer(&eve).header("If-None-Match", "*")).await.refused(404, "not_found");
    tell(&app, ID, &ana, &step(4)).await.expect(201);
    assert_eq!(numbers(&ask(path).await.expect(200).json()), [1, 2, 3, 4]);
}

async fn who_tells_too_often_is_told_when_to_come_back(backend: Backend) {
    let app = TestApp::with(backend, "limits.build_events_per_minute = 3").await;
    let ana = app.ana();
    for n in 1..=3 {
        tell(&app, ID, &ana, &step(n)).await.expect(201);
    }
    let refused = tell(&app, ID, &ana, &step(4)).await.refused(429, "rate_limited");
    let of = |name: &str| refused.header(name).and_then(|value| value.parse::<u64>().ok());
    assert!(of("retry-after").is_some_and(|wait| (1..=20).contains(&wait)), "{refused:?}");
    assert_eq!((of("ratelimit-limit"), of("ratelimit-remaining")), (Some(3), Some(0)));
    assert_eq!(app.metric("refusals", "rate_limited").await, 1);
    tell(&app, OTHER, &app.token(json!({ "sub": "ben" })), &step(1)).await.expect(201);
    assert_eq!(app.sql().count("events").await, 4);
}

/// Begins an event of 2,000 bytes and stops shortly before its end, when the node reads it.
async fn half_an_event(app: &TestApp, user: &str) -> TcpStream {
    let request = telling(OTHER, &app.token(json!({ "sub": user })), &json!(0));
    request.send_beginning(app.address(), 2000, &[b' '; 1900]).await
}

async fn events_that_come_slowly_take_no_more_than_their_room(backend: Backend) {
    let options = "limits.build_events_in_flight = \"4KiB\"\nlimits.body_grace = \"1m\"\n\
                   channel.max_publication_size = \"2KiB\"";
    let mut app = TestApp::with(backend, options).await;
    let mut slow = [half_an_event(&app, "carl").await, half_an_event(&app, "dora").await];
    let third = json!({ "type": "build:x", "data": "x".repeat(1000) });
    tell(&app, ID, &app.ana(), &third).await.expect(201);
    let refused = Answer::read(&mut slow[0]).await.refused(503, "body_evicted");
    assert!(refused.header("retry-after").is_some());
    drop(slow);
    app.until_metric("refusals", "body_broken", 1).await;
    assert_eq!(app.metric("refusals", "body_evicted").await, 1);

    app.restart_with("limits.webhook_body_timeout = \"200ms\"").await;
    let mut socket = half_an_event(&app, "carl").await;
    Answer::read(&mut socket).await.refused(408, "body_timeout");
    assert_eq!(app.sql().count("builds").await, 1);
}

on_both!(
    the_first_event_makes_a_build_and_the_rest_follow,
    what_makes_no_sense_is_refused_by_name,
    a_build_is_heard_by_its_owner_its_account_and_admins,
    only_its_owner_and_admins_tell_of_a_build,
    what_is_told_reaches_everybody_who_listens_in_order,
    the_id_of_a_build_that_is_over_is_nobodys_again,
    a_repeated_key_is_answered_without_a_second_event,
    the_poll_of_a_build_is_that_of_any_channel,
    who_tells_too_often_is_told_when_to_come_back,
    events_that_come_slowly_take_no_more_than_their_room,
);
