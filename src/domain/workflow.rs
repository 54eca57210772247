//! Repositories, workflow runs and jobs as a source reports them: checked and sanitized, but not yet compared
//! with the store. A source produces them, a unit of work applies them. The log records events in the order
//! in which they arrived; rows never go back to an earlier state (see [`advances`]).

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::event::{Time, rfc3339};

/// A repository, as one delivery describes it. `None` means that the delivery did not contain it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoUpdate {
    /// GitHub's number for it; renames and transfers keep it.
    pub github_id: i64,
    /// The account that owns it.
    pub owner: String,
    /// The repository's own name, without the owner.
    pub name: String,
    /// The branch that scans follow.
    pub default_branch: Option<String>,
    /// Whether it is private.
    pub private: Option<bool>,
    /// The installation of our GitHub App that sent the delivery.
    pub installation_id: Option<i64>,
}

impl RepoUpdate {
    /// Applies a later update.
    pub fn update(&mut self, later: &Self) {
        self.owner.clone_from(&later.owner);
        self.name.clone_from(&later.name);
        if later.default_branch.is_some() {
            self.default_branch.clone_from(&later.default_branch);
        }
        self.private = later.private.or(self.private);
        self.installation_id = later.installation_id.or(self.installation_id);
    }
}

/// One attempt of a workflow run, as one delivery describes it or as it is stored. Written as the API
/// answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRun {
    /// GitHub's number for the run; all attempts share it.
    pub run_id: i64,
    /// GitHub's number for the workflow.
    pub workflow_id: i64,
    /// The workflow's name.
    pub workflow_name: Option<String>,
    /// The count of this workflow's runs that people see (`#42`).
    pub run_number: Option<i64>,
    /// GitHub's status, such as `queued` or `completed`; ranked by [`status_rank`].
    pub status: String,
    /// How it ended; absent until then.
    pub conclusion: Option<String>,
    /// What triggered it, such as `push`.
    pub event: Option<String>,
    /// The branch it ran for.
    pub branch: Option<String>,
    /// The commit it ran for.
    pub commit_sha: Option<String>,
    /// From 1; a re-run counts on.
    pub attempt: i32,
    /// Its page on GitHub.
    pub url: Option<String>,
    /// When the run began: the same for all its attempts.
    #[serde(skip)]
    pub created_at: Option<Time>,
    /// When this attempt started.
    #[serde(serialize_with = "time_or_null")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Time>,
    /// When GitHub last changed it.
    #[serde(serialize_with = "time_or_null")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Time>,
}

/// One job of a workflow run, as one delivery describes it or, without its workflow, branch and commit, as
/// it is stored. Written as the API answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowJob {
    /// GitHub's number for the job; a re-run gets a new one.
    pub job_id: i64,
    /// The run it belongs to.
    #[serde(skip)]
    pub run_id: i64,
    /// The attempt of that run.
    pub attempt: i32,
    /// The job's name.
    pub name: String,
    /// The workflow's name.
    #[serde(skip)]
    pub workflow_name: Option<String>,
    /// GitHub's status, such as `queued` or `completed`; ranked by [`status_rank`].
    pub status: String,
    /// How it ended; absent until then.
    pub conclusion: Option<String>,
    /// The branch it ran for.
    #[serde(skip)]
    pub branch: Option<String>,
    /// The commit it ran for.
    #[serde(skip)]
    pub commit_sha: Option<String>,
    /// Its page on GitHub.
    pub url: Option<String>,
    /// When it started.
    #[serde(serialize_with = "time_or_null")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(serialize_with = "time_or_null")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<Time>,
    /// A JSON array of `{number,name,status,conclusion,startedAt,completedAt}`, cleaned.
    #[serde(serialize_with = "raw_json")]
    #[schema(value_type = Option<Vec<Value>>)]
    pub steps: String,
}

fn time_or_null<S: Serializer>(at: &Option<Time>, to: S) -> Result<S::Ok, S::Error> {
    at.map(rfc3339).serialize(to)
}

fn raw_json<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    serde_json::from_str::<&RawValue>(text).ok().serialize(to)
}

/// A change that a delivery makes to the stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateChange {
    /// The repository exists and looks like this; absent fields keep their stored value.
    RepoUpdated(RepoUpdate),
    /// The repository is gone, or our App may no longer see it.
    RepoRemoved {
        /// As in [`RepoUpdate::github_id`].
        github_id: i64,
    },
    /// A run has a new state. The repository is included because it may be unknown so far.
    Run {
        /// Where it runs.
        repo: RepoUpdate,
        /// Its new state.
        run: WorkflowRun,
    },
    /// A job has a new state. Its run may be unknown so far: deliveries arrive in any order.
    Job {
        /// Where it runs.
        repo: RepoUpdate,
        /// Its new state.
        job: WorkflowJob,
    },
    /// GitHub does, or no longer does, deliver this repository's events (a ping, or its
    /// installation is suspended or not any more). It does not say whether the repository is known.
    WebhookEnabled {
        /// As in [`RepoUpdate::github_id`].
        github_id: i64,
        /// Whether deliveries are to be expected.
        enabled: bool,
    },
}

/// An event to be published for a delivery; it goes to `repo:` (if there is one) and to `org:`, also under
/// the former name.
#[derive(Debug, Clone)]
pub struct EventDraft {
    /// Its type, such as `workflow:completed`.
    pub kind: &'static str,
    /// The account whose `org:` channel carries it.
    pub owner: String,
    /// The repository's name without the owner.
    pub repo: Option<String>,
    /// What it was called before, whose followers hear of it too.
    pub former: Option<Former>,
    /// One JSON object, the `data` inside the envelope.
    pub data: Box<RawValue>,
}

/// A name that is no longer in use.
#[derive(Debug, Clone)]
pub struct Former {
    pub owner: String,
    pub repo: Option<String>,
}

/// How far a run or a job is within one attempt. A status that GitHub may add later ranks 0, so it
/// never overrides a known one.
pub fn status_rank(status: &str) -> i16 {
    match status {
        "completed" => 2,
        "in_progress" => 1,
        // Also: queued, requested, waiting, pending.
        _ => 0,
    }
}

/// What decides whether a row may be overwritten: attempt, [`status_rank`], last change.
pub type Progress = (i32, i16, Option<Time>);

/// Whether a row at `stored` may become `new`. Rows never go back: a later attempt always wins,
/// then the status that is further on, then the later change. On a tie, or when one side has no time,
/// `new` wins, because GitHub sent it last.
pub fn advances(stored: Progress, new: Progress) -> bool {
    let rank = |p: Progress| (p.0, p.1);
    match rank(new).cmp(&rank(stored)) {
        std::cmp::Ordering::Equal => match (stored.2, new.2) {
            (Some(stored), Some(new)) => new >= stored,
            _ => true,
        },
        order => order.is_gt(),
    }
}

impl WorkflowRun {
    /// For [`advances`].
    pub fn progress(&self) -> Progress {
        (self.attempt, status_rank(&self.status), self.updated_at)
    }
}

impl WorkflowJob {
    /// For [`advances`]. GitHub gives jobs no time of last change.
    pub fn progress(&self) -> Progress {
        (self.attempt, status_rank(&self.status), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Option<Time> {
        Time::from_timestamp(secs, 0)
    }

    #[test]
    fn every_status_has_its_rank() {
        for (rank, words) in [
            (0, &["queued", "requested", "waiting", "pending", "", "new-word"][..]),
            (1, &["in_progress"]),
            (2, &["completed"]),
        ] {
            for word in words {
                assert_eq!(status_rank(word), rank, "{word}");
            }
        }
    }

    #[test]
    fn a_row_never_goes_back() {
        let stored = (2, 1, at(100));
        for (new, may) in [
            ((3, 0, at(1)), true),
            ((1, 2, at(999)), false),
            ((2, 2, at(1)), true),
            ((2, 0, at(999)), false),
            ((2, 1, at(101)), true),
            ((2, 1, at(100)), true),
            ((2, 1, at(99)), false),
            ((2, 1, None), true),
        ] {
            assert_eq!(advances(stored, new), may, "{new:?}");
        }
        assert!(advances((2, 1, None), (2, 1, at(1))));
    }
}
