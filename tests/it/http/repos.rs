//! Repositories, their runs and the activity list, as far as a caller's claims show them.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of};
use crate::support::client::Request;

fn names(list: &Value) -> Vec<String> {
    let repos = list["repos"].as_array().expect("a list").iter();
    repos
        .map(|repo| format!("{}/{}", repo["owner"].as_str().unwrap(), repo["name"].as_str().unwrap()))
        .collect()
}

async fn know(app: &TestApp, repos: &[&str]) {
    for (run, repo) in repos.iter().enumerate() {
        app.post_webhook("workflow_run", &run_of(repo, run as u64 + 1)).await.expect(202);
    }
}

async fn a_list_shows_what_the_claims_show(backend: Backend) {
    let app = TestApp::start(backend).await;
    know(&app, &["acme/api", "acme/web", "other/api", "third/x"]).await;
    for (claims, seen) in [
        (json!({ "scope": "admin" }), vec!["acme/api", "acme/web", "other/api", "third/x"]),
        (json!({ "orgs": ["acme"] }), vec!["acme/api", "acme/web"]),
        (json!({ "orgs": ["acme"], "repos": ["third/x"] }), vec!["acme/api", "acme/web", "third/x"]),
        (json!({ "repos": ["other/api"] }), vec!["other/api"]),
        (json!({ "channels": ["repo:acme/web"] }), vec!["acme/web"]),
        (
            json!({ "caps": [{ "channels": ["repo:*/api"], "allow": ["sub"] }] }),
            vec!["acme/api", "other/api"],
        ),
        (json!({ "caps": [{ "channels": ["repo:*"], "allow": ["prs"] }] }), vec![]),
        (json!({ "orgs": ["Acme"] }), vec![]),
        (json!({}), vec![]),
    ] {
        let token = app.token(claims.clone());
        assert_eq!(names(&app.get("/api/repos", &token).await.expect(200).json()), seen, "{claims}");
        for repo in ["acme/api", "acme/web", "other/api", "third/x"] {
            let path = format!("/api/repos/{}", repo.replace('/', "%2F"));
            let answer = app.get(&path, &token).await;
            let runs = app.get(&format!("{path}/runs?date=2026-11-21"), &token).await;
            if seen.contains(&repo) {
                assert_eq!(answer.expect(200).json()["name"], repo.split_once('/').unwrap().1);
                assert_eq!(runs.expect(200).json()["runs"].as_array().map(Vec::len), Some(1));
            } else {
                // As if it did not exist.
                let missing = app.get("/api/repos/no%2Fbody", &token).await.refused(404, "not_found");
                assert_eq!(answer.refused(404, "not_found").text(), missing.text());
                runs.refused(404, "not_found");
            }
        }
    }
}

async fn a_list_can_be_narrowed_and_paged(backend: Backend) {
    let app = TestApp::start(backend).await;
    know(&app, &["acme/api", "acme/web", "acme/a_b", "other/api", "acme/a.b"]).await;
    let mut done = run_of("acme/web", 2);
    done["action"] = json!("completed");
    done["workflow_run"]["status"] = json!("completed");
    done["workflow_run"]["conclusion"] = json!("failure");
    app.post_webhook("workflow_run", &done).await.expect(202);
    let admin = app.admin();
    for (query, seen) in [
        ("org=acme", vec!["acme/a.b", "acme/a_b", "acme/api", "acme/web"]),
        ("q=API", vec!["acme/api", "other/api"]),
        ("q=a_b", vec!["acme/a_b"]),
        ("q=%25", vec![]),
        ("q=e/a", vec!["acme/a.b", "acme/a_b", "acme/api"]),
        ("status=failure", vec!["acme/web"]),
        ("status=queued&org=other", vec!["other/api"]),
        ("status=nothing", vec![]),
    ] {
        let list = app.get(&format!("/api/repos?{query}"), &admin).await.expect(200).json();
        assert_eq!(
            (names(&list), &list["cursor"]),
            (seen.iter().map(|s| (*s).to_owned()).collect(), &Value::Null),
            "{query}"
        );
    }
    for (query, code) in [
        ("limit=0", "bad_limit"),
        ("limit=101", "bad_limit"),
        ("cursor=x", "bad_cursor"),
        ("cursor=", "bad_cursor"),
        ("cursor=YQAvYi8wMTk1ZDNhMC0wMDAwLTcwMDAtODAwMC0wMDAwMDAwMDAwMDA", "bad_cursor"),
        ("q=%00", "bad_query"),
        ("org=a%00", "bad_query"),
        ("status=%00", "bad_query"),
        ("q=%FF&q=x", "bad_query"),
    ] {
        app.get(&format!("/api/repos?{query}"), &admin).await.refused(400, code);
    }
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/api/repos?limit=2{cursor}"), &admin).await.expect(200).json();
        all.extend(names(&page));
        let Some(next) = page["cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(all, ["acme/a.b", "acme/a_b", "acme/api", "acme/web", "other/api"]);
}

async fn a_list_by_patterns_ends_where_the_last_match_is(backend: Backend) {
    let app = TestApp::start(backend).await;
    let many: Vec<String> = (100..180).map(|n| format!("acme/r{n}")).collect();
    let posts = many.iter().map(|repo| {
        let body = json!({ "action": "created", "repository": run_of(repo, 1)["repository"] });
        let delivery = app.webhook("repository", body.to_string());
        async { app.send(delivery).await.expect(202) }
    });
    futures_util::future::join_all(posts).await;
    let cap = json!({ "caps": [{ "channels": ["repo:*/r101", "repo:*/r17*"], "allow": ["sub"] }] });
    let token = app.token(cap);
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/api/repos?limit=1{cursor}"), &token).await.expect(200).json();
        all.extend(names(&page));
        let Some(next) = page["cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!((all.len(), all[0].as_str(), all[10].as_str()), (11, "acme/r101", "acme/r179"));
}

async fn one_repository_is_found_by_id_and_by_name(backend: Backend) {
    let app = TestApp::start(backend).await;
    know(&app, &["acme/api"]).await;
    let ana = app.ana();
    let by_name = app.get("/api/repos/acme%2Fapi", &ana).await.expect(200).json();
    let id = by_name["id"].as_str().expect("an id");
    assert_eq!(app.get(&format!("/api/repos/{id}"), &ana).await.expect(200).json(), by_name);
    assert_eq!(app.get("/api/repos/acme%2fapi", &ana).await.expect(200).json(), by_name);
    assert_eq!(
        (&by_name["latestRun"]["runId"], &by_name["latestRun"]["status"]),
        (&json!(1), &json!("queued"))
    );
    for path in [
        "acme%2FAPI",
        "acme",
        "a%00%2Fb",
        "acme%2Fapi%2Fx",
        "%2F",
        "x%FF%2Fy",
        "0195d3a0-0000-7000-8000-000000000000",
    ] {
        app.get(&format!("/api/repos/{path}"), &ana).await.refused(404, "not_found");
    }
    app.get("/api/repos/acme/api", &ana).await.refused(404, "not_found");
}

async fn runs_are_those_of_a_day(backend: Backend) {
    let app = TestApp::start(backend).await;
    know(&app, &["acme/api"]).await;
    let ana = app.ana();
    let runs = async |date: &str| {
        app.get(&format!("/api/repos/acme%2Fapi/runs?date={date}"), &ana).await.expect(200).json()
    };
    let day = runs("2026-11-21").await;
    assert_eq!((&day["date"], &day["runs"][0]["runId"]), (&json!("2026-11-21"), &json!(1)));
    assert_eq!(day["runs"][0]["jobs"], json!([]));
    for quiet in ["2026-11-20", "2026-11-22", "0001-01-01", "9999-12-31"] {
        assert_eq!(runs(quiet).await["runs"], json!([]), "{quiet}");
    }
    for bad in [
        "",
        "x",
        "2026-02-30",
        "21.11.2026",
        "2026-11-21T00:00",
        "%2B262142-12-31",
        "-262143-01-01",
        "-9999-01-01",
        "2026-11-21%00",
    ] {
        let path = format!("/api/repos/acme%2Fapi/runs?date={bad}");
        app.get(&path, &ana).await.refused(400, "bad_date");
    }
    app.get("/api/repos/acme%2Fapi/runs", &ana).await.expect(200);
}

async fn activity_is_newest_first_and_only_what_one_may_see(backend: Backend) {
    let app = TestApp::start(backend).await;
    know(&app, &["acme/api", "other/api", "acme/web", "third/x"]).await;
    let activity = |claims: Value, query: &'static str| {
        let token = app.token(claims);
        let app = &app;
        async move {
            let answer = app.get(&format!("/api/dashboard/activity{query}"), &token).await.expect(200);
            let events = answer.json()["events"].as_array().expect("a list").clone();
            events.iter().map(|event| event["data"]["runId"].as_u64().unwrap()).collect::<Vec<_>>()
        }
    };
    assert_eq!(activity(json!({ "scope": "admin" }), "").await, [4, 3, 2, 1]);
    assert_eq!(activity(json!({ "scope": "admin" }), "?limit=2").await, [4, 3]);
    assert_eq!(activity(json!({ "orgs": ["acme"] }), "").await, [3, 1]);
    assert_eq!(activity(json!({ "orgs": ["acme"], "repos": ["acme/api", "third/x"] }), "").await, [4, 3, 1]);
    assert_eq!(activity(json!({ "repos": ["other/api"] }), "").await, [2]);
    assert_eq!(activity(json!({}), "").await, [] as [u64; 0]);
    let ana = app.ana();
    app.get("/api/dashboard/activity?limit=0", &ana).await.refused(400, "bad_limit");
    let first = app.get("/api/dashboard/activity", &ana).await.expect(200);
    let tag = first.header("etag").expect("a tag").to_owned();
    let again = || Request::get("/api/dashboard/activity").bearer(&ana).header("If-None-Match", &tag);
    let same = app.send(again()).await.expect(304);
    assert_eq!((same.header("etag"), same.body.len()), (Some(tag.as_str()), 0));
    know(&app, &["other/more"]).await;
    app.send(again()).await.expect(304);
    app.post_runs(9..=9).await;
    app.send(again()).await.expect(200);
}

on_both!(
    a_list_shows_what_the_claims_show,
    a_list_can_be_narrowed_and_paged,
    a_list_by_patterns_ends_where_the_last_match_is,
    one_repository_is_found_by_id_and_by_name,
    runs_are_those_of_a_day,
    activity_is_newest_first_and_only_what_one_may_see,
);
