//! A transaction as units of work see it that change rows. What they say about repositories, runs
//! and jobs is collected and written at the end: by table and key, so that two publishers lock in
//! the same order, and in one statement a table, however many units share the transaction.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use uuid::Uuid;

use super::conn::Conn;
use super::error::Result;
use super::types::Ts;
use super::{repos, runs};
use crate::domain::facts::{JobFacts, RepoFacts, RunFacts, advances};

/// The transaction.
pub struct Transaction<'c> {
    /// Where it takes place, for changes that cannot wait for the end.
    pub conn: &'c mut Conn,
    /// Its time, by the store's clock.
    pub now: Ts,
    repos: BTreeMap<i64, RepoFacts>,
    runs: BTreeMap<i64, (Uuid, RunFacts)>,
    jobs: BTreeMap<i64, (Uuid, JobFacts)>,
}

impl<'c> Transaction<'c> {
    /// Nothing is collected yet.
    pub fn new(conn: &'c mut Conn, now: Ts) -> Self {
        Self { conn, now, repos: BTreeMap::new(), runs: BTreeMap::new(), jobs: BTreeMap::new() }
    }

    /// A repository exists and looks like `facts`; answers our id of it.
    pub fn saw(&mut self, facts: &RepoFacts) -> Uuid {
        match self.repos.entry(facts.github_id) {
            Entry::Vacant(entry) => drop(entry.insert(facts.clone())),
            Entry::Occupied(mut entry) => entry.get_mut().update(facts),
        }
        repos::id_of(facts.github_id)
    }

    /// A repository is gone.
    pub async fn removed(&mut self, github_id: i64) -> Result<()> {
        self.write_repo(github_id).await?;
        repos::remove(self.conn, github_id, self.now).await
    }

    /// GitHub does, or no longer does, deliver a repository's events.
    pub async fn webhook_enabled(&mut self, github_id: i64, enabled: bool) -> Result<()> {
        self.write_repo(github_id).await?;
        repos::set_webhook(self.conn, github_id, enabled, self.now).await
    }

    /// A run of `repo` is where `facts` say, unless more is known.
    pub fn ran(&mut self, repo: &RepoFacts, facts: &RunFacts) {
        let repo = self.saw(repo);
        match self.runs.entry(facts.run_id) {
            Entry::Vacant(entry) => drop(entry.insert((repo, facts.clone()))),
            Entry::Occupied(mut entry) if advances(entry.get().1.progress(), facts.progress()) => {
                entry.insert((repo, facts.clone()));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// A job of `repo` is where `facts` say, unless more is known.
    pub fn worked(&mut self, repo: &RepoFacts, facts: &JobFacts) {
        let repo = self.saw(repo);
        match self.jobs.entry(facts.job_id) {
            Entry::Vacant(entry) => drop(entry.insert((repo, facts.clone()))),
            Entry::Occupied(mut entry) if advances(entry.get().1.progress(), facts.progress()) => {
                entry.insert((repo, facts.clone()));
            }
            Entry::Occupied(_) => {}
        }
    }

    /// Writes what was said about one repository, for a change that has to come after it.
    async fn write_repo(&mut self, github_id: i64) -> Result<()> {
        match self.repos.remove(&github_id) {
            Some(facts) => repos::record(self.conn, &[facts], self.now).await,
            None => Ok(()),
        }
    }

    /// Writes everything that was collected, and gives the connection back.
    pub async fn finish(self) -> Result<&'c mut Conn> {
        let Self { conn, now, repos, runs, jobs } = self;
        let repos: Vec<RepoFacts> = repos.into_values().collect();
        repos::record(conn, &repos, now).await?;
        runs::record(conn, runs.into_values(), now).await?;
        runs::record_jobs(conn, jobs.into_values()).await?;
        Ok(conn)
    }
}
