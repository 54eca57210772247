//! `POST /webhooks/github`: what is taken, what is refused and with which words, and that a
//! refusal leaves no trace but a metric.

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::app::{Backend, OLD_WEBHOOK_SECRET, TestApp, WEBHOOK_SECRET, on_both, run_of, signature};
use crate::support::client::{Answer, Request};

/// A request, and the refusal that it gets.
type Case = (Request, u16, &'static str);

fn body() -> String {
    run_of("acme/api", 1).to_string()
}

fn malformed_requests(app: &TestApp) -> Vec<Case> {
    let good = || app.webhook("workflow_run", body());
    let signed = |body: &[u8]| app.webhook("workflow_run", body);
    let form = |body: &str| {
        app.webhook("workflow_run", body).header("Content-Type", "application/x-www-form-urlencoded")
    };
    let mut cases = vec![
        (good().without("X-Hub-Signature-256"), 401, "signature_missing"),
        (good().header("X-Hub-Signature-256", "sha256=abc"), 401, "signature_malformed"),
        (good().header("X-Hub-Signature-256", ""), 401, "signature_malformed"),
        (good().header("X-Hub-Signature-256", &"0".repeat(64)), 401, "signature_malformed"),
        (
            good().header("X-Hub-Signature-256", &signature("wrong", body().as_bytes())),
            401,
            "signature_invalid",
        ),
        (good().body(body() + " "), 401, "signature_invalid"),
        (good().without("X-GitHub-Event"), 400, "event_header"),
        (good().header("X-GitHub-Event", ""), 400, "event_header"),
        (good().header("X-GitHub-Event", "Workflow Run"), 400, "event_header"),
        (good().header("X-GitHub-Event", &"x".repeat(101)), 400, "event_header"),
        (good().without("X-GitHub-Delivery"), 400, "delivery_header"),
        (good().header("X-GitHub-Delivery", "a b"), 400, "delivery_header"),
        (good().header("X-GitHub-Delivery", &"a".repeat(101)), 400, "delivery_header"),
        (signed(b""), 400, "body_empty"),
        (signed(b" \r\n\t"), 400, "body_empty"),
        (signed(b"{\"action\":"), 400, "body_not_json"),
        (signed(b"hello"), 400, "body_not_json"),
        (signed(b"{} {}"), 400, "body_not_json"),
        (signed(b"{\"action\":\xff}"), 400, "body_not_json"),
        (form("a=1"), 400, "form_without_payload"),
        (form("payload=%7B"), 400, "body_not_json"),
        (form("payload=%FF"), 400, "body_not_json"),
        (form("payload="), 400, "body_empty"),
    ];
    let sha1 =
        good().without("X-Hub-Signature-256").header("X-Hub-Signature", &format!("sha1={}", "0".repeat(40)));
    cases.push((sha1, 401, "signature_sha1"));
    cases
}

async fn whatever_is_malformed_is_refused_by_name_and_changes_nothing(backend: Backend) {
    let app = TestApp::start(backend).await;
    let before = app.sql().counts().await;
    for (request, status, code) in malformed_requests(&app) {
        let counted = app.metric("webhooks", code).await;
        app.send(request).await.refused(status, code);
        assert_eq!(app.metric("webhooks", code).await, counted + 1, "{code}");
    }
    assert_eq!(app.sql().counts().await, before);
    app.send(app.webhook("workflow_run", body())).await.expect(202);
}

async fn a_signature_is_judged_before_anything_else(backend: Backend) {
    let app = TestApp::start(backend).await;
    let nonsense = app.webhook("", "").header("X-GitHub-Delivery", "");
    app.send(nonsense.without("X-Hub-Signature-256")).await.refused(401, "signature_missing");
    // Forged, and not even JSON: it learns nothing about the body.
    let forged = app.webhook("push", "x").header("X-Hub-Signature-256", &signature("wrong", b"x"));
    app.send(forged).await.refused(401, "signature_invalid");
}

async fn a_delivery_is_taken_once_and_a_repeat_says_so(backend: Backend) {
    let app = TestApp::start(backend).await;
    let delivery = app.webhook("workflow_run", body()).header("X-GitHub-Delivery", "one-and-only");
    let first = app.send(delivery.clone()).await.expect(202).json();
    assert_eq!(first, json!({ "received": true, "deliveryId": "one-and-only" }));
    let before = app.sql().counts().await;
    let repeat = app.send(delivery).await.expect(200).json();
    assert_eq!(repeat, json!({ "received": true, "deliveryId": "one-and-only", "duplicate": true }));
    assert_eq!(app.sql().counts().await, before);
    assert_eq!(before["events"], 2, "one on repo: and one on org:");
    assert_eq!(
        (app.metric("webhooks", "processed").await, app.metric("webhooks", "duplicate").await),
        (1, 1)
    );
}

async fn both_secrets_count_during_a_rotation(backend: Backend) {
    let app = TestApp::start(backend).await;
    for secret in [WEBHOOK_SECRET, OLD_WEBHOOK_SECRET] {
        let signed = signature(secret, body().as_bytes());
        app.send(app.webhook("workflow_run", body()).header("X-Hub-Signature-256", &signed))
            .await
            .expect(202);
    }
    assert_eq!(app.metric("webhooks", "processed").await, 2);
}

async fn a_form_is_taken_like_json(backend: Backend) {
    let app = TestApp::start(backend).await;
    let escaped: String = body().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let form = app
        .webhook("workflow_run", format!("payload={escaped}"))
        .header("Content-Type", "application/x-www-form-urlencoded");
    app.send(form).await.expect(202);
    let admin = app.admin();
    let list = app.get("/api/deliveries", &admin).await.expect(200).json();
    let id = list["deliveries"][0]["id"].as_str().expect("an id");
    let one = app.get(&format!("/api/deliveries/{id}"), &admin).await.expect(200);
    assert!(one.text().contains(&format!("\"payload\":{}", body())), "not verbatim: {}", one.text());
}

async fn every_kind_of_event_is_accepted(backend: Backend) {
    let app = TestApp::start(backend).await;
    for (event, body, status) in [
        ("star", run_of("acme/api", 1).to_string(), "ignored"),
        ("a_kind_of_tomorrow", "{}".to_owned(), "ignored"),
        ("star", "[1]".to_owned(), "ignored"),
        ("star", "null".to_owned(), "ignored"),
        ("workflow_run", "[]".to_owned(), "failed"),
        ("workflow_run", "\"text\"".to_owned(), "failed"),
        ("workflow_run", "1e999".to_owned(), "failed"),
        ("workflow_run", "{\"action\":\"\\ud800\"}".to_owned(), "failed"),
        ("workflow_run", "[".repeat(5000) + &"]".repeat(5000), "failed"),
        ("star", "{\"a\":".repeat(5000) + "1" + &"}".repeat(5000), "ignored"),
        ("workflow_run", body().replace("\"requested\"", "\"some\\u0000thing\\u001b\""), "ignored"),
        ("workflow_run", body().replace("\"CI\"", "\"C\\u0000I\""), "processed"),
        ("push", json!({ "repository": run_of("acme/api", 1)["repository"] }).to_string(), "processed"),
        ("workflow_run", body().replace("\"login\":\"acme\"", "\"login\":\"a b/c\""), "failed"),
    ] {
        let counted = app.metric("webhooks", status).await;
        let answer = app.send(app.webhook(event, body.clone())).await;
        assert_eq!(answer.status, 202, "{event} {body:.60}: {}", answer.text());
        assert_eq!(app.metric("webhooks", status).await, counted + 1, "{event} {body:.60} is {status}");
    }
    let kept = "webhook_deliveries WHERE status = 'failed' AND error IS NOT NULL AND payload IS NOT NULL";
    assert_eq!(app.sql().count(kept).await, 6);
}

async fn too_large_is_refused_however_it_comes(backend: Backend) {
    let app = TestApp::with(backend, "limits.webhook_body = \"64KiB\"").await;
    let before = app.sql().counts().await;
    let exact = format!("\"{}\"", "x".repeat(64 * 1024 - 2));
    let above = format!("\"{}\"", "x".repeat(64 * 1024 - 1));
    let huge = format!("\"{}\"", "x".repeat(3 << 20));
    app.send(app.webhook("star", above.clone())).await.refused(413, "body_too_large");
    app.send(app.webhook("star", above).chunked()).await.refused(413, "body_too_large");
    app.send(app.webhook("star", huge.clone())).await.refused(413, "body_too_large");
    app.send(app.webhook("star", huge).chunked()).await.refused(413, "body_too_large");
    // Only announced: the answer does not wait for it.
    let announced = app.webhook("star", "{}").header("Content-Length", "99999999999");
    app.send(announced).await.refused(413, "body_too_large");
    assert_eq!(app.metric("webhooks", "body_too_large").await, 5);
    assert_eq!(app.sql().counts().await, before);
    app.send(app.webhook("star", exact.clone())).await.expect(202);
    app.send(app.webhook("star", exact).chunked()).await.expect(202);
}

/// Begins a delivery of `announced` bytes and stops half-way, when the node has begun to read it.
async fn half_a_delivery(app: &TestApp, announced: usize) -> TcpStream {
    app.webhook("star", "").send_beginning(app.address(), announced, &vec![b' '; announced / 2]).await
}

async fn more_bodies_than_fit_are_sent_away_for_a_while(backend: Backend) {
    let limits =
        "limits.body_grace = \"1m\"\nlimits.webhook_body = \"64KiB\"\nlimits.webhook_in_flight = \"64KiB\"";
    let app = TestApp::with(backend, limits).await;
    let before = app.sql().counts().await;
    let mut slow = half_a_delivery(&app, 60 * 1024).await;
    let large = format!("\"{}\"", "x".repeat(50 * 1024));
    app.send(app.webhook("star", large)).await.expect(202);
    let refused = Answer::read(&mut slow).await.refused(503, "body_evicted");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(app.metric("webhooks", "body_evicted").await, 1);
    assert_ne!(app.sql().counts().await, before);
}

async fn a_body_that_stops_half_way_is_given_up(backend: Backend) {
    let app = TestApp::with(backend, "limits.webhook_body_timeout = \"200ms\"").await;
    let before = app.sql().counts().await;
    let mut slow = half_a_delivery(&app, 1000).await;
    Answer::read(&mut slow).await.refused(408, "body_timeout");
    assert_eq!(app.metric("webhooks", "body_timeout").await, 1);
    assert_eq!(app.sql().counts().await, before);
}

async fn a_flood_of_wrong_signatures_is_slowed_and_right_ones_go_on(backend: Backend) {
    let app = TestApp::with(backend, "limits.invalid_signatures_per_minute = 10").await;
    let before = app.sql().counts().await;
    let forged = || app.webhook("star", "{}").header("X-Hub-Signature-256", &signature("wrong", b"{}"));
    for _ in 0..10 {
        app.send(forged()).await.refused(401, "signature_invalid");
    }
    let refused = app.send(forged()).await.refused(429, "too_many_invalid_signatures");
    let wait: u64 = refused.header("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=6).contains(&wait), "{wait}");
    // Nobody believes this header without a trusted proxy in front.
    let elsewhere = forged().header("X-Forwarded-For", "203.0.113.9");
    app.send(elsewhere).await.refused(429, "too_many_invalid_signatures");
    assert_eq!(app.metric("webhooks", "too_many_invalid_signatures").await, 2);
    assert_eq!(app.sql().counts().await, before);
    app.send(app.webhook("star", "{}")).await.expect(202);
}

async fn a_trusted_proxy_says_who_is_asking(backend: Backend) {
    let options = "limits.invalid_signatures_per_minute = 1\nserver.trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]";
    let app = TestApp::with(backend, options).await;
    let forged = |from: &str| {
        let forged = app.webhook("star", "{}").header("X-Hub-Signature-256", &signature("wrong", b"{}"));
        app.send(forged.header("X-Forwarded-For", from))
    };
    forged("203.0.113.9").await.refused(401, "signature_invalid");
    forged("203.0.113.9").await.refused(429, "too_many_invalid_signatures");
    // The right-most address that no trusted proxy has written counts; what is left of it is hearsay.
    forged("198.51.100.1, 203.0.113.9, 10.1.2.3").await.refused(429, "too_many_invalid_signatures");
    forged("203.0.113.9, 198.51.100.1").await.refused(401, "signature_invalid");
    forged("2001:db8::7").await.refused(401, "signature_invalid");
    forged("2001:db8::7").await.refused(429, "too_many_invalid_signatures");
}

async fn an_allow_list_keeps_other_addresses_out(backend: Backend) {
    let options =
        "github.allowed_addresses = [\"192.30.252.0/22\"]\nserver.trusted_proxies = [\"127.0.0.1\"]";
    let app = TestApp::with(backend, options).await;
    let before = app.sql().counts().await;
    app.send(app.webhook("star", "{}")).await.refused(403, "forbidden");
    let from = |address: &str| app.webhook("star", "{}").header("X-Forwarded-For", address);
    app.send(from("192.30.251.255")).await.refused(403, "forbidden");
    assert_eq!(app.metric("webhooks", "forbidden").await, 2);
    assert_eq!(app.sql().counts().await, before);
    app.send(from("192.30.252.7")).await.expect(202);
    app.send(from("::ffff:192.30.252.7")).await.expect(202);
}

/// What the audit log has of the newest delivery, which was processed.
async fn kept_of_a_processed_delivery(app: &TestApp) -> String {
    let list = app.get("/api/deliveries", &app.admin()).await.expect(200).json();
    let delivery = &list["deliveries"][0];
    assert_eq!(delivery["status"], "processed", "{list}");
    let id = delivery["id"].as_str().expect("an id");
    app.get(&format!("/api/deliveries/{id}"), &app.admin()).await.expect(200).text().to_owned()
}

/// JSON may name half of a character, and no text can hold it.
async fn half_a_character_costs_no_event(backend: Backend) {
    let app = TestApp::start(backend).await;
    let body = run_of("acme/api", 1).to_string().replace("\"CI\"", "\"CI \\ud83d\"");
    app.send(app.webhook("workflow_run", body.clone())).await.expect(202);
    let page = app.poll("channel=repo:acme/api", &app.ana()).await;
    assert!(page["events"][0].to_string().contains("CI \u{fffd}"), "{page}");
    let kept = kept_of_a_processed_delivery(&app).await;
    assert!(kept.contains("CI \\ud83d"), "kept as it was sent: {kept}");
}

/// What is signed is bytes.
async fn bytes_that_are_no_text_cost_no_event(backend: Backend) {
    let app = TestApp::start(backend).await;
    let (mut body, name) = (run_of("acme/api", 1).to_string().into_bytes(), b"\"CI\"");
    let at = body.windows(name.len()).position(|window| window == name).expect("its name");
    body.splice(at..at + name.len(), *b"\"CI \xff\"");
    app.send(app.webhook("workflow_run", body)).await.expect(202);
    let page = app.poll("channel=repo:acme/api", &app.ana()).await;
    assert!(page["events"][0].to_string().contains("CI \u{fffd}"), "{page}");
    let kept = kept_of_a_processed_delivery(&app).await;
    assert!(kept.contains("CI \u{fffd}"), "{kept}");
}

on_both!(
    half_a_character_costs_no_event,
    bytes_that_are_no_text_cost_no_event,
    whatever_is_malformed_is_refused_by_name_and_changes_nothing,
    a_signature_is_judged_before_anything_else,
    a_delivery_is_taken_once_and_a_repeat_says_so,
    both_secrets_count_during_a_rotation,
    a_form_is_taken_like_json,
    every_kind_of_event_is_accepted,
    too_large_is_refused_however_it_comes,
    more_bodies_than_fit_are_sent_away_for_a_while,
    a_body_that_stops_half_way_is_given_up,
    a_flood_of_wrong_signatures_is_slowed_and_right_ones_go_on,
    a_trusted_proxy_says_who_is_asking,
    an_allow_list_keeps_other_addresses_out,
);
