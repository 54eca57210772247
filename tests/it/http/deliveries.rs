//! The audit log of deliveries, for admins: what came, word for word, and a second chance for what
//! was not understood.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of};
use crate::support::client::{Answer, Request};

const ONLY_WEB: &str = "[github.repos]\n\"acme/web\" = {}\n";

async fn newest(app: &TestApp) -> Value {
    let list = app.get("/api/deliveries?limit=1", &app.admin()).await.expect(200).json();
    list["deliveries"][0].clone()
}

async fn process(app: &TestApp, id: &Value) -> Answer {
    let path = format!("/api/deliveries/{}/process", id.as_str().expect("an id"));
    app.send(Request::post(&path).bearer(&app.admin())).await
}

async fn only_admins_see_the_audit_log(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let one = newest(&app).await;
    let id = one["id"].as_str().expect("an id");
    let before = app.sql().counts().await;
    for token in [app.ana(), app.token(json!({ "sub": "x", "scope": "publish scan" })), app.token(json!({}))]
    {
        app.get("/api/deliveries", &token).await.refused(403, "forbidden");
        app.get(&format!("/api/deliveries/{id}"), &token).await.refused(403, "forbidden");
        let process = Request::post(&format!("/api/deliveries/{id}/process")).bearer(&token);
        app.send(process).await.refused(403, "forbidden");
    }
    app.get("/api/deliveries", "").await.refused(401, "token_missing");
    app.get("/api/deliveries/x", &app.ana()).await.refused(403, "forbidden");
    assert_eq!((app.sql().counts().await, app.metric("refusals", "forbidden").await), (before, 10));
}

async fn the_list_is_newest_first_and_complete(backend: Backend) {
    let app = TestApp::start(backend).await;
    let admin = app.admin();
    app.post_runs(1..=5).await;
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = app.get(&format!("/api/deliveries?limit=2{cursor}"), &admin).await.expect(200).json();
        let deliveries = page["deliveries"].as_array().expect("a list");
        assert!(deliveries.iter().all(|delivery| delivery.get("payload").is_none()));
        ids.extend(deliveries.iter().map(|delivery| delivery["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(ids.len(), 5);
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    for (query, code) in [
        ("limit=0", "bad_limit"),
        ("limit=101", "bad_limit"),
        ("cursor=x", "bad_cursor"),
        ("cursor=", "bad_cursor"),
    ] {
        app.get(&format!("/api/deliveries?{query}"), &admin).await.refused(400, code);
    }
    for id in ["x", "0195d3a0-0000-7000-8000-000000000000", "%00"] {
        app.get(&format!("/api/deliveries/{id}"), &admin).await.refused(404, "not_found");
    }
}

async fn a_payload_is_kept_word_for_word(backend: Backend) {
    let app = TestApp::start(backend).await;
    let odd = "{ \"z\":1.0,\"a\" : \"\\u00fc\\/\\ud83d\\ude00\",\n\t\"n\":1e400, \"z\":2 }";
    app.send(app.webhook("star", odd)).await.expect(202);
    let one = newest(&app).await;
    assert_eq!((&one["event"], &one["status"]), (&json!("star"), &json!("ignored")));
    let path = format!("/api/deliveries/{}", one["id"].as_str().expect("an id"));
    let full = app.get(&path, &app.admin()).await.expect(200);
    assert!(full.text().contains(odd), "{}", full.text());
    app.sql().execute("UPDATE webhook_deliveries SET payload = NULL").await;
    assert_eq!(app.get(&path, &app.admin()).await.expect(200).json()["payload"], Value::Null);
    process(&app, &one["id"]).await.refused(410, "payload_gone");
}

async fn what_failed_can_be_processed_when_it_is_understood(backend: Backend) {
    let mut app = TestApp::with(backend, ONLY_WEB).await;
    app.post_webhook("workflow_run", &run_of("acme/api", 7)).await.expect(202);
    let ignored = newest(&app).await;
    assert_eq!(
        (&ignored["status"], &ignored["error"]),
        (&json!("ignored"), &json!("not in the repository map"))
    );
    assert_eq!((&ignored["repo"], &ignored["processedAt"]), (&Value::Null, &Value::Null));
    let before = app.sql().counts().await;
    let still = process(&app, &ignored["id"]).await.expect(200).json();
    assert_eq!(still["status"], "ignored");
    assert_eq!(app.sql().counts().await, before);

    app.restart_with("[github.repos]\n\"acme/api\" = { name = \"acme/core\" }\n").await;
    let mut stream = app.stream("repo:acme/core", &app.ana(), None).await;
    let done = process(&app, &ignored["id"]).await.expect(200).json();
    assert_eq!(
        (&done["status"], &done["error"], &done["repo"]),
        (&json!("processed"), &Value::Null, &json!("acme/core"))
    );
    assert!(done["processedAt"].is_string() && done["deliveryId"] == ignored["deliveryId"]);
    assert_eq!(stream.runs(1).await, [7]);
    let after = app.sql().counts().await;
    process(&app, &ignored["id"]).await.refused(409, "already_processed");
    assert_eq!((app.sql().counts().await, after["events"]), (after.clone(), 2));
    app.get("/api/repos/acme%2Fcore", &app.ana()).await.expect(200);
}

async fn what_cannot_be_understood_says_why_and_stays(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut body = run_of("acme/api", 7);
    body["workflow_run"].as_object_mut().expect("an object").remove("id");
    app.post_webhook("workflow_run", &body).await.expect(202);
    let failed = newest(&app).await;
    assert_eq!(
        (&failed["status"], &failed["error"]),
        (&json!("failed"), &json!("workflow_run.id is missing"))
    );
    let again = process(&app, &failed["id"]).await.expect(200).json();
    assert_eq!((&again["status"], &again["error"]), (&failed["status"], &failed["error"]));
    assert_eq!(app.sql().count("events").await, 0);
}

async fn one_of_many_who_process_at_once_wins(backend: Backend) {
    let mut app = TestApp::with(backend, ONLY_WEB).await;
    app.post_webhook("workflow_run", &run_of("acme/api", 7)).await.expect(202);
    let id = newest(&app).await["id"].clone();
    app.restart_with("").await;
    let all = futures_util::future::join_all((0..8).map(|_| process(&app, &id))).await;
    let mut statuses: Vec<u16> = all.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(app.sql().count("events").await, 2);
}

on_both!(
    only_admins_see_the_audit_log,
    the_list_is_newest_first_and_complete,
    a_payload_is_kept_word_for_word,
    what_failed_can_be_processed_when_it_is_understood,
    what_cannot_be_understood_says_why_and_stays,
    one_of_many_who_process_at_once_wins,
);
