//! Renames and transfers: both names hear of them.

use serde_json::{Value, json};

use super::{api, fixture, interpretation, published, value};
use crate::domain::workflow::{RepoUpdate, StateChange};
use crate::sources::github::{About, Interpretation, Outcome, RepoMap, about, interpret, interpret_with};

/// Which channels' names hear of each event: `owner/name`, or `owner` alone.
fn heard(interpretation: &Interpretation) -> Vec<(&'static str, Vec<String>)> {
    let name = |owner: &str, repo: Option<&String>| match repo {
        Some(repo) => format!("{owner}/{repo}"),
        None => owner.to_owned(),
    };
    let events = interpretation.events.iter().map(|event| {
        let former = event.former.iter().map(|former| name(&former.owner, former.repo.as_ref()));
        (event.kind, std::iter::once(name(&event.owner, event.repo.as_ref())).chain(former).collect())
    });
    events.collect()
}

fn with_map(name: &str, map: &str) -> Interpretation {
    let (event, text) = fixture(name);
    interpret(event, text.as_bytes(), &serde_json::from_str(map).unwrap()).unwrap()
}

fn named(owner: &str, name: &str) -> RepoUpdate {
    RepoUpdate { owner: owner.to_owned(), name: name.to_owned(), ..api() }
}

#[test]
fn a_renamed_repository_is_told_under_both_names() {
    let renamed = interpretation("repository_renamed");
    assert_eq!(heard(&renamed), [("repo:renamed", vec!["acme/core-api".to_owned(), "acme/api".to_owned()])]);
    let data = &published(&renamed)[0].2;
    let names = [&data["owner"], &data["name"], &data["from"], &data["to"], &data["action"]];
    assert_eq!(names, ["acme", "core-api", "acme/api", "acme/core-api", "renamed"]);
    assert_eq!(renamed.changes, [StateChange::RepoUpdated(named("acme", "core-api"))]);
}

#[test]
fn a_transferred_repository_leaves_one_account_and_comes_to_another() {
    let moved = interpretation("repository_transferred");
    let told = published(&moved);
    let place = |at: usize| (told[at].0, told[at].1.as_str(), &told[at].2["from"], &told[at].2["to"]);
    assert_eq!(place(0), ("repo:removed", "octo-demo/api", &Value::Null, &json!("acme/api")));
    assert_eq!(place(1), ("repo:added", "acme/api", &json!("octo-demo/api"), &Value::Null));
    assert_eq!(moved.changes, [StateChange::RepoUpdated(named("acme", "api"))]);
    let (event, mut body) = value("repository_transferred");
    body["changes"]["owner"]["from"] = json!({ "user": { "login": "ana" } });
    body["changes"]["repository"] = json!({ "name": { "from": "old" } });
    let moved = interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap();
    assert_eq!(published(&moved)[0].1, "ana/old");
}

#[test]
fn what_the_map_does_not_publish_under_the_new_name_is_gone() {
    let gone = with_map("repository_renamed", r#"{"acme/api":"octo-demo/core"}"#);
    assert_eq!(heard(&gone), [("repo:removed", vec!["octo-demo/core".to_owned()])]);
    assert_eq!(gone.changes, [StateChange::RepoRemoved { github_id: 724_712_045 }]);
    assert_eq!(published(&gone)[0].2["to"], Value::Null, "the new name is not ours to tell");
    let came = with_map("repository_renamed", r#"{"acme/core-api":true}"#);
    assert_eq!(heard(&came), [("repo:added", vec!["acme/core-api".to_owned()])]);
    let both = with_map("repository_renamed", r#"{"acme/core-api":"a/new","acme/api":"a/old"}"#);
    assert_eq!(heard(&both), [("repo:renamed", vec!["a/new".to_owned(), "a/old".to_owned()])]);
    let neither = with_map("repository_renamed", r#"{"acme/web":true}"#);
    assert_eq!(neither.outcome, Outcome::Ignored("not in the repository map"));
}

#[test]
fn a_rename_that_does_not_say_from_what_is_an_update() {
    let (event, mut body) = value("repository_renamed");
    body.as_object_mut().unwrap().remove("changes");
    let updated = interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap();
    assert_eq!(heard(&updated), [("repo:updated", vec!["acme/core-api".to_owned()])]);
    for (pointer, bad) in [("name", json!("a b")), ("name", json!(7))] {
        body["changes"] = json!({ "repository": { pointer: { "from": bad } } });
        interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap_err();
    }
}

#[test]
fn a_renamed_account_takes_its_repositories_along() {
    for name in ["organization_renamed", "installation_target_renamed"] {
        let (event, text) = fixture(name);
        assert_eq!(about(event, text), Some(About::Owner("acme".to_owned())), "{name}");
        let known = [named("acme", "api"), RepoUpdate { github_id: 7, ..named("acme", "web") }];
        let renamed = interpret_with(event, text.as_bytes(), &RepoMap::default(), &known).unwrap();
        let names = |new: &str, old: &str| vec![new.to_owned(), old.to_owned()];
        assert_eq!(
            heard(&renamed),
            [
                ("org:renamed", names("acme-corp", "acme")),
                ("repo:renamed", names("acme-corp/api", "acme/api")),
                ("repo:renamed", names("acme-corp/web", "acme/web")),
            ],
            "{name}"
        );
        let moved = named("acme-corp", "web");
        let changes = [named("acme-corp", "api"), RepoUpdate { github_id: 7, ..moved }];
        assert_eq!(renamed.changes, changes.map(StateChange::RepoUpdated));
    }
    for (event, body) in [
        ("organization", json!({ "action": "member_added", "organization": { "login": "acme" } })),
        ("organization", json!({})),
        ("workflow_run", json!({ "action": "renamed", "changes": { "login": { "from": "a" } } })),
    ] {
        assert_eq!(about(event, &body.to_string()), None);
    }
    let nameless = json!({ "action": "renamed", "organization": { "login": "acme" } }).to_string();
    interpret("organization", nameless.as_bytes(), &RepoMap::default()).unwrap_err();
}

#[test]
fn an_installation_without_a_list_is_about_all_that_came_through_it() {
    let (event, mut body) = value("installation_deleted");
    assert_eq!(about(event, &body.to_string()), None, "it names them");
    body.as_object_mut().unwrap().remove("repositories");
    let text = body.to_string();
    assert_eq!(about(event, &text), Some(About::Installation(48_120_377)));
    let known = [api()];
    let gone = interpret_with(event, text.as_bytes(), &RepoMap::default(), &known).unwrap();
    assert_eq!(heard(&gone), [("repo:removed", vec!["acme/api".to_owned()])]);
    assert_eq!(gone.changes, [StateChange::RepoRemoved { github_id: 724_712_045 }]);
}
