//! `POST /api/history`, `/api/presence` and `/api/presence_stats`: what they answer, who may ask,
//! and errors as statuses for those who want them.

use serde_json::{Value, json};

use super::SPACES;
use crate::support::app::{API_KEY, Backend, TestApp, on_both};
use crate::support::client::Request;

const METHODS: [&str; 3] = ["history", "presence", "presence_stats"];

async fn with_news(backend: Backend, count: u64) -> (TestApp, Value) {
    let app = TestApp::with(backend, SPACES).await;
    for n in 1..=count {
        let event = json!({ "channel": "news:x", "data": { "n": n }, "tags": { "of": "x" } });
        app.publish(event).await.expect(200);
    }
    let epoch = app.call("history", json!({ "channel": "news:x" })).await.json()["result"]["epoch"].clone();
    assert!(epoch.as_str().is_some_and(|epoch| !epoch.is_empty()));
    (app, epoch)
}

async fn history(app: &TestApp, asked: Value) -> Value {
    let mut body = json!({ "channel": "news:x" });
    body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
    let answer = app.call("history", body).await.expect(200).json();
    assert!(answer.get("error").is_none(), "{answer}");
    answer["result"].clone()
}

fn offsets(result: &Value) -> Vec<u64> {
    let publications = result["publications"].as_array().expect("always a list");
    publications.iter().map(|publication| publication["offset"].as_u64().unwrap()).collect()
}

async fn history_is_turned_page_by_page_in_both_directions(backend: Backend) {
    let (app, epoch) = with_news(backend, 5).await;
    let first = history(&app, json!({ "limit": 2 })).await;
    let publication = |n: u64| json!({ "data": { "n": n }, "offset": n, "tags": { "of": "x" } });
    let expected = json!({ "publications": [publication(1), publication(2)], "epoch": epoch, "offset": 5 });
    assert_eq!(first, expected);
    for (since, reverse, expected) in [(2, false, vec![3, 4]), (4, false, vec![5]), (5, false, vec![])] {
        let since = json!({ "offset": since, "epoch": epoch });
        let page = history(&app, json!({ "limit": 2, "since": since, "reverse": reverse })).await;
        assert_eq!((offsets(&page), &page["offset"]), (expected, &json!(5)));
    }
    assert_eq!(offsets(&history(&app, json!({ "limit": 2, "reverse": true })).await), [5, 4]);
    for (since, expected) in [(4, vec![3, 2]), (2, vec![1]), (1, vec![])] {
        let since = json!({ "offset": since, "epoch": epoch });
        let page = history(&app, json!({ "limit": 2, "since": since, "reverse": true })).await;
        assert_eq!(offsets(&page), expected);
    }
    assert_eq!(offsets(&history(&app, json!({ "limit": -1 })).await), [1, 2, 3, 4, 5]);
    let any = json!({ "limit": -1, "since": { "offset": 3 } });
    assert_eq!(offsets(&history(&app, any).await), [4, 5], "no epoch fits any");
}

async fn without_a_limit_history_is_the_position(backend: Backend) {
    let (app, epoch) = with_news(backend, 2).await;
    let position = json!({ "publications": [], "epoch": epoch, "offset": 2 });
    for asked in [json!({}), json!({ "limit": 0 }), json!({ "limit": null, "since": null, "reverse": null })]
    {
        assert_eq!(history(&app, asked).await, position);
    }
    let before = app.sql().counts().await;
    let unused = app.call("history", json!({ "channel": "news:nobody", "limit": 9 })).await.json();
    assert_eq!((&unused["result"]["publications"], &unused["result"]["offset"]), (&json!([]), &json!(0)));
    assert!(unused["result"]["epoch"].is_string());
    assert_eq!(app.sql().counts().await, before, "looking leaves no trace");
    let built_in = app.call("history", json!({ "channel": "org:acme", "limit": 9 })).await.json();
    assert_eq!(built_in["result"]["publications"], json!([]));
}

async fn history_keeps_to_what_is_retained(backend: Backend) {
    let (app, epoch) = with_news(backend, 12).await;
    assert_eq!(offsets(&history(&app, json!({ "limit": -1 })).await), (3..=12).collect::<Vec<_>>());
    let gone = json!({ "limit": 1, "since": { "offset": 1, "epoch": epoch } });
    assert_eq!(offsets(&history(&app, gone).await), [3]);
}

async fn what_cannot_be_read_has_the_code_of_the_protocol(backend: Backend) {
    let (app, _) = with_news(backend, 2).await;
    let since = |offset: u64, epoch: &str| json!({ "offset": offset, "epoch": epoch });
    for (method, body, code, message, status) in [
        ("history", json!({ "channel": "nobody:knows", "limit": 1 }), 102, "unknown channel", 404),
        ("presence", json!({ "channel": "nobody:knows" }), 102, "unknown channel", 404),
        ("presence_stats", json!({ "channel": "nobody:knows" }), 102, "unknown channel", 404),
        ("publish", json!({ "channel": "nobody:knows", "data": 1 }), 102, "unknown channel", 404),
        ("history", json!({ "channel": "fleeting:x", "limit": 1 }), 108, "not available", 400),
        ("presence", json!({ "channel": "news:x" }), 108, "not available", 400),
        ("presence_stats", json!({ "channel": "news:x" }), 108, "not available", 400),
        ("presence", json!({ "channel": "repo:acme/api" }), 108, "not available", 400),
        ("presence_stats", json!({ "channel": "org:acme" }), 108, "not available", 400),
        ("history", json!({ "limit": 1 }), 107, "bad request", 400),
        ("presence", json!({}), 107, "bad request", 400),
        ("presence_stats", json!({ "channel": "" }), 107, "bad request", 400),
        ("history", json!({ "channel": "repo:acme", "limit": 1 }), 107, "bad request", 400),
        (
            "history",
            json!({ "channel": "news:x", "limit": 1, "reverse": true, "since": since(0, "") }),
            107,
            "bad request",
            400,
        ),
        (
            "history",
            json!({ "channel": "news:x", "limit": 1, "since": since(1, "other") }),
            112,
            "unrecoverable position",
            416,
        ),
        (
            "history",
            json!({ "channel": "news:x", "since": since(1, "other") }),
            112,
            "unrecoverable position",
            416,
        ),
        ("publish", json!({ "channel": "news:x" }), 107, "bad request", 400),
    ] {
        let error = json!({ "code": code, "message": message });
        let answer = app.call(method, body.clone()).await.expect(200).json();
        assert_eq!(answer, json!({ "error": error }), "{method} {body}");
        let request = Request::post(&format!("/api/{method}")).header("X-API-Key", API_KEY).json(&body);
        let request = request.header("X-Centrifugo-Error-Mode", "transport");
        assert_eq!(app.send(request).await.expect(status).json(), error, "{method} {body}");
    }
}

async fn nobody_on_a_channel_is_an_answer(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    let asked = json!({ "channel": "fleeting:x" });
    let answer = app.call("presence", asked.clone()).await.expect(200).json();
    assert_eq!(answer, json!({ "result": { "presence": {} } }));
    let answer = app.call("presence_stats", asked).await.expect(200).json();
    assert_eq!(answer, json!({ "result": { "num_clients": 0, "num_users": 0 } }));
}

async fn only_the_key_opens_and_only_a_readable_post_is_taken(backend: Backend) {
    let app = TestApp::with(backend, SPACES).await;
    for method in METHODS {
        let path = format!("/api/{method}");
        let asked = json!({ "channel": "news:x" });
        app.send(Request::post(&path).json(&asked)).await.refused(401, "api_key");
        let wrong = Request::post(&path).header("X-API-Key", "wrong");
        app.send(wrong.body("nonsense")).await.refused(401, "api_key");
        app.send(Request::post(&path).bearer(&app.admin()).json(&asked)).await.refused(401, "api_key");
        for body in ["", "nonsense", "[]", "[\"news:x\"]", "{\"channel\":7}", "{\"channel\":\"news:x\"} {}"] {
            let request = Request::post(&path).header("X-API-Key", API_KEY).body(body);
            app.send(request).await.refused(400, "bad_request");
        }
        let get = Request::get(&path).header("X-API-Key", API_KEY);
        app.send(get).await.refused(405, "method_not_allowed");
    }
    for body in
        ["{\"limit\":\"1\"}", "{\"limit\":3000000000}", "{\"since\":7}", "{\"since\":{\"offset\":-1}}"]
    {
        let request = Request::post("/api/history").header("X-API-Key", API_KEY).body(body);
        app.send(request).await.refused(400, "bad_request");
    }
}

on_both!(
    history_is_turned_page_by_page_in_both_directions,
    without_a_limit_history_is_the_position,
    history_keeps_to_what_is_retained,
    what_cannot_be_read_has_the_code_of_the_protocol,
    nobody_on_a_channel_is_an_answer,
    only_the_key_opens_and_only_a_readable_post_is_taken,
);
