//! `workflow_run` and `workflow_job`: what a run or a job is now, as a row and as an event. The
//! event says exactly what the row says; what GitHub left out, or gave as null, is left out.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::interpretation::{event, to_json};
use super::payload::{self, Id, JobPayload, Payload, PayloadError, RunPayload, Step, Workflow};
use super::sanitize;
use crate::domain::event::rfc3339;
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
    let event = event(kind, repo, to_json(&RunData(&run))?);
    Ok(Some((StateChange::Run { repo: repo.clone(), run }, Some(event))))
}

/// A `workflow_job` delivery: every action reports a new state of the job.
pub fn job(repo: &RepoUpdate, payload: &Payload) -> Result<RowChange, PayloadError> {
    let (job, steps) = read_job(payload)?;
    let event = event("workflow:job", repo, to_json(&JobData(&job, &steps))?);
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
        job.steps.unwrap_or_default().into_iter().take(MAX_STEPS).map(StepData).collect();
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

/// The fields of an event's data; absent ones are left out.
struct Fields<M>(M);

impl<M: SerializeMap> Fields<M> {
    fn put(&mut self, name: &'static str, value: Option<impl Serialize>) -> Result<(), M::Error> {
        value.map_or(Ok(()), |value| self.0.serialize_entry(name, &value))
    }
}

struct RunData<'a>(&'a WorkflowRun);

impl Serialize for RunData<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (run, mut data) = (self.0, Fields(to.serialize_map(None)?));
        data.put("runId", Some(run.run_id))?;
        data.put("workflowId", Some(run.workflow_id))?;
        data.put("workflowName", run.workflow_name.as_ref())?;
        data.put("status", Some(&run.status))?;
        data.put("conclusion", run.conclusion.as_ref())?;
        data.put("event", run.event.as_ref())?;
        data.put("branch", run.branch.as_ref())?;
        data.put("commitSha", run.commit_sha.as_ref())?;
        data.put("attempt", Some(run.attempt))?;
        data.put("url", run.url.as_ref())?;
        data.put("startedAt", run.started_at.map(rfc3339))?;
        data.put("updatedAt", run.updated_at.map(rfc3339))?;
        data.0.end()
    }
}

struct JobData<'a>(&'a WorkflowJob, &'a RawValue);

impl Serialize for JobData<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (Self(job, steps), mut data) = (self, Fields(to.serialize_map(None)?));
        data.put("runId", Some(job.run_id))?;
        data.put("workflowName", job.workflow_name.as_ref())?;
        data.put("status", Some(&job.status))?;
        data.put("conclusion", job.conclusion.as_ref())?;
        data.put("branch", job.branch.as_ref())?;
        data.put("commitSha", job.commit_sha.as_ref())?;
        data.put("attempt", Some(job.attempt))?;
        data.put("url", job.url.as_ref())?;
        data.put("startedAt", job.started_at.map(rfc3339))?;
        data.put("completedAt", job.completed_at.map(rfc3339))?;
        data.put("jobId", Some(job.job_id))?;
        data.put("name", Some(&job.name))?;
        data.put("steps", Some(steps))?;
        data.0.end()
    }
}

struct StepData(Step);

impl Serialize for StepData {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (step, mut data) = (&self.0, Fields(to.serialize_map(None)?));
        data.put("number", step.number.map(|number| number.0))?;
        data.put("name", sanitize::optional(step.name.as_deref(), sanitize::NAME))?;
        data.put("status", sanitize::optional(step.status.as_deref(), sanitize::WORD))?;
        data.put("conclusion", sanitize::optional(step.conclusion.as_deref(), sanitize::WORD))?;
        data.put("startedAt", step.started_at.map(|at| rfc3339(at.0)))?;
        data.put("completedAt", step.completed_at.map(|at| rfc3339(at.0)))?;
        data.0.end()
    }
}
