//! `workflow_run` and `workflow_job`: what a run or a job is now, as a row and as an event. The
//! event says exactly what the row says; what GitHub left out, or gave as null, is left out.

use serde::Serialize;
use serde_json::value::RawValue;

use super::interpretation::{event, to_json};
use super::payload::{self, Id, JobPayload, Payload, PayloadError, RunPayload, Step, Timestamp, Workflow};
use super::sanitize;
use crate::domain::event::{Time, rfc3339};
use crate::domain::workflow::{EventDraft, RepoUpdate, StateChange, WorkflowJob, WorkflowRun};

/// The longest list of steps; GitHub's own jobs stay far below.
const MAX_STEPS: usize = 1000;

/// The change of one row, and the event for it.
pub type RowChange = (StateChange, Option<EventDraft>);

/// A `workflow_run` delivery; `None` for an action that is not known.
pub fn run(action: &str, repo: &RepoUpdate, payload: &Payload) -> Result<Option<RowChange>, PayloadError> {
    if !matches!(action, "requested" | "in_progress" | "completed") {
        return Ok(None);
    }
    let run = read_run(payload)?;
    let kind = match (action, run.conclusion.as_deref()) {
        ("requested", _) => "workflow:started",
        ("in_progress", _) => "workflow:progress",
        (_, Some("failure" | "timed_out" | "startup_failure")) => "workflow:failed",
        _ => "workflow:completed",
    };
    let event = event(kind, repo, to_json(&RunData::of(&run))?);
    Ok(Some((StateChange::Run { repo: repo.clone(), run }, Some(event))))
}

/// A `workflow_job` delivery: every action reports a new state of the job.
pub fn job(repo: &RepoUpdate, payload: &Payload) -> Result<RowChange, PayloadError> {
    let (job, steps) = read_job(payload)?;
    let event = event("workflow:job", repo, to_json(&JobData::of(&job, &steps))?);
    Ok((StateChange::Job { repo: repo.clone(), job }, Some(event)))
}

fn read_run(payload: &Payload) -> Result<WorkflowRun, PayloadError> {
    const PART: &str = "workflow_run";
    let run: RunPayload = payload::required(payload.workflow_run, PART)?;
    let workflow_name = match sanitize::optional(run.name.as_deref(), sanitize::NAME) {
        Some(name) => Some(name),
        None => {
            let workflow: Option<Workflow> = payload::optional(payload.workflow, "workflow")?;
            sanitize::optional(workflow.and_then(|workflow| workflow.name).as_deref(), sanitize::NAME)
        }
    };
    Ok(WorkflowRun {
        run_id: run.id.0,
        workflow_id: run.workflow_id.0,
        workflow_name,
        run_number: run.run_number.map(|number| number.0),
        status: word(&run.status, PART)?,
        conclusion: sanitize::optional(run.conclusion.as_deref(), sanitize::WORD),
        event: sanitize::optional(run.event.as_deref(), sanitize::WORD),
        branch: sanitize::optional(run.head_branch.as_deref(), sanitize::NAME),
        commit_sha: sanitize::optional(run.head_sha.as_deref(), sanitize::WORD),
        attempt: attempt(run.run_attempt, PART)?,
        url: sanitize::link(run.html_url.as_deref()),
        created_at: run.created_at.map(|at| at.0),
        started_at: run.run_started_at.or(run.created_at).map(|at| at.0),
        updated_at: run.updated_at.map(|at| at.0),
    })
}

fn read_job(payload: &Payload) -> Result<(WorkflowJob, Box<RawValue>), PayloadError> {
    const PART: &str = "workflow_job";
    let job: JobPayload = payload::required(payload.workflow_job, PART)?;
    let steps: Vec<StepData> =
        job.steps.unwrap_or_default().into_iter().take(MAX_STEPS).map(StepData::from).collect();
    let steps = to_json(&steps)?;
    let job = WorkflowJob {
        job_id: job.id.0,
        run_id: job.run_id.0,
        attempt: attempt(job.run_attempt, PART)?,
        name: sanitize::text(&job.name, sanitize::NAME),
        workflow_name: sanitize::optional(job.workflow_name.as_deref(), sanitize::NAME),
        status: word(&job.status, PART)?,
        conclusion: sanitize::optional(job.conclusion.as_deref(), sanitize::WORD),
        branch: sanitize::optional(job.head_branch.as_deref(), sanitize::NAME),
        commit_sha: sanitize::optional(job.head_sha.as_deref(), sanitize::WORD),
        url: sanitize::link(job.html_url.as_deref()),
        steps: steps.get().to_owned(),
        started_at: job.started_at.map(|at| at.0),
        completed_at: job.completed_at.map(|at| at.0),
    };
    Ok((job, steps))
}

/// A status, which rows are compared by.
fn word(status: &str, part: &str) -> Result<String, PayloadError> {
    sanitize::optional(Some(status), sanitize::WORD)
        .ok_or_else(|| PayloadError::new(&format!("{part}.status"), "is empty"))
}

/// Older servers do not send a number for the first attempt.
fn attempt(number: Option<Id>, part: &str) -> Result<i32, PayloadError> {
    i32::try_from(number.map_or(1, |number| number.0))
        .map_err(|_| PayloadError::new(&format!("{part}.run_attempt"), "is too large"))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunData<'a> {
    run_id: i64,
    workflow_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_name: Option<&'a str>,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conclusion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_sha: Option<&'a str>,
    attempt: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
}

impl<'a> RunData<'a> {
    fn of(run: &'a WorkflowRun) -> Self {
        Self {
            run_id: run.run_id,
            workflow_id: run.workflow_id,
            workflow_name: run.workflow_name.as_deref(),
            status: &run.status,
            conclusion: run.conclusion.as_deref(),
            event: run.event.as_deref(),
            branch: run.branch.as_deref(),
            commit_sha: run.commit_sha.as_deref(),
            attempt: run.attempt,
            url: run.url.as_deref(),
            started_at: print(run.started_at),
            updated_at: print(run.updated_at),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobData<'a> {
    run_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_name: Option<&'a str>,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conclusion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branch: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit_sha: Option<&'a str>,
    attempt: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
    job_id: i64,
    name: &'a str,
    steps: &'a RawValue,
}

impl<'a> JobData<'a> {
    fn of(job: &'a WorkflowJob, steps: &'a RawValue) -> Self {
        Self {
            run_id: job.run_id,
            workflow_name: job.workflow_name.as_deref(),
            status: &job.status,
            conclusion: job.conclusion.as_deref(),
            branch: job.branch.as_deref(),
            commit_sha: job.commit_sha.as_deref(),
            attempt: job.attempt,
            url: job.url.as_deref(),
            started_at: print(job.started_at),
            completed_at: print(job.completed_at),
            job_id: job.job_id,
            name: &job.name,
            steps,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StepData {
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conclusion: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<String>,
}

impl From<Step> for StepData {
    fn from(step: Step) -> Self {
        let at = |at: Option<Timestamp>| print(at.map(|at| at.0));
        Self {
            number: step.number.map(|number| number.0),
            name: sanitize::optional(step.name.as_deref(), sanitize::NAME),
            status: sanitize::optional(step.status.as_deref(), sanitize::WORD),
            conclusion: sanitize::optional(step.conclusion.as_deref(), sanitize::WORD),
            started_at: at(step.started_at),
            completed_at: at(step.completed_at),
        }
    }
}

fn print(at: Option<Time>) -> Option<String> {
    at.map(rfc3339)
}
