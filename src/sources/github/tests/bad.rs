//! Payloads that miss what their kind needs are refused by field, and what is dirty is cleaned.

use serde_json::{Value, json};

use super::super::{PayloadError, RepoMap, interpret};
use super::{published, value};

/// The fixture with the value at `pointer` replaced, or taken out.
fn changed(name: &str, pointer: &str, with: Option<Value>) -> Result<super::Interpretation, PayloadError> {
    let (event, mut body) = value(name);
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match with {
        Some(with) => drop(parent.insert(field.to_owned(), with)),
        None => drop(parent.remove(field)),
    }
    interpret(event, body.to_string().as_bytes(), &RepoMap::default())
}

#[test]
fn what_is_wrong_is_said_by_field_and_without_values() {
    const ID: &str = "is not a whole number above 0";
    const TIME: &str = "is not a time such as 2026-11-21T08:00:00Z";
    let secret = || json!("s3cret, expected `nothing` at line 7");
    for (name, pointer, with, field, problem) in [
        ("workflow_run_requested", "/workflow_run", None, "workflow_run", "is missing"),
        ("workflow_run_requested", "/workflow_run", Some(secret()), "workflow_run", "is not an object"),
        ("workflow_run_requested", "/workflow_run/id", None, "workflow_run.id", "is missing"),
        ("workflow_run_requested", "/workflow_run/id", Some(secret()), "workflow_run.id", ID),
        ("workflow_run_requested", "/workflow_run/id", Some(json!(-4)), "workflow_run.id", ID),
        ("workflow_run_requested", "/workflow_run/id", Some(json!(0)), "workflow_run.id", ID),
        ("workflow_run_requested", "/workflow_run/id", Some(json!(u64::MAX)), "workflow_run.id", ID),
        ("workflow_run_requested", "/workflow_run/id", Some(json!(1.5)), "workflow_run.id", ID),
        (
            "workflow_run_requested",
            "/workflow_run/workflow_id",
            None,
            "workflow_run.workflow_id",
            "is missing",
        ),
        ("workflow_run_requested", "/workflow_run/status", None, "workflow_run.status", "is missing"),
        (
            "workflow_run_requested",
            "/workflow_run/status",
            Some(json!("\u{1b}")),
            "workflow_run.status",
            "is empty",
        ),
        (
            "workflow_run_requested",
            "/workflow_run/head_branch",
            Some(json!(3)),
            "workflow_run.head_branch",
            "is not a string",
        ),
        (
            "workflow_run_requested",
            "/workflow_run/updated_at",
            Some(secret()),
            "workflow_run.updated_at",
            TIME,
        ),
        (
            "workflow_run_requested",
            "/workflow_run/run_attempt",
            Some(json!(1_u64 << 40)),
            "workflow_run.run_attempt",
            "is too large",
        ),
        ("workflow_run_requested", "/action", None, "action", "is missing"),
        ("workflow_run_requested", "/action", Some(json!(1)), "action", "is not a string"),
        ("workflow_run_requested", "/repository", None, "repository", "is missing"),
        ("workflow_run_requested", "/repository", Some(Value::Null), "repository", "is missing"),
        ("workflow_run_requested", "/repository/id", None, "repository.id", "is missing"),
        (
            "workflow_run_requested",
            "/repository/name",
            Some(secret()),
            "repository.name",
            "is not a GitHub repository name",
        ),
        (
            "workflow_run_requested",
            "/repository/name",
            Some(json!("..")),
            "repository.name",
            "is not a GitHub repository name",
        ),
        (
            "workflow_run_requested",
            "/repository/private",
            Some(secret()),
            "repository.private",
            "is not true or false",
        ),
        (
            "push",
            "/repository/owner/login",
            Some(secret()),
            "repository.owner.login",
            "is not a GitHub account name",
        ),
        ("workflow_job_completed", "/workflow_job/run_id", None, "workflow_job.run_id", "is missing"),
        (
            "workflow_job_completed",
            "/workflow_job/steps",
            Some(json!({})),
            "workflow_job.steps",
            "is not a list",
        ),
        (
            "workflow_job_completed",
            "/workflow_job/steps",
            Some(json!([{}, {"number": "1"}])),
            "workflow_job.steps[1].number",
            ID,
        ),
        ("installation_created", "/installation", None, "installation", "is missing"),
        ("installation_created", "/installation/id", Some(secret()), "installation.id", ID),
        (
            "installation_created",
            "/repositories",
            Some(json!([{"id": 1}])),
            "repositories[0].name",
            "is missing",
        ),
        (
            "installation_created",
            "/repositories",
            Some(json!([{"id": 1, "name": "a"}])),
            "repositories[0].owner.login",
            "is missing",
        ),
        (
            "installation_created",
            "/repositories",
            Some(json!([{"id": 1, "name": "a", "full_name": "a b/a"}])),
            "repositories[0].owner.login",
            "is not a GitHub account name",
        ),
        ("ping", "/repository/id", None, "repository.id", "is missing"),
    ] {
        let error = changed(name, pointer, with).unwrap_err();
        assert_eq!((&*error.field, &*error.problem), (field, problem), "{name} {pointer}");
        assert_eq!(error.to_string(), format!("{field} {problem}"));
    }
}

#[test]
fn a_payload_that_is_no_object_is_refused() {
    for (body, problem) in [
        (&b"[\"requested\", {}]"[..], "is not an object"),
        (b"\"text\"", "is not an object"),
        (b"", "is not an object"),
        (b"{", "cannot be read"),
        (b"\xff", "is not UTF-8"),
    ] {
        let error = interpret("workflow_run", body, &RepoMap::default()).unwrap_err();
        assert_eq!((&*error.field, &*error.problem), ("payload", problem));
    }
    let twice = r#"{"action":"opened","action":"closed"}"#;
    let error = interpret("pull_request", twice.as_bytes(), &RepoMap::default()).unwrap_err();
    assert_eq!(error.to_string(), "action is there twice");
}

#[test]
fn what_github_may_leave_out_is_left_out() {
    let bare = json!({
        "action": "completed",
        "repository": {"id": 1, "name": "api", "full_name": "acme/api"},
        "workflow_run": {"id": 2, "workflow_id": 3, "status": "completed"},
    });
    let interpretation = interpret("workflow_run", bare.to_string().as_bytes(), &RepoMap::default()).unwrap();
    let data = json!({"runId": 2, "workflowId": 3, "status": "completed", "attempt": 1});
    assert_eq!(published(&interpretation), [("workflow:completed", "acme/api".to_owned(), data)]);

    let bare = json!({
        "action": "queued",
        "repository": {"id": 1, "name": "api", "owner": {"name": "acme"}},
        "workflow_job": {"id": 2, "run_id": 3, "name": "test", "status": "queued", "steps": [{}]},
    });
    let interpretation = interpret("workflow_job", bare.to_string().as_bytes(), &RepoMap::default()).unwrap();
    let data =
        json!({"runId": 3, "jobId": 2, "name": "test", "status": "queued", "attempt": 1, "steps": [{}]});
    assert_eq!(published(&interpretation), [("workflow:job", "acme/api".to_owned(), data)]);
}

#[test]
fn the_workflow_object_names_a_run_without_a_name() {
    let interpretation = changed("workflow_run_requested", "/workflow_run/name", Some(Value::Null)).unwrap();
    assert_eq!(published(&interpretation)[0].2["workflowName"], "CI");
}

#[test]
fn what_is_dirty_is_cleaned() {
    let field = |name, pointer: &str, with, key: &str| {
        published(&changed(name, pointer, Some(with)).unwrap())[0].2.get(key).cloned()
    };
    let run = "workflow_run_requested";
    assert_eq!(field(run, "/workflow_run/name", json!("C\u{0}I\n\u{9b}"), "workflowName"), Some(json!("CI")));
    assert_eq!(
        field(run, "/workflow_run/head_branch", json!("b".repeat(999)), "branch"),
        Some(json!("b".repeat(255)))
    );
    assert_eq!(field(run, "/workflow_run/html_url", json!("javascript:alert(1)"), "url"), None);
    assert_eq!(field(run, "/workflow_run/head_sha", json!("\r\n"), "commitSha"), None);
    let job = "workflow_job_completed";
    let steps = json!([{"name": "a\tb", "number": 1}]);
    assert_eq!(field(job, "/workflow_job/steps", steps, "steps"), Some(json!([{"name": "ab", "number": 1}])));
    let many = field(job, "/workflow_job/steps", json!(vec![json!({}); 3000]), "steps").unwrap();
    assert_eq!(many.as_array().unwrap().len(), 1000);
}
