//! The fixtures, one of each kind and action, and what they mean; then what holds for any JSON.

mod any_json;
mod bad;
mod moves;

use serde_json::{Value, json};

use super::{Interpretation, Outcome, RepoMap, interpret};
use crate::domain::workflow::{RepoUpdate, StateChange};

/// Every fixture, with the kind of event it is a payload of.
macro_rules! fixtures {
    ($($event:literal: $($name:literal)+;)+) => {
        pub const FIXTURES: &[(&str, &str, &str)] = &[$($(
            ($event, $name, include_str!(concat!("../../../../tests/fixtures/github/", $name, ".json"))),
        )+)+];
    };
}

fixtures! {
    "check_run": "check_run_completed";
    "installation": "installation_created" "installation_deleted" "installation_suspend";
    "installation_target": "installation_target_renamed";
    "installation_repositories": "installation_repositories_added" "installation_repositories_removed";
    "organization": "organization_renamed";
    "ping": "ping" "ping_organization";
    "pull_request": "pull_request_opened";
    "push": "push";
    "repository": "repository_created" "repository_deleted" "repository_privatized" "repository_renamed"
        "repository_transferred";
    "star": "star_created";
    "workflow_job": "workflow_job_completed" "workflow_job_in_progress" "workflow_job_queued";
    "workflow_run": "workflow_run_completed_cancelled" "workflow_run_completed_failure"
        "workflow_run_completed_success" "workflow_run_in_progress" "workflow_run_requested";
}

/// A fixture by name: its event and its text.
pub fn fixture(name: &str) -> (&'static str, &'static str) {
    let found = FIXTURES.iter().find(|(_, this, _)| *this == name);
    found.map(|(event, _, text)| (*event, *text)).unwrap_or_else(|| panic!("no fixture {name}"))
}

/// A fixture as a value, to be changed.
pub fn value(name: &str) -> (&'static str, Value) {
    let (event, text) = fixture(name);
    (event, serde_json::from_str(text).unwrap())
}

fn interpretation(name: &str) -> Interpretation {
    let (event, text) = fixture(name);
    interpret(event, text.as_bytes(), &RepoMap::default()).unwrap()
}

/// The events as `(kind, "owner/name", data)`.
fn published(interpretation: &Interpretation) -> Vec<(&'static str, String, Value)> {
    let event = |event: &crate::domain::workflow::EventDraft| {
        let name = format!("{}/{}", event.owner, event.repo.as_deref().unwrap());
        (event.kind, name, serde_json::from_str(event.data.get()).unwrap())
    };
    interpretation.events.iter().map(event).collect()
}

fn api() -> RepoUpdate {
    RepoUpdate {
        github_id: 724_712_045,
        owner: "acme".to_owned(),
        name: "api".to_owned(),
        default_branch: Some("main".to_owned()),
        private: Some(true),
        installation_id: Some(48_120_377),
    }
}

#[test]
fn every_fixture_file_is_listed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/github");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), FIXTURES.len());
}

#[test]
fn a_run_tells_its_state() {
    let base = json!({
        "runId": 11_987_654_321_i64, "workflowId": 77_213_345, "workflowName": "CI",
        "event": "push", "branch": "main",
        "commitSha": "7f1c3a90be52d46f8a0e9b7c15d2e4f60318a9cd", "attempt": 1,
        "url": "https://github.com/acme/api/actions/runs/11987654321", "startedAt": "2026-11-21T07:58:33.000Z",
    });
    let with = |more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    for (name, kind, data) in [
        (
            "workflow_run_requested",
            "workflow:started",
            with(json!({"status": "queued", "updatedAt": "2026-11-21T07:58:34.000Z"})),
        ),
        (
            "workflow_run_in_progress",
            "workflow:progress",
            with(json!({"status": "in_progress", "updatedAt": "2026-11-21T07:58:49.000Z"})),
        ),
        (
            "workflow_run_completed_success",
            "workflow:completed",
            with(
                json!({"status": "completed", "conclusion": "success", "updatedAt": "2026-11-21T08:03:12.000Z"}),
            ),
        ),
        (
            "workflow_run_completed_failure",
            "workflow:failed",
            with(
                json!({"status": "completed", "conclusion": "failure", "updatedAt": "2026-11-21T08:24:40.000Z",
                "attempt": 2, "startedAt": "2026-11-21T08:20:05.000Z"}),
            ),
        ),
        (
            "workflow_run_completed_cancelled",
            "workflow:completed",
            with(
                json!({"status": "completed", "conclusion": "cancelled", "updatedAt": "2026-11-21T08:01:00.000Z",
                "event": "pull_request", "branch": "topic/request-queue"}),
            ),
        ),
    ] {
        let interpretation = interpretation(name);
        assert_eq!(interpretation.outcome, Outcome::Handled);
        assert_eq!(published(&interpretation), [(kind, "acme/api".to_owned(), data.clone())], "{name}");
        let [StateChange::Run { repo, run }] = &interpretation.changes[..] else {
            panic!("{:?}", interpretation.changes)
        };
        assert_eq!((repo, interpretation.repo.as_ref()), (&api(), Some(&api())));
        assert_eq!(run.run_number, Some(412));
        assert_eq!(data["status"], json!(run.status));
        assert_eq!(data["attempt"], json!(run.attempt));
        assert_eq!(data.get("conclusion").and_then(Value::as_str), run.conclusion.as_deref());
    }
}

#[test]
fn how_a_run_ended_decides_between_completed_and_failed() {
    for (conclusion, kind) in [
        (json!("failure"), "workflow:failed"),
        (json!("timed_out"), "workflow:failed"),
        (json!("startup_failure"), "workflow:failed"),
        (json!("success"), "workflow:completed"),
        (json!("neutral"), "workflow:completed"),
        (json!("skipped"), "workflow:completed"),
        (json!("stale"), "workflow:completed"),
        (json!("action_required"), "workflow:completed"),
        (json!("never updated before"), "workflow:completed"),
        (Value::Null, "workflow:completed"),
    ] {
        let (event, mut body) = value("workflow_run_completed_success");
        body["workflow_run"]["conclusion"] = conclusion;
        let interpretation = interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap();
        assert_eq!(interpretation.events[0].kind, kind, "{}", body["workflow_run"]["conclusion"]);
    }
}

#[test]
fn a_job_tells_its_steps() {
    let interpretation = interpretation("workflow_job_completed");
    let steps = json!([
        {"number": 1, "name": "Set up job", "status": "completed", "conclusion": "success",
            "startedAt": "2026-11-21T07:58:47.000Z", "completedAt": "2026-11-21T07:58:49.000Z"},
        {"number": 2, "name": "Check out", "status": "completed", "conclusion": "success",
            "startedAt": "2026-11-21T07:58:49.000Z", "completedAt": "2026-11-21T07:58:52.000Z"},
        {"number": 3, "name": "Test", "status": "completed", "conclusion": "failure",
            "startedAt": "2026-11-21T07:58:52.000Z", "completedAt": "2026-11-21T08:02:55.000Z"},
        {"number": 4, "name": "Upload coverage", "status": "completed", "conclusion": "skipped",
            "startedAt": "2026-11-21T08:02:55.000Z", "completedAt": "2026-11-21T08:02:55.000Z"},
        {"number": 8, "name": "Complete job", "status": "completed", "conclusion": "success",
            "startedAt": "2026-11-21T08:02:55.000Z", "completedAt": "2026-11-21T08:02:58.000Z"},
    ]);
    let data = json!({
        "runId": 11_987_654_321_i64, "workflowName": "CI", "branch": "main",
        "status": "completed", "conclusion": "failure",
        "commitSha": "7f1c3a90be52d46f8a0e9b7c15d2e4f60318a9cd", "attempt": 1,
        "url": "https://github.com/acme/api/actions/runs/11987654321/job/33418820157",
        "startedAt": "2026-11-21T07:58:47.000Z", "completedAt": "2026-11-21T08:02:58.000Z",
        "jobId": 33_418_820_157_i64, "name": "test (ubuntu-latest)", "steps": steps,
    });
    assert_eq!(published(&interpretation), [("workflow:job", "acme/api".to_owned(), data)]);
    let [StateChange::Job { repo, job }] = &interpretation.changes[..] else {
        panic!("{:?}", interpretation.changes)
    };
    assert_eq!(repo, &api());
    assert_eq!(serde_json::from_str::<Value>(&job.steps).unwrap(), steps);
}

#[test]
fn every_action_of_a_job_is_told_and_what_is_null_is_left_out() {
    for name in ["workflow_job_queued", "workflow_job_in_progress"] {
        let interpretation = interpretation(name);
        let (kind, _, data) = published(&interpretation).remove(0);
        assert_eq!(kind, "workflow:job");
        assert!(data.get("conclusion").is_none() && data.get("completedAt").is_none());
        assert!(!interpretation.events[0].data.get().contains("null"));
    }
    let (event, mut body) = value("workflow_job_queued");
    body["action"] = json!("an action of the future");
    let interpretation = interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap();
    assert_eq!((interpretation.outcome, interpretation.events[0].kind), (Outcome::Handled, "workflow:job"));
}

#[test]
fn an_installation_adds_and_removes_repositories() {
    let data = |id: i64, name: &str, private: bool, action: &str| {
        let owner = "acme";
        json!({"githubId": id, "owner": owner, "name": name, "private": private, "action": action})
    };
    let both =
        |action| vec![data(724_712_045, "api", true, action), data(724_712_999, "web.site", false, action)];
    let docs = |action| vec![data(731_004_466, "docs", false, action)];
    for (name, kind, all) in [
        ("installation_created", "repo:added", both("created")),
        ("installation_deleted", "repo:removed", both("deleted")),
        ("installation_repositories_added", "repo:added", docs("added")),
        ("installation_repositories_removed", "repo:removed", docs("removed")),
    ] {
        let interpretation = interpretation(name);
        let published = published(&interpretation);
        assert!(published.iter().all(|event| event.0 == kind), "{name}");
        assert_eq!(published.into_iter().map(|event| event.2).collect::<Vec<_>>(), all, "{name}");
        for (change, data) in interpretation.changes.iter().zip(&all) {
            match change {
                StateChange::RepoUpdated(repo) => {
                    assert_eq!((kind, json!(repo.github_id)), ("repo:added", data["githubId"].clone()));
                    assert_eq!((repo.installation_id, &repo.default_branch), (Some(48_120_377), &None));
                }
                StateChange::RepoRemoved { github_id } => {
                    assert_eq!((kind, json!(github_id)), ("repo:removed", data["githubId"].clone()));
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!((interpretation.changes.len(), &interpretation.repo), (all.len(), &None));
    }
}

#[test]
fn a_suspended_installation_delivers_no_more() {
    let off = |github_id| StateChange::WebhookEnabled { github_id, enabled: false };
    let interpretation = interpretation("installation_suspend");
    assert_eq!(interpretation.changes, [off(724_712_045), off(724_712_999)]);
    let told: Vec<_> = published(&interpretation).into_iter().map(|event| (event.0, event.1)).collect();
    let name = |name: &str| ("repo:updated", name.to_owned());
    assert_eq!(told, [name("acme/api"), name("acme/web.site")], "who follows them is told why nothing comes");
    assert_eq!(interpretation.outcome, Outcome::Handled);
}

#[test]
fn a_repository_comes_changes_and_goes() {
    for (name, kind, repo, id) in [
        ("repository_created", "repo:added", "billing", 740_000_123),
        ("repository_deleted", "repo:removed", "billing", 740_000_123),
        ("repository_privatized", "repo:updated", "api", 724_712_045),
    ] {
        let interpretation = interpretation(name);
        let action = interpretation.action.clone().unwrap();
        let data = json!({"githubId": id, "owner": "acme", "name": repo, "private": true, "defaultBranch": "main",
            "action": action});
        assert_eq!(published(&interpretation), [(kind, format!("acme/{repo}"), data)]);
        let expected = match kind {
            "repo:removed" => StateChange::RepoRemoved { github_id: id },
            _ => StateChange::RepoUpdated(RepoUpdate { github_id: id, name: repo.to_owned(), ..api() }),
        };
        assert_eq!(interpretation.changes, [expected]);
    }
}

#[test]
fn what_has_no_events_yet_still_shows_the_repository() {
    for (name, action) in
        [("push", None), ("pull_request_opened", Some("opened")), ("check_run_completed", Some("completed"))]
    {
        let interpretation = interpretation(name);
        assert_eq!(
            (interpretation.outcome, interpretation.action.as_deref()),
            (Outcome::Handled, action),
            "{name}"
        );
        assert_eq!(
            (interpretation.changes, interpretation.events.len()),
            (vec![StateChange::RepoUpdated(api())], 0)
        );
    }
}

#[test]
fn a_ping_shows_its_repository_if_it_has_one() {
    let repo = RepoUpdate { installation_id: None, ..api() };
    let enabled = StateChange::WebhookEnabled { github_id: repo.github_id, enabled: true };
    assert_eq!(interpretation("ping").changes, [StateChange::RepoUpdated(repo), enabled]);
    let organization = interpretation("ping_organization");
    assert_eq!((organization.outcome, organization.changes.len()), (Outcome::Handled, 0));
}

#[test]
fn a_kind_without_meaning_is_ignored_and_shows_its_repository() {
    let star = interpretation("star_created");
    assert!(matches!(star.outcome, Outcome::Ignored(_)));
    assert_eq!((star.action.as_deref(), star.events.len()), (Some("created"), 0));
    assert!(matches!(&star.changes[..], [StateChange::RepoUpdated(repo)] if repo.name == "web.site"));
    for odd in [
        "null",
        "[]",
        "3",
        "{}",
        r#"{"action":7}"#,
        r#"{"repository":{"id":-1}}"#,
        r#"{"repository":{"id":1,"name":"a b","owner":{"login":"x"}}}"#,
    ] {
        let interpretation = interpret("star", odd.as_bytes(), &RepoMap::default()).unwrap();
        assert!(
            matches!(interpretation.outcome, Outcome::Ignored(_)) && interpretation.changes.is_empty(),
            "{odd}"
        );
    }
}

#[test]
fn an_unknown_action_changes_nothing_but_what_is_seen() {
    for name in ["workflow_run_requested", "repository_created"] {
        let (event, mut body) = value(name);
        body["action"] = json!("an action of the future");
        body["workflow_run"] = json!("whatever it will be");
        let interpretation = interpret(event, body.to_string().as_bytes(), &RepoMap::default()).unwrap();
        assert_eq!(
            (interpretation.outcome, interpretation.events.len()),
            (Outcome::Ignored("unknown action"), 0)
        );
        assert!(matches!(&interpretation.changes[..], [StateChange::RepoUpdated(_)]));
    }
}

#[test]
fn the_map_decides_what_counts_and_how_it_is_called() {
    let map: RepoMap = serde_json::from_str(r#"{"acme/api":"octo-demo/core","acme/billing":false}"#).unwrap();
    let interpret = |name: &str| {
        let (event, text) = fixture(name);
        super::interpret(event, text.as_bytes(), &map).unwrap()
    };
    let run = interpret("workflow_run_requested");
    assert_eq!(published(&run)[0].1, "octo-demo/core");
    assert_eq!(
        run.repo.map(|repo| (repo.owner, repo.name)),
        Some(("octo-demo".to_owned(), "core".to_owned()))
    );
    let created = interpret("installation_created");
    assert_eq!((created.outcome, created.events.len(), created.changes.len()), (Outcome::Handled, 1, 1));
    for (name, reason) in [
        ("star_created", "not in the repository map"),
        ("repository_created", "ignored by the repository map"),
        ("installation_repositories_added", "not in the repository map"),
    ] {
        let interpretation = interpret(name);
        assert_eq!(interpretation.outcome, Outcome::Ignored(reason), "{name}");
        assert!(
            interpretation.changes.is_empty()
                && interpretation.events.is_empty()
                && interpretation.repo.is_none()
        );
    }
}
