//! `POST /api/broadcast` and `/api/batch`: many in one request, each with its own answer; and the
//! guards of what is published, keys and versions.

use serde_json::{Value, json};

use super::SPACES;
use crate::support::app::{API_KEY, Backend, TestApp, on_both};
use crate::support::client::Request;
use crate::support::websocket::Client;

async fn call(app: &TestApp, method: &str, body: Value) -> Value {
    app.call(method, body).await.expect(200).json()
}

async fn a_broadcast_answers_for_each_channel(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut ana = Client::connected(&app, &app.ana()).await;
    ana.subscribe("news:b").await;
    let channels = ["news:a", "nobody:knows", "news:b", "fleeting:x", "", "news:a"];
    let answer = app.result("broadcast", json!({ "channels": channels, "data": { "n": 1 } })).await;
    let epoch = &answer["responses"][0]["result"]["epoch"];
    assert!(epoch.is_string(), "{answer}");
    let error = |code: u64, message: &str| json!({ "error": { "code": code, "message": message } });
    let at = |offset: u64| json!({ "result": { "offset": offset, "epoch": epoch } });
    let expected = json!([
        at(1),
        error(102, "unknown channel"),
        at(1),
        { "result": {} },
        error(107, "bad request"),
        at(2),
    ]);
    assert_eq!(answer["responses"], expected);
    assert_eq!(ana.push().await["pub"], json!({ "data": { "n": 1 }, "offset": 1 }));
    assert_eq!(app.sql().count("events").await, 3);
    let mode = Request::post("/api/broadcast").header("X-API-Key", API_KEY);
    let mode = mode.header("X-Centrifugo-Error-Mode", "transport");
    let body = json!({ "channels": ["nobody:knows"], "data": 1 });
    let answer = app.send(mode.clone().json(&body)).await.expect(200).json();
    assert_eq!(answer["result"]["responses"], json!([error(102, "unknown channel")]), "a part has no status");
    app.send(mode.json(&json!({ "channels": [], "data": 1 }))).await.expect(400);
}

async fn a_broadcast_has_bounds(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let many: Vec<String> = (0..10_001).map(|n| format!("news:{n}")).collect();
    for (body, code) in [
        (json!({ "channels": [], "data": 1 }), 107),
        (json!({ "data": 1 }), 107),
        (json!({ "channels": ["news:a"] }), 107),
        (json!({ "channels": ["news:a"], "data": "x".repeat(5000) }), 107),
        (json!({ "channels": many, "data": 1 }), 106),
    ] {
        assert_eq!(call(&app, "broadcast", body).await["error"]["code"], code);
    }
    let channels = &many[..6_000];
    let answer = app.result("broadcast", json!({ "channels": channels, "data": 1 })).await;
    let responses = answer["responses"].as_array().expect("a list");
    assert_eq!(responses.len(), channels.len());
    assert!(responses.iter().all(|response| response["result"]["offset"] == 1));
    assert_eq!(app.sql().count("events").await, 6_000);
}

async fn a_repeated_broadcast_changes_nothing(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let body = |channels: &[&str]| json!({ "channels": channels, "data": 1, "idempotency_key": "b-1" });
    let first = app.result("broadcast", body(&["news:a", "news:b"])).await;
    assert_eq!(app.result("broadcast", body(&["news:a", "news:b"])).await, first);
    let wider = app.result("broadcast", body(&["news:a", "news:c", "news:b"])).await;
    let offsets: Vec<_> = (0..3).map(|n| wider["responses"][n]["result"]["offset"].clone()).collect();
    assert_eq!(offsets, [1, 1, 1]);
    assert_eq!(app.sql().count("events").await, 3);
}

async fn a_key_counts_where_nothing_is_kept(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut ana = Client::connected(&app, &app.ana()).await;
    ana.subscribe("fleeting:x").await;
    for n in 1..=3 {
        let body = json!({ "channel": "fleeting:x", "data": n, "idempotency_key": "k" });
        assert_eq!(app.result("publish", body).await, json!({}));
    }
    app.result("publish", json!({ "channel": "fleeting:x", "data": "last" })).await;
    assert_eq!(ana.push().await["pub"]["data"], 1);
    assert_eq!(ana.push().await["pub"]["data"], "last", "repeats are not told");
    assert_eq!(app.sql().count("events").await, 0);
}

async fn an_older_version_is_dropped(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut ana = Client::connected(&app, &app.ana()).await;
    ana.subscribe("news:x").await;
    let publish = |data: u64, version: u64, epoch: &str| {
        let body = json!({ "channel": "news:x", "data": data, "version": version, "version_epoch": epoch });
        app.result("publish", body)
    };
    for (data, version, epoch, offset) in [
        (1, 5, "", 1),
        (2, 5, "", 1),
        (3, 4, "", 1),
        (4, 6, "", 2),
        (5, 1, "e2", 3),
        (6, 1, "e2", 3),
        (7, 1, "", 3),
        (8, 0, "", 4),
        (9, 2, "e2", 5),
    ] {
        assert_eq!(publish(data, version, epoch).await["offset"], offset, "{data}");
    }
    for data in [1, 4, 5, 8, 9] {
        assert_eq!(ana.push().await["pub"]["data"], data);
    }
    let both = json!({ "channels": ["news:x", "news:y"], "data": 1, "version": 2, "version_epoch": "e2" });
    let answer = app.result("broadcast", both).await;
    let offsets: Vec<_> = (0..2).map(|n| answer["responses"][n]["result"]["offset"].clone()).collect();
    assert_eq!(offsets, [5, 1], "each channel has its own");
    let huge = json!({ "channel": "news:x", "data": 1, "version": u64::MAX });
    assert_eq!(call(&app, "publish", huge).await["error"]["code"], 107);
}

async fn data_may_come_in_base64(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    app.result("publish", json!({ "channel": "news:x", "b64data": "eyJuIjoxfQ==" })).await;
    let history = app.result("history", json!({ "channel": "news:x", "limit": 1 })).await;
    assert_eq!(history["publications"][0]["data"], json!({ "n": 1 }));
    for bad in ["e30", "!", "bm90IGpzb24="] {
        let body = json!({ "channel": "news:x", "b64data": bad });
        assert_eq!(call(&app, "publish", body).await["error"]["code"], 107, "{bad}");
    }
}

async fn a_batch_answers_each_command_in_its_place(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    for parallel in [false, true] {
        let channel = format!("news:{parallel}");
        let commands = json!([
            { "publish": { "channel": channel, "data": 1 } },
            { "presence": { "channel": "fleeting:x" } },
            { "publish": { "channel": "nobody:knows", "data": 1 } },
            null,
            { "nonsense": {} },
            {},
            { "publish": null, "presence_stats": { "channel": "fleeting:x" } },
            { "publish": [] },
            { "batch": { "commands": [] } },
            { "disconnect": { "user": "nobody" } },
            { "rpc": { "method": "sum", "params": {} } },
        ]);
        let answer = call(&app, "batch", json!({ "commands": commands, "parallel": parallel })).await;
        let error = |code: u64, message: &str| json!({ "error": { "code": code, "message": message } });
        let epoch = &answer["replies"][0]["publish"]["epoch"];
        let expected = json!({ "replies": [
            { "publish": { "offset": 1, "epoch": epoch } },
            { "presence": { "presence": {} } },
            error(102, "unknown channel"),
            error(107, "bad request"),
            error(104, "not found"),
            error(104, "not found"),
            { "presence_stats": { "num_clients": 0, "num_users": 0 } },
            error(107, "bad request"),
            error(104, "not found"),
            { "disconnect": {} },
            error(104, "not found"),
        ] });
        assert_eq!(answer, expected);
    }
    assert_eq!(call(&app, "batch", json!({ "commands": [] })).await, json!({ "replies": [] }));
    let many = vec![json!({ "info": {} }); 1_001];
    assert_eq!(call(&app, "batch", json!({ "commands": many })).await["error"]["code"], 106);
    app.call("batch", json!({})).await.refused(400, "bad_request");
}

async fn a_sequential_batch_keeps_its_order(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let publish = |n: u64| json!({ "publish": { "channel": "news:x", "data": n } });
    let commands: Vec<Value> = (1..=8).map(publish).collect();
    call(&app, "batch", json!({ "commands": commands })).await;
    let history = app.result("history", json!({ "channel": "news:x", "limit": -1 })).await;
    let data: Vec<_> =
        history["publications"].as_array().unwrap().iter().map(|one| one["data"].clone()).collect();
    assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8]);
}

async fn what_is_removed_leaves_its_position(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let mut ana = Client::connected(&app, &app.ana()).await;
    ana.subscribe("news:x").await;
    for n in 1..=3 {
        app.result("publish", json!({ "channel": "news:x", "data": n })).await;
        ana.push().await;
    }
    app.result("publish", json!({ "channel": "news:y", "data": 1 })).await;
    let before = app.result("history", json!({ "channel": "news:x" })).await;
    assert_eq!(app.result("history_remove", json!({ "channel": "news:x" })).await, json!({}));
    let after = app.result("history", json!({ "channel": "news:x", "limit": -1 })).await;
    assert_eq!(after, before, "no publications, the same place");
    let next = app.result("publish", json!({ "channel": "news:x", "data": 4 })).await;
    assert_eq!(next, json!({ "offset": 4, "epoch": before["epoch"] }));
    assert_eq!(ana.push().await["pub"]["offset"], 4, "who is there misses nothing");
    assert_eq!(app.sql().count("events").await, 2, "and nobody else's");
    for (channel, code) in [("nobody:knows", 102), ("fleeting:x", 108), ("", 107)] {
        let answer = call(&app, "history_remove", json!({ "channel": channel })).await;
        assert_eq!(answer["error"]["code"], code);
    }
}

on_both!(
    a_broadcast_answers_for_each_channel,
    a_broadcast_has_bounds,
    a_repeated_broadcast_changes_nothing,
    a_key_counts_where_nothing_is_kept,
    an_older_version_is_dropped,
    data_may_come_in_base64,
    a_batch_answers_each_command_in_its_place,
    a_sequential_batch_keeps_its_order,
    what_is_removed_leaves_its_position,
);
