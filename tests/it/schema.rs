//! The document that the gateway serves, against the real binary: a tool makes requests of it, good
//! and bad ones, and holds every answer against it.

use std::path::Path;
use std::process::Command;

use campanile::auth::{NewToken, mint};
use serde_json::json;

use crate::support::app::{run_of, signature};
use crate::support::client::Request;
use crate::support::process::{API_KEY, Gateway, Home, JWT_SECRET, WEBHOOK_SECRET, on_sqlite};

const BUILD: &str = "/api/builds/0195d3a0-1111-7000-8000-0000000000aa/events";

#[test]
fn every_answer_is_one_that_the_document_knows() {
    on_sqlite(async |home: Home| {
        let home = home
            .with("CAMPANILE_LIMITS__POLLS_PER_MINUTE", "1000000")
            .with("CAMPANILE_LIMITS__BUILD_EVENTS_PER_MINUTE", "1000000")
            .with("CAMPANILE_LIMITS__INVALID_SIGNATURES_PER_MINUTE", "1000000");
        let gateway = Gateway::start(&home).await;
        let scopes = vec!["admin".to_owned()];
        let claims =
            NewToken { user: "ana".into(), orgs: vec!["acme".into()], scopes, ..NewToken::default() };
        let token = mint(JWT_SECRET, &claims, chrono::Utc::now()).expect("a token");
        fill(&gateway, &token).await;

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schema/run");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis");
        let mut tool = Command::new(script);
        tool.arg(format!("http://{}", gateway.address)).arg(folder);
        tool.env("TOKEN", &token).env("API_KEY", API_KEY);
        let ended = tool.output().expect("the script runs");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
        // It blocks and revokes what it comes upon. Had it met its own user or token, refusals would
        // have taken the place of the answers to be seen.
        Request::get("/api/auth/me").bearer(&token).send(gateway.address).await.expect(200);
        gateway.stop().await;
    });
}

/// Something of everything, so that there is something to be found.
async fn fill(gateway: &Gateway, token: &str) {
    for run in 1..=3 {
        let body = run_of("acme/api", run).to_string();
        let delivery = Request::post("/webhooks/github")
            .header("Content-Type", "application/json")
            .header("X-GitHub-Event", "workflow_run")
            .header("X-GitHub-Delivery", &format!("0195d3a0-2222-7000-8000-00000000000{run}"))
            .header("X-Hub-Signature-256", &signature(WEBHOOK_SECRET, body.as_bytes()));
        delivery.body(body).send(gateway.address).await.expect(202);
    }
    let event = Request::post(BUILD).bearer(token).json(&json!({ "type": "build:started" }));
    event.send(gateway.address).await.expect(201);
}
