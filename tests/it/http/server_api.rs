//! `POST /api/publish`: who may, what it takes, and the protocol's own words for what it does not.

use serde_json::{Value, json};

use super::SPACES;
use crate::support::app::{API_KEY, Backend, TestApp, on_both};
use crate::support::client::Request;

fn news() -> Request {
    Request::post("/api/publish").json(&json!({ "channel": "news:x", "data": 1 }))
}

async fn the_key_is_taken_where_the_protocol_allows_it(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let by_query = |key: &str| {
        let body = json!({ "channel": "news:x", "data": 1 });
        Request::post(&format!("/api/publish?api_key={}", key.replace(' ', "%20"))).json(&body)
    };
    let own = format!("http://{}", app.address());
    for (request, admitted) in [
        (news().header("X-API-Key", API_KEY), true),
        (news().header("Authorization", &format!("apikey {API_KEY}")), true),
        (news().header("Authorization", &format!("ApiKey  {API_KEY}")), true),
        (by_query(API_KEY), true),
        (news().header("X-API-Key", API_KEY).header("Origin", &own), true),
        (by_query(API_KEY).header("Origin", &own), false),
        (by_query("wrong"), false),
        (by_query(""), false),
        (news(), false),
        (news().header("X-API-Key", ""), false),
        (news().header("X-API-Key", "wrong"), false),
        (news().header("X-API-Key", &API_KEY[1..]), false),
        (news().header("Authorization", &format!("Bearer {API_KEY}")), false),
        (news().bearer(&app.admin()), false),
    ] {
        let before = app.sql().count("events").await;
        let answer = app.send(request).await;
        if admitted {
            assert_eq!(answer.expect(200).json()["result"]["offset"], before + 1);
        } else {
            answer.refused(401, "api_key");
            assert_eq!(app.sql().count("events").await, before);
        }
    }
    assert_eq!(app.metric("refusals", "api_key").await, 9);
}

async fn a_stranger_is_sent_away_before_the_body_is_read(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let huge = format!("{{\"channel\":\"news:x\",\"data\":\"{}\"}}", "x".repeat(5 << 20));
    let stranger = Request::post("/api/publish").header("X-API-Key", "wrong");
    app.send(stranger.clone().body(huge.clone())).await.refused(401, "api_key");
    app.send(stranger.body("nonsense")).await.refused(401, "api_key");
    let friend = Request::post("/api/publish").header("X-API-Key", API_KEY);
    app.send(friend.clone().body(huge.clone())).await.refused(413, "body_too_large");
    app.send(friend.body(huge).chunked()).await.refused(413, "body_too_large");
    assert_eq!(app.metric("refusals", "body_too_large").await, 2);
}

async fn what_cannot_be_published_has_the_code_of_the_protocol(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let before = app.sql().counts().await;
    for body in [
        "",
        "nonsense",
        "[]",
        "[\"news:x\", 1]",
        "\"x\"",
        "{\"channel\":7}",
        "{\"channel\":\"news:x\",\"tags\":{\"a\":1}}",
        "{} {}",
    ] {
        let request = Request::post("/api/publish").header("X-API-Key", API_KEY).body(body);
        app.send(request).await.refused(400, "bad_request");
    }
    let large = "x".repeat(4096);
    for (body, code) in [
        (json!({}), 107),
        (json!({ "data": 1 }), 107),
        (json!({ "channel": "", "data": 1 }), 107),
        (json!({ "channel": "news:x" }), 107),
        (json!({ "channel": "nobody:knows", "data": 1 }), 102),
        (json!({ "channel": "repo:acme", "data": { "type": "a" } }), 107),
        (json!({ "channel": "news:\u{fc}", "data": 1 }), 107),
        (json!({ "channel": "n".repeat(256), "data": 1 }), 107),
        (json!({ "channel": "news:x", "data": large }), 107),
        (json!({ "channel": "news:x", "data": 1, "idempotency_key": "k".repeat(256) }), 107),
        (json!({ "channel": "news:x", "data": 1, "idempotency_key": "a\u{0}b" }), 107),
        (json!({ "channel": "news:x", "data": 1, "version_epoch": "e".repeat(256) }), 107),
        (json!({ "channel": "news:x", "data": 1, "version": 1, "version_epoch": "a\u{0}b" }), 107),
        (json!({ "channel": "org:acme", "data": 1 }), 107),
        (json!({ "channel": "org:acme", "data": [] }), 107),
        (json!({ "channel": "org:acme", "data": {} }), 107),
        (json!({ "channel": "org:acme", "data": { "type": "" } }), 107),
        (json!({ "channel": "org:acme", "data": { "type": "a\nid: 7" } }), 107),
        (json!({ "channel": "org:acme", "data": ["x:y", {}, null] }), 107),
        (json!({ "channel": "org:acme", "data": { "type": "t".repeat(65) } }), 107),
    ] {
        let answer = app.publish(body.clone()).await.expect(200).json();
        assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
        assert!(answer["error"]["message"].is_string() && answer.get("result").is_none());
    }
    assert_eq!(app.sql().counts().await, before);
    app.send(Request::get("/api/publish").header("X-API-Key", API_KEY))
        .await
        .refused(405, "method_not_allowed");
    app.send(Request::post("/api/nothing").header("X-API-Key", API_KEY)).await.refused(404, "not_found");
}

async fn a_repeat_under_a_key_answers_where_the_first_one_is(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let publish = |channel: &str, key: &str, data: u64| {
        app.publish(json!({ "channel": channel, "data": data, "idempotency_key": key }))
    };
    let first = publish("news:x", "k", 1).await.expect(200).json();
    assert_eq!(first["result"]["offset"], 1);
    assert_eq!(publish("news:x", "other", 2).await.json()["result"]["offset"], 2);
    assert_eq!(publish("news:x", "k", 3).await.json(), first);
    assert_eq!(publish("news:y", "k", 4).await.json()["result"]["offset"], 1, "a key counts in its channel");
    let page = app.poll("channel=news:x", &app.ana()).await;
    assert_eq!(page["events"], json!([{ "offset": 1, "data": 1 }, { "offset": 2, "data": 2 }]));
    let same: Vec<_> = (0..20).map(|n| publish("news:z", "at once", n)).collect();
    for answer in futures_util::future::join_all(same).await {
        assert_eq!(answer.expect(200).json()["result"]["offset"], 1);
    }
    assert_eq!(app.sql().count("events WHERE channel = 'news:z'").await, 1);
}

async fn built_in_channels_get_an_envelope(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut stream = app.stream("repo:acme/api,org:acme", &app.ana(), None).await;
    let event = |data: Value| json!({ "type": "build:done", "repo": "evil/one", "data": data });
    for channel in ["repo:acme/api", "org:acme"] {
        let answer =
            app.publish(json!({ "channel": channel, "data": event(json!({ "n": 1 })) })).await.expect(200);
        assert_eq!(answer.json()["result"]["offset"], 1);
        let told = stream.next_event().await;
        let json = told.json();
        assert_eq!(
            (told.name(), &json["type"], &json["data"]["n"]),
            ("build:done", &json!("build:done"), &json!(1))
        );
        assert!(json["id"].is_string() && json["at"].is_string(), "{json}");
        if channel.starts_with("repo:") {
            assert_eq!(json["repo"], "acme/api", "a channel of a repository is about that one");
        }
    }
    app.publish(json!({ "channel": "org:acme", "data": { "type": "a:b" } })).await.expect(200);
    assert_eq!(stream.next_event().await.json()["data"], Value::Null);
}

async fn what_is_not_kept_has_no_position(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let before = app.sql().counts().await;
    let answer = app.publish(json!({ "channel": "fleeting:x", "data": 1 })).await.expect(200).json();
    assert_eq!(answer, json!({ "result": {} }));
    let skipped = json!({ "channel": "news:x", "data": 1, "skip_history": true });
    assert_eq!(app.publish(skipped).await.expect(200).json(), json!({ "result": {} }));
    assert_eq!(app.sql().counts().await, before);
}

async fn tags_are_shown_to_those_who_read(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut stream = app.stream("news:x", &app.ana(), None).await;
    app.publish(json!({ "channel": "news:x", "data": 1, "tags": { "k": "v\n\"\u{0}" } })).await.expect(200);
    let expected = json!({ "offset": 1, "data": 1, "tags": { "k": "v\n\"\u{0}" } });
    assert_eq!(stream.next_event().await.json(), expected);
    assert_eq!(app.poll("channel=news:x", &app.ana()).await["events"], json!([expected]));
}

on_both!(
    the_key_is_taken_where_the_protocol_allows_it,
    a_stranger_is_sent_away_before_the_body_is_read,
    what_cannot_be_published_has_the_code_of_the_protocol,
    a_repeat_under_a_key_answers_where_the_first_one_is,
    built_in_channels_get_an_envelope,
    what_is_not_kept_has_no_position,
    tags_are_shown_to_those_who_read,
);
