//! The page and the numbers on it, as a browser asks for them.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of};
use crate::support::client::{Answer, Request};

async fn browse(app: &TestApp, path: &str) -> Answer {
    app.send(Request::get(path).header("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")).await
}

async fn browsers_get_a_page_and_programs_get_words(backend: Backend) {
    let app = TestApp::start(backend).await;
    let words = app.get("/", "").await.expect(200);
    assert!(words.text().starts_with("Campanile "), "{}", words.text());
    assert_eq!(words.header("vary"), Some("Accept"));
    for path in ["/", "/sign-in"] {
        let page = browse(&app, path).await.expect(200);
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = page.header("content-security-policy").expect("a policy");
        for rule in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"]
        {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(page.header("set-cookie"), None);
        for file in page.text().split("\"/page/").skip(1).map(|rest| rest.split('"').next().expect("a quote"))
        {
            app.get(&format!("/page/{file}"), "").await.expect(200);
        }
    }
    let api = app.get("/api/repos", "").await.expect(401);
    let policy = api.header("content-security-policy");
    assert_eq!(policy, Some("default-src 'none'; frame-ancestors 'none'"), "as before");
    for path in ["/page/", "/page/mod.rs", "/page/..%2fmod.rs", "/page/page.css/x"] {
        app.get(path, "").await.refused(404, "not_found");
    }
}

async fn a_page_that_is_known_is_not_sent_again(backend: Backend) {
    let app = TestApp::start(backend).await;
    for path in ["/", "/sign-in", "/page/page.js", "/page/page.css", "/page/icon.svg"] {
        let first = browse(&app, path).await.expect(200);
        assert_eq!(first.header("cache-control"), Some("no-cache"));
        let tag = first.header("etag").expect("a tag");
        let again = Request::get(path).header("Accept", "text/html").header("If-None-Match", tag);
        let again = app.send(again).await.expect(304);
        assert!(again.body.is_empty() && again.header("etag") == Some(tag));
    }
}

async fn the_summary_counts_what_one_may_see(backend: Backend) {
    let app = TestApp::start(backend).await;
    let summary = async |token: &str| app.get("/api/dashboard/summary", token).await.expect(200).json();
    app.get("/api/dashboard/summary", "").await.refused(401, "token_missing");

    let today = chrono::Utc::now().to_rfc3339();
    let run = |repo: &str, id: u64, action: &str, conclusion: Value| {
        let mut run = run_of(repo, id);
        run["action"] = json!(action);
        let status = if action == "completed" { "completed" } else { "queued" };
        run["workflow_run"]["status"] = json!(status);
        run["workflow_run"]["conclusion"] = conclusion;
        for field in ["created_at", "updated_at", "run_started_at"] {
            run["workflow_run"][field] = json!(today);
        }
        run
    };
    for run in [
        run("acme/api", 1, "completed", json!("failure")),
        run("acme/api", 2, "completed", json!("success")),
        run("acme/web", 3, "completed", json!("timed_out")),
        run("other/app", 4, "requested", Value::Null),
    ] {
        app.post_webhook("workflow_run", &run).await.expect(202);
    }
    let counts = |repositories: u64, failing: u64, running: u64, runs: u64, failed: u64| {
        json!({ "repositories": repositories, "failing": failing, "running": running,
            "runsToday": runs, "failedToday": failed })
    };
    let all = summary(&app.admin()).await;
    assert_eq!(all["counts"], counts(3, 1, 1, 4, 2));
    let mut channels: Vec<&str> =
        all["channels"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    channels.sort_unstable();
    assert_eq!(channels, ["org:acme", "org:other"]);
    let ana = summary(&app.ana()).await;
    assert_eq!((&ana["counts"], &ana["channels"]), (&counts(2, 1, 0, 3, 2), &json!(["org:acme"])));
    let one = summary(&app.token(json!({ "sub": "x", "repos": ["other/app"] }))).await;
    assert_eq!((&one["counts"], &one["channels"]), (&counts(1, 0, 1, 1, 0), &json!(["repo:other/app"])));
    let none = summary(&app.token(json!({ "sub": "x" }))).await;
    assert_eq!((&none["counts"], &none["channels"]), (&counts(0, 0, 0, 0, 0), &json!([])));
}

async fn the_summary_is_sent_again_only_when_it_changed(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let admin = app.admin();
    let first = app.get("/api/dashboard/summary", &admin).await.expect(200);
    assert_eq!(first.header("cache-control"), Some("private, max-age=0"));
    let tag = first.header("etag").expect("a tag").to_owned();
    let again = || Request::get("/api/dashboard/summary").bearer(&admin).header("If-None-Match", &tag);
    app.send(again()).await.expect(304);
    app.post_webhook("workflow_run", &run_of("acme/web", 2)).await.expect(202);
    let began = std::time::Instant::now();
    loop {
        let answer = app.send(again()).await;
        if answer.status == 200 {
            assert_eq!(answer.json()["counts"]["repositories"], 2);
            break;
        }
        assert!(began.elapsed().as_secs() < 10, "the summary does not change");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

on_both!(
    browsers_get_a_page_and_programs_get_words,
    a_page_that_is_known_is_not_sent_again,
    the_summary_counts_what_one_may_see,
    the_summary_is_sent_again_only_when_it_changed,
);
