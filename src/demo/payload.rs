//! The demo's payloads, one function for each kind of event, with the fields of GitHub's own in
//! GitHub's spelling. What they are composed of is in `objects`.

use serde_json::{Value, json};

use super::catalog::{APP, INSTALLATION, OWNER, OWNER_ID, PEOPLE, REPOS, RepoSpec};
use super::objects::{
    API, WEB, account, author_of, avatar, email, head_commit, node, person, repository, time,
};
use super::{Job, Run, Step};
use crate::domain::event::Time;

pub fn ping(now: Time) -> Value {
    json!({
        "zen": "Keep it logically awesome.",
        "hook_id": 418_220_517,
        "hook": {
            "type": "App", "id": 418_220_517, "name": "web", "active": true, "app_id": APP,
            "events": ["check_run", "pull_request", "push", "repository", "workflow_job", "workflow_run"],
            "config": { "content_type": "json", "insecure_ssl": "0", "secret": "********" },
            "created_at": time(now), "updated_at": time(now), "deliveries_url": format!("{API}/app/hook/deliveries"),
        },
    })
}

pub fn installation_created(now: Time) -> Value {
    let brief = |repo: &RepoSpec| {
        json!({
            "id": repo.id, "node_id": node("R", repo.id), "name": repo.name,
            "full_name": format!("{OWNER}/{}", repo.name), "private": repo.private,
        })
    };
    json!({
        "action": "created",
        "installation": {
            "id": INSTALLATION, "account": account(), "app_id": APP, "app_slug": "campanile-demo",
            "target_id": OWNER_ID, "target_type": "Organization", "repository_selection": "selected",
            "permissions": {
                "actions": "read", "checks": "read", "contents": "read", "metadata": "read", "pull_requests": "read",
            },
            "events": ["check_run", "pull_request", "push", "repository", "workflow_job", "workflow_run"],
            "access_tokens_url": format!("{API}/app/installations/{INSTALLATION}/access_tokens"),
            "repositories_url": format!("{API}/installation/repositories"),
            "html_url": format!("{WEB}/organizations/{OWNER}/settings/installations/{INSTALLATION}"),
            "created_at": time(now), "updated_at": time(now), "suspended_by": null, "suspended_at": null,
        },
        "repositories": REPOS.iter().map(brief).collect::<Vec<_>>(),
        "requester": null,
        "sender": person(0),
    })
}

pub fn push(repo: &RepoSpec, run: &Run, now: Time) -> Value {
    let commit = head_commit(run, now);
    let pusher = PEOPLE[author_of(run)].0;
    let body = json!({
        "ref": format!("refs/heads/{}", run.branch), "before": run.before, "after": run.sha,
        "created": false, "deleted": false, "forced": false, "base_ref": null,
        "compare": format!("{WEB}/{OWNER}/{}/compare/{:.12}...{:.12}", repo.name, run.before, run.sha),
        "pusher": { "name": pusher, "email": email(pusher) },
        "commits": [commit], "head_commit": commit,
    });
    with_context(body, repo, run, now)
}

pub fn pull_request(repo: &RepoSpec, run: &Run, now: Time) -> Value {
    let (id, number) = run.pull.unwrap_or_default();
    let page = format!("{WEB}/{OWNER}/{}/pull/{number}", repo.name);
    let side = |branch: &str, sha: &str| {
        json!({
            "label": format!("{OWNER}:{branch}"), "ref": branch, "sha": sha,
            "user": account(), "repo": repository(repo, now),
        })
    };
    let body = json!({
        "action": "opened",
        "number": number,
        "pull_request": {
            "id": id, "number": number, "node_id": node("PR", id), "state": "open", "locked": false, "draft": false,
            "title": run.title, "body": null, "user": person(author_of(run)), "author_association": "MEMBER",
            "url": format!("{API}/repos/{OWNER}/{}/pulls/{number}", repo.name), "html_url": page,
            "diff_url": format!("{page}.diff"), "patch_url": format!("{page}.patch"),
            "head": side(&run.branch, &run.sha), "base": side("main", &run.before),
            "created_at": time(now), "updated_at": time(now), "closed_at": null, "merged_at": null, "merged": false,
            "commits": 1, "additions": 24, "deletions": 7, "changed_files": 3,
        },
    });
    with_context(body, repo, run, now)
}

pub fn workflow_run(repo: &RepoSpec, run: &Run, step: Step, now: Time) -> Value {
    let (action, status, conclusion) = match step {
        Step::Requested => ("requested", "queued", None),
        Step::Completed => ("completed", "completed", Some(run.conclusion)),
        _ => ("in_progress", "in_progress", None),
    };
    let (id, workflow) = (run.id, run.workflow);
    let api = format!("{API}/repos/{OWNER}/{}", repo.name);
    let page = format!("{WEB}/{OWNER}/{}", repo.name);
    let pulls: Vec<Value> =
        run.pull.iter().map(|(id, number)| json!({ "id": id, "number": number })).collect();
    let body = json!({
        "action": action,
        "workflow_run": {
            "id": id, "name": workflow.name, "node_id": node("WFR", id),
            "head_branch": run.branch, "head_sha": run.sha,
            "path": workflow.path, "display_title": run.title, "run_number": run.number, "event": run.event,
            "status": status, "conclusion": conclusion, "workflow_id": workflow.id,
            "check_suite_id": id + 11, "check_suite_node_id": node("CS", id + 11),
            "url": format!("{api}/actions/runs/{id}"), "html_url": format!("{page}/actions/runs/{id}"),
            "pull_requests": pulls, "created_at": time(run.created_at), "updated_at": time(now),
            "actor": person(author_of(run)), "triggering_actor": person(author_of(run)),
            "run_attempt": run.attempt, "referenced_workflows": [], "run_started_at": time(run.started_at),
            "jobs_url": format!("{api}/actions/runs/{id}/jobs"), "logs_url": format!("{api}/actions/runs/{id}/logs"),
            "check_suite_url": format!("{api}/check-suites/{}", id + 11),
            "artifacts_url": format!("{api}/actions/runs/{id}/artifacts"),
            "cancel_url": format!("{api}/actions/runs/{id}/cancel"),
            "rerun_url": format!("{api}/actions/runs/{id}/rerun"),
            "workflow_url": format!("{api}/actions/workflows/{}", workflow.id), "previous_attempt_url": null,
            "head_commit": head_commit(run, run.created_at),
            "repository": repository(repo, now), "head_repository": repository(repo, now),
        },
        "workflow": {
            "id": workflow.id, "node_id": node("W", workflow.id), "name": workflow.name, "path": workflow.path,
            "state": "active", "url": format!("{api}/actions/workflows/{}", workflow.id),
            "html_url": format!("{page}/blob/main/{}", workflow.path),
            "badge_url": format!("{page}/workflows/{}/badge.svg", workflow.name.replace(' ', "%20")),
            "created_at": "2026-02-03T09:12:44Z", "updated_at": "2026-02-03T09:12:44Z",
        },
    });
    with_context(body, repo, run, now)
}

pub fn workflow_job(repo: &RepoSpec, run: &Run, job: &Job, step: Step, now: Time) -> Value {
    let (status, conclusion, completed_at) = match step {
        Step::Queued(_) => ("queued", None, None),
        Step::Started(_) => ("in_progress", None, None),
        _ => ("completed", Some(job.conclusion), Some(time(now))),
    };
    let api = format!("{API}/repos/{OWNER}/{}", repo.name);
    let body = json!({
        "action": status,
        "workflow_job": {
            "id": job.id, "run_id": run.id, "workflow_name": run.workflow.name, "head_branch": run.branch,
            "run_url": format!("{api}/actions/runs/{}", run.id), "run_attempt": run.attempt,
            "node_id": node("CR", job.id), "head_sha": run.sha, "url": format!("{api}/actions/jobs/{}", job.id),
            "html_url": format!("{WEB}/{OWNER}/{}/actions/runs/{}/job/{}", repo.name, run.id, job.id),
            "status": status, "conclusion": conclusion, "created_at": time(job.created_at),
            "started_at": time(job.started_at), "completed_at": completed_at, "name": job.name,
            "steps": steps(job, step, now), "check_run_url": format!("{api}/check-runs/{}", job.id),
            "labels": ["ubuntu-latest"], "runner_id": 14, "runner_name": "GitHub Actions 14",
            "runner_group_id": 2, "runner_group_name": "GitHub Actions",
        },
    });
    with_context(body, repo, run, now)
}

/// None while queued, GitHub's own first one when started, and all of them at the end. In a job
/// that did not succeed the last of its own steps is the one that went wrong.
fn steps(job: &Job, step: Step, now: Time) -> Vec<Value> {
    let line = |number: usize, name: &str, conclusion: Option<&str>, from: Time, to: Option<Time>| {
        let status = if conclusion.is_some() { "completed" } else { "in_progress" };
        json!({
            "name": name, "status": status, "conclusion": conclusion, "number": number,
            "started_at": time(from), "completed_at": to.map(time),
        })
    };
    match step {
        Step::Queued(_) => Vec::new(),
        Step::Started(_) => vec![line(1, "Set up job", None, job.started_at, None)],
        _ => {
            let names =
                std::iter::once("Set up job").chain(job.steps.iter().copied()).chain(["Complete job"]);
            let count = job.steps.len() as i32 + 2;
            let at = |n: usize| job.started_at + (now - job.started_at) / count * n as i32;
            let end = |n: usize| if n == job.steps.len() { job.conclusion } else { "success" };
            names
                .enumerate()
                .map(|(n, name)| line(n + 1, name, Some(end(n)), at(n), Some(at(n + 1))))
                .collect()
        }
    }
}

/// Adds what every delivery about a repository carries.
fn with_context(mut body: Value, repo: &RepoSpec, run: &Run, now: Time) -> Value {
    body["repository"] = repository(repo, now);
    body["organization"] = json!({
        "login": OWNER, "id": OWNER_ID, "node_id": node("O", OWNER_ID), "url": format!("{API}/orgs/{OWNER}"),
        "repos_url": format!("{API}/orgs/{OWNER}/repos"), "avatar_url": avatar(OWNER_ID), "description": null,
    });
    body["sender"] = person(author_of(run));
    body["installation"] = json!({ "id": INSTALLATION, "node_id": node("I", INSTALLATION) });
    body
}
