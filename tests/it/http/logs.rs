//! What the log and the metrics must never say: secrets, tokens, payloads, query strings. Every route
//! is driven with marked values, good and bad, and the marks are looked for in all that was logged and
//! counted.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::support::app::{
    API_KEY, Backend, JWT_SECRET, OLD_WEBHOOK_SECRET, TestApp, WEBHOOK_SECRET, on_both, run_of, token_by,
};
use crate::support::client::Request;
use crate::support::websocket::Client;

/// All lines of this process. Other tests may write here too.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics while writing").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts logging for the whole process, as loud as our own code can be.
fn lines() -> Lines {
    static LINES: std::sync::OnceLock<Lines> = std::sync::OnceLock::new();
    let start = || {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = EnvFilter::new("info,campanile=trace");
        let logging = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        logging.with_writer(move || writer.clone()).try_init().expect("nothing else logs in the tests");
        lines
    };
    LINES.get_or_init(start).clone()
}

async fn marked_values_do_not_reach_the_log(backend: Backend) {
    let lines = lines();
    let mut app = TestApp::with(backend, "limits.invalid_signatures_per_minute = 1").await;
    let (good, admin) =
        (app.token(json!({ "sub": "ana", "orgs": ["acme"], "jti": "MARK-good" })), app.admin());
    let forged = token_by("MARK-secret", &json!({ "sub": "MARK-forged" }));

    let mut run = run_of("acme/api", 1);
    run["workflow_run"]["name"] = json!("MARK-name");
    run["extra"] = json!("MARK-extra");
    app.post_webhook("workflow_run", &run).await.expect(202);
    run["workflow_run"]["id"] = json!("MARK-id");
    app.post_webhook("workflow_run", &run).await.expect(202);
    run["repository"]["name"] = json!("MARK name");
    app.post_webhook("push", &run).await.expect(202);
    for body in ["MARK-not-json", "\"MARK-text\""] {
        let delivery = app.webhook("push", body);
        app.send(delivery.clone().header("X-Hub-Signature-256", &format!("sha256=MARK{body}")))
            .await
            .expect(401);
        app.send(delivery.clone().body("MARK-other")).await;
        app.send(delivery).await;
    }
    let mut stream = app.stream("org:acme", &good, None).await;
    for token in [&good, &forged] {
        for path in [
            "/api/events?channel=org:acme&cursor=MARK-cursor",
            "/api/events?channel=MARK:channel",
            "/api/events/stream?cursor=MARK-cursor",
            "/api/repos?q=MARK-query",
            "/api/repos/MARK%2Fname",
            "/api/deliveries?cursor=MARK-cursor",
            "/api/dashboard/activity?limit=MARK",
            "/MARK-path?MARK-query",
        ] {
            app.get(path, token).await;
        }
        app.get(&format!("/api/events/stream?channels=org:other&token={token}"), "").await;
    }
    let list = app.get("/api/deliveries", &admin).await.expect(200).json();
    for delivery in list["deliveries"].as_array().expect("a list") {
        let path = format!("/api/deliveries/{}/process", delivery["id"].as_str().expect("an id"));
        app.send(Request::post(&path).bearer(&admin)).await;
    }
    let key = API_KEY.replace(' ', "%20");
    for (path, key) in [(format!("/api/publish?api_key={key}"), ""), ("/api/publish".to_owned(), "MARK-key")]
    {
        let data = json!({ "type": "x:y", "data": "MARK-data" });
        let body = json!({ "channel": "org:acme", "data": data, "idempotency_key": "MARK-once" });
        let request = Request::post(&path);
        let request = if key.is_empty() { request } else { request.header("X-API-Key", key) };
        app.send(request.clone().json(&body)).await;
        app.send(request.body("MARK-body")).await;
    }
    let build = format!("/api/builds/{}/events", uuid::Uuid::new_v4());
    for body in [json!({ "type": "build:done", "data": "MARK-data" }), json!({ "type": "MARK" })] {
        app.send(Request::post(&build).bearer(&good).header("Idempotency-Key", "MARK-once").json(&body))
            .await;
    }
    let mut client = Client::connected(&app, &good).await;
    client.ask(json!({ "subscribe": { "channel": "MARK:channel", "token": forged } })).await;
    client.ask(json!({ "publish": { "channel": "org:acme", "data": "MARK-data" } })).await;
    client.send_text("{\"id\":9,\"MARK\":{}}").await;
    client.closed().await;
    let mut stranger = Client::open(app.address()).await;
    stranger.command(json!({ "connect": { "token": forged } })).await;
    stranger.closed().await;
    for (method, body) in [
        ("revoke_token", json!({ "uid": "MARK-jti" })),
        ("block_user", json!({ "user": "MARK-user" })),
        ("disconnect", json!({ "user": "MARK-user", "disconnect": { "code": 4000, "reason": "MARK-why" } })),
        ("connections", json!({ "user": "MARK-user" })),
        ("history", json!({ "channel": "MARK:channel" })),
    ] {
        app.call(method, body).await.expect(200);
    }
    stream.next_event().await;
    let link = app.send(Request::post("/api/auth/links").header("X-API-Key", API_KEY)).await.expect(201);
    let link = link.json()["link"].as_str().expect("a link").to_owned();
    let (own, link_secret) = (app.address().to_string(), link.split_once('#').expect("a secret").1);
    let sign_in = |secret: &str| {
        let request = Request::post("/api/auth/sign-in").header("Host", &own);
        request.json(&json!({ "secret": secret }))
    };
    app.send(sign_in("MARK-link")).await.expect(401);
    let cookie = app.send(sign_in(link_secret)).await.expect(204);
    let cookie = cookie.header("set-cookie").and_then(|set| set.split(';').next()).expect("a cookie");
    for cookie in [cookie, "campanile=MARK-cookie"] {
        app.send(Request::get("/api/auth/me").header("Host", &own).header("Cookie", cookie)).await;
    }
    let session = cookie.split_once('=').expect("a value").1;
    let metrics = app.get("/metrics", "").await.expect(200).text().to_owned();
    app.stop().await;

    let bytes = lines.0.lock().expect("nobody panics while writing").clone();
    let text = String::from_utf8(bytes).expect("log lines are UTF-8");
    assert!(text.contains("listening") && text.contains(&own), "the address is not logged: {text}");
    assert!(text.contains("draining"), "the end is not logged: {text}");
    let signatures = [&good, &forged, &admin].map(|token| token.rsplit('.').next().expect("a signature"));
    let secrets = [JWT_SECRET, API_KEY, WEBHOOK_SECRET, OLD_WEBHOOK_SECRET, &key, "MARK"];
    for never in secrets.into_iter().chain(signatures).chain([link_secret, session]) {
        let line = text.lines().find(|line| line.contains(never));
        assert_eq!(line, None, "`{never}` is in the log");
        assert!(!metrics.contains(never), "`{never}` is in a metric");
    }
}

on_both!(marked_values_do_not_reach_the_log);
