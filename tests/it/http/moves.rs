//! Repositories and accounts that change their names: who follows the old name hears where they went.

use serde_json::{Value, json};

use crate::support::app::{Backend, TestApp, on_both, run_of};

/// `repository` with the action `action`, about `new`, which was `changes` before.
fn moved(action: &str, new: &str, changes: &Value) -> Value {
    let mut body =
        json!({ "action": action, "repository": run_of("acme/api", 1)["repository"], "changes": changes });
    let (owner, name) = new.split_once('/').expect("owner/name");
    body["repository"]["name"] = name.into();
    body["repository"]["full_name"] = new.into();
    body["repository"]["owner"]["login"] = owner.into();
    body
}

fn renamed() -> Value {
    moved("renamed", "acme/gateway", &json!({ "repository": { "name": { "from": "api" } } }))
}

async fn who_follows_the_old_name_hears_of_the_new_one(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let ana = app.ana();
    let mut streams = Vec::new();
    for channel in ["repo:acme/api", "repo:acme/gateway", "org:acme"] {
        streams.push(app.stream(channel, &ana, None).await);
    }
    app.post_webhook("repository", &renamed()).await.expect(202);
    let mut ids = Vec::new();
    for stream in &mut streams {
        let event = stream.next_event().await;
        let (name, event) = (event.name().to_owned(), event.json());
        assert_eq!((name.as_str(), &event["repo"]), ("repo:renamed", &json!("acme/gateway")));
        assert_eq!(
            (&event["data"]["from"], &event["data"]["to"]),
            (&json!("acme/api"), &json!("acme/gateway"))
        );
        ids.push(event["id"].clone());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "one event");
    // Once on each: what follows is the next one.
    app.post_webhook("workflow_run", &run_of("acme/gateway", 2)).await.expect(202);
    assert_eq!((streams[1].runs(1).await, streams[2].runs(1).await), (vec![2], vec![2]));
}

async fn a_transfer_is_told_on_both_sides(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let both = app.token(json!({ "sub": "ana", "orgs": ["acme", "octo-demo"] }));
    let from = json!({ "owner": { "from": { "organization": { "login": "acme", "id": 1 } } } });
    let mut streams = Vec::new();
    for channel in ["repo:acme/api", "org:acme", "repo:octo-demo/api", "org:octo-demo"] {
        streams.push((channel, app.stream(channel, &both, None).await));
    }
    app.post_webhook("repository", &moved("transferred", "octo-demo/api", &from)).await.expect(202);
    for (channel, stream) in &mut streams {
        let event = stream.next_event().await;
        let data = event.json()["data"].clone();
        if channel.contains("acme") {
            assert_eq!((event.name(), &data["to"]), ("repo:removed", &json!("octo-demo/api")), "{channel}");
        } else {
            assert_eq!((event.name(), &data["from"]), ("repo:added", &json!("acme/api")), "{channel}");
        }
    }
}

async fn a_transfer_under_a_new_name_is_told_under_the_one_that_was_known(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let both = app.token(json!({ "sub": "ana", "orgs": ["acme", "beta"] }));
    let from = json!({ "owner": { "from": { "organization": { "login": "acme", "id": 1 } } } });
    let mut streams = Vec::new();
    for (channel, kind) in
        [("repo:acme/api", "repo:removed"), ("org:acme", "repo:removed"), ("repo:beta/core", "repo:added")]
    {
        streams.push((kind, app.stream(channel, &both, None).await));
    }
    app.post_webhook("repository", &moved("transferred", "beta/core", &from)).await.expect(202);
    for (kind, stream) in &mut streams {
        let event = stream.next_event().await;
        let data = event.json()["data"].clone();
        let (place, name) = if *kind == "repo:added" { ("from", "acme/api") } else { ("to", "beta/core") };
        assert_eq!((event.name(), &data[place]), (*kind, &json!(name)));
    }
}

/// GitHub sends each delivery once, so that of a rename may be lost.
async fn a_move_that_was_not_announced_is_told_with_the_next_delivery(backend: Backend) {
    let mut app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    let both = app.token(json!({ "sub": "ana", "orgs": ["acme", "beta"] }));
    // The node knows no names any more.
    app.restart_with("").await;
    let mut old = app.stream("repo:acme/api", &both, None).await;
    let mut new = app.stream("repo:acme/core", &both, None).await;
    let mut run = run_of("acme/core", 2);
    run["repository"]["id"] = run_of("acme/api", 1)["repository"]["id"].clone();
    app.post_webhook("workflow_run", &run).await.expect(202);
    for stream in [&mut old, &mut new] {
        let event = stream.next_event().await;
        assert_eq!((event.name(), &event.json()["data"]["to"]), ("repo:renamed", &json!("acme/core")));
    }
    assert_eq!(new.runs(1).await, [2], "and then what it is about");
    // Of an event that nothing here depends on, and to another account.
    let mut star = moved("created", "beta/core", &json!(null));
    star["repository"]["id"] = run["repository"]["id"].clone();
    app.post_webhook("star", &star).await.expect(202);
    let event = new.next_event().await;
    assert_eq!((event.name(), &event.json()["data"]["to"]), ("repo:removed", &json!("beta/core")));
    // What was announced late tells nobody that it went anywhere else.
    let late = moved("renamed", "beta/core", &json!({ "repository": { "name": { "from": "api" } } }));
    let mut last = app.stream("repo:beta/core", &both, None).await;
    app.post_webhook("repository", &late).await.expect(202);
    assert_eq!(last.next_event().await.name(), "repo:updated");
}

async fn a_renamed_account_tells_the_followers_of_each_of_its_repositories(backend: Backend) {
    let app = TestApp::start(backend).await;
    app.post_runs(1..=1).await;
    app.post_webhook("workflow_run", &run_of("other/api", 2)).await.expect(202);
    let ana = app.ana();
    let (mut repo, mut org) =
        (app.stream("repo:acme/api", &ana, None).await, app.stream("org:acme", &ana, None).await);
    let body = json!({ "action": "renamed", "changes": { "login": { "from": "acme" } },
        "organization": { "login": "acme-corp", "id": 1 } });
    app.post_webhook("organization", &body).await.expect(202);
    let event = repo.next_event().await;
    assert_eq!((event.name(), &event.json()["data"]["to"]), ("repo:renamed", &json!("acme-corp/api")));
    let event = org.next_event().await;
    assert_eq!((event.name(), &event.json()["data"]["to"]), ("org:renamed", &json!("acme-corp")));
    assert_eq!(org.next_event().await.name(), "repo:renamed");
    let repos = app.get("/api/repos", &app.admin()).await.expect(200).json();
    let names: Vec<String> = repos["repos"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|repo| format!("{}/{}", repo["owner"].as_str().unwrap(), repo["name"].as_str().unwrap()))
        .collect();
    assert_eq!(names, ["acme-corp/api", "other/api"]);
    // The same by the App, late: nothing is left to tell about repositories.
    let by_app = json!({ "action": "renamed", "changes": { "login": { "from": "acme" } },
        "account": { "login": "acme-corp", "id": 1 }, "installation": { "id": 5 } });
    app.post_webhook("installation_target", &by_app).await.expect(202);
    assert_eq!(org.next_event().await.name(), "org:renamed");
}

async fn an_installation_that_goes_without_a_list_takes_its_repositories_along(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut run = run_of("acme/api", 1);
    run["installation"] = json!({ "id": 5 });
    app.post_webhook("workflow_run", &run).await.expect(202);
    let mut stream = app.stream("repo:acme/api", &app.ana(), None).await;
    for (action, kind) in
        [("suspend", "repo:updated"), ("unsuspend", "repo:updated"), ("deleted", "repo:removed")]
    {
        let body = json!({ "action": action, "installation": { "id": 5 } });
        app.post_webhook("installation", &body).await.expect(202);
        let event = stream.next_event().await;
        assert_eq!((event.name(), &event.json()["data"]["action"]), (kind, &json!(action)));
    }
    assert_eq!(app.get("/api/repos", &app.admin()).await.expect(200).json()["repos"], json!([]));
}

on_both!(
    who_follows_the_old_name_hears_of_the_new_one,
    a_transfer_is_told_on_both_sides,
    a_transfer_under_a_new_name_is_told_under_the_one_that_was_known,
    a_move_that_was_not_announced_is_told_with_the_next_delivery,
    a_renamed_account_tells_the_followers_of_each_of_its_repositories,
    an_installation_that_goes_without_a_list_takes_its_repositories_along,
);
