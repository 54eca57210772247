//! The transaction in which units of work change rows. Changes of repositories, runs and jobs are
//! buffered and written at the end: by table and key, so that two publishers lock in the same order,
//! and in one statement a table, however many units share the transaction.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use uuid::Uuid;

use super::conn::Conn;
use super::error::Result;
use super::types::Ts;
use super::{repos, runs};
use crate::domain::workflow::{RepoUpdate, WorkflowJob, WorkflowRun, advances};

/// A transaction with buffered changes.
pub struct Transaction<'c> {
    /// The connection, for changes that cannot wait for the end.
    pub conn: &'c mut Conn,
    /// Its time, by the store's clock.
    pub now: Ts,
    repos: BTreeMap<i64, RepoUpdate>,
    runs: BTreeMap<i64, (Uuid, WorkflowRun)>,
    jobs: BTreeMap<i64, (Uuid, WorkflowJob)>,
}

impl<'c> Transaction<'c> {
    /// A transaction without buffered changes.
    pub fn new(conn: &'c mut Conn, now: Ts) -> Self {
        Self { conn, now, repos: BTreeMap::new(), runs: BTreeMap::new(), jobs: BTreeMap::new() }
    }

    /// Inserts or updates a repository; returns our id of it.
    pub fn upsert_repo(&mut self, update: &RepoUpdate) -> Uuid {
        match self.repos.entry(update.github_id) {
            Entry::Vacant(entry) => drop(entry.insert(update.clone())),
            Entry::Occupied(mut entry) => entry.get_mut().update(update),
        }
        repos::id_of(update.github_id)
    }

    /// Removes a repository.
    pub async fn remove_repo(&mut self, github_id: i64) -> Result<()> {
        self.write_repo(github_id).await?;
        repos::remove(self.conn, github_id, self.now).await
    }

    /// Records whether GitHub delivers the events of a repository.
    pub async fn webhook_enabled(&mut self, github_id: i64, enabled: bool) -> Result<()> {
        self.write_repo(github_id).await?;
        repos::set_webhook(self.conn, github_id, enabled, self.now).await
    }

    /// Inserts or updates a run of `repo`, unless its row is further already.
    pub fn upsert_run(&mut self, repo: &RepoUpdate, run: &WorkflowRun) {
        let repo = self.upsert_repo(repo);
        match self.runs.entry(run.run_id) {
            Entry::Vacant(entry) => drop(entry.insert((repo, run.clone()))),
            Entry::Occupied(mut entry) if advances(entry.get().1.progress(), run.progress()) => {
                entry.insert((repo, run.clone()));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Inserts or updates a job of `repo`, unless its row is further already.
    pub fn upsert_job(&mut self, repo: &RepoUpdate, job: &WorkflowJob) {
        let repo = self.upsert_repo(repo);
        match self.jobs.entry(job.job_id) {
            Entry::Vacant(entry) => drop(entry.insert((repo, job.clone()))),
            Entry::Occupied(mut entry) if advances(entry.get().1.progress(), job.progress()) => {
                entry.insert((repo, job.clone()));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Writes the buffered change of one repository, for a change that has to come after it.
    async fn write_repo(&mut self, github_id: i64) -> Result<()> {
        match self.repos.remove(&github_id) {
            Some(update) => repos::record(self.conn, &[update], self.now).await,
            None => Ok(()),
        }
    }

    /// Writes everything that was buffered, and returns the connection.
    pub async fn finish(self) -> Result<&'c mut Conn> {
        let Self { conn, now, repos, runs, jobs } = self;
        let repos: Vec<RepoUpdate> = repos.into_values().collect();
        repos::record(conn, &repos, now).await?;
        runs::record(conn, runs.into_values(), now).await?;
        runs::record_jobs(conn, jobs.into_values()).await?;
        Ok(conn)
    }
}
