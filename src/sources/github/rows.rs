//! Repositories, runs and jobs that deliveries change: merged over all units of a transaction and
//! written at its end. Nearly every delivery names its repository, and a busy run changes often.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::domain::workflow::{Progress, RepoUpdate, StateChange, WorkflowJob, WorkflowRun, advances};
use crate::store::{self, Conn, Table, Ts, WriteBuffer, repos, runs};

#[derive(Default)]
pub struct WorkflowRows {
    /// The changes of each repository, in their order; updates in a row are one.
    repos: BTreeMap<i64, Vec<RepoChange>>,
    runs: BTreeMap<i64, (Uuid, WorkflowRun)>,
    jobs: BTreeMap<i64, (Uuid, WorkflowJob)>,
}

enum RepoChange {
    Updated(RepoUpdate),
    Removed,
    WebhookEnabled(bool),
}

impl WorkflowRows {
    /// Adds a change. A run or job changes unless it is further already.
    pub fn add(&mut self, change: &StateChange) {
        match change {
            StateChange::RepoUpdated(repo) => {
                self.update_repo(repo);
            }
            StateChange::RepoRemoved { github_id } => self.of_repo(*github_id).push(RepoChange::Removed),
            StateChange::WebhookEnabled { github_id, enabled } => {
                self.of_repo(*github_id).push(RepoChange::WebhookEnabled(*enabled));
            }
            StateChange::Run { repo, run } => {
                let repo = self.update_repo(repo);
                insert_newer(self.runs.entry(run.run_id), (repo, run), WorkflowRun::progress);
            }
            StateChange::Job { repo, job } => {
                let repo = self.update_repo(repo);
                insert_newer(self.jobs.entry(job.job_id), (repo, job), WorkflowJob::progress);
            }
        }
    }

    /// Answers our id of the repository.
    fn update_repo(&mut self, update: &RepoUpdate) -> Uuid {
        let changes = self.of_repo(update.github_id);
        match changes.last_mut() {
            Some(RepoChange::Updated(before)) => before.update(update),
            _ => changes.push(RepoChange::Updated(update.clone())),
        }
        repos::id_of(update.github_id)
    }

    fn of_repo(&mut self, github_id: i64) -> &mut Vec<RepoChange> {
        self.repos.entry(github_id).or_default()
    }

    /// Updates go in one statement, up to the next change that is none.
    async fn write_repos(conn: &mut Conn, all: BTreeMap<i64, Vec<RepoChange>>, now: Ts) -> store::Result<()> {
        let mut updates = Vec::with_capacity(all.len());
        for (github_id, changes) in all {
            for change in changes {
                match change {
                    RepoChange::Updated(update) => updates.push(update),
                    RepoChange::Removed => {
                        repos::record(conn, &std::mem::take(&mut updates), now).await?;
                        repos::remove(conn, github_id, now).await?;
                    }
                    RepoChange::WebhookEnabled(enabled) => {
                        repos::record(conn, &std::mem::take(&mut updates), now).await?;
                        repos::set_webhook(conn, github_id, enabled, now).await?;
                    }
                }
            }
        }
        repos::record(conn, &updates, now).await
    }
}

fn insert_newer<T: Clone>(
    entry: Entry<'_, i64, (Uuid, T)>,
    (repo, new): (Uuid, &T),
    progress: impl Fn(&T) -> Progress,
) {
    match entry {
        Entry::Vacant(entry) => drop(entry.insert((repo, new.clone()))),
        Entry::Occupied(mut entry) if advances(progress(&entry.get().1), progress(new)) => {
            entry.insert((repo, new.clone()));
        }
        Entry::Occupied(_) => {}
    }
}

impl WriteBuffer for WorkflowRows {
    fn table() -> Table {
        Table::Repos
    }

    fn write<'a>(self: Box<Self>, conn: &'a mut Conn, now: Ts) -> BoxFuture<'a, store::Result<()>> {
        Box::pin(async move {
            Self::write_repos(conn, self.repos, now).await?;
            runs::record(conn, self.runs.into_values(), now).await?;
            runs::record_jobs(conn, self.jobs.into_values()).await
        })
    }
}
