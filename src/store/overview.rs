//! All repositories at a glance: how the newest run of each stands, and its runs of a day. Each
//! repository costs a few steps in an index, so the answer is for keeping, not for every request.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use super::conn::Conn;
use super::error::Result;
use super::schema::repos;
use super::types::{SqlTs, Ts};

/// Repositories that are looked at; a gateway has fewer.
const MOST: i64 = 100_000;

#[derive(Debug, Clone, PartialEq, Eq, Queryable)]
pub struct RepoState {
    /// The account that owns it.
    pub owner: String,
    /// Its name without the owner.
    pub name: String,
    /// The conclusion of its newest run, or the run's status while there is none.
    pub newest: Option<String>,
    /// Its runs since the given time.
    pub runs: i64,
    /// How many of them failed.
    pub failed: i64,
}

impl RepoState {
    /// Whether a conclusion of a run is a failure.
    pub fn is_failure(conclusion: &str) -> bool {
        matches!(conclusion, "failure" | "timed_out" | "startup_failure")
    }
}

/// Every repository that is not removed, with its runs that began at `since` or later.
pub async fn repos(conn: &mut Conn, since: Ts) -> Result<Vec<RepoState>> {
    let newest = sql::<Nullable<Text>>(
        "(SELECT COALESCE(r.conclusion, r.status) FROM workflow_runs r WHERE r.repo_id = repos.id \
         ORDER BY r.run_id DESC LIMIT 1)",
    );
    let runs = sql::<BigInt>(
        "(SELECT count(*) FROM workflow_runs r WHERE r.repo_id = repos.id AND r.created_at >= ",
    )
    .bind::<SqlTs, _>(since)
    .sql(")");
    let failed = sql::<BigInt>(
        "(SELECT count(*) FROM workflow_runs r WHERE r.repo_id = repos.id \
         AND r.conclusion IN ('failure', 'timed_out', 'startup_failure') AND r.created_at >= ",
    )
    .bind::<SqlTs, _>(since)
    .sql(")");
    let query = repos::table
        .filter(repos::removed_at.is_null())
        .order((repos::owner.asc(), repos::name.asc(), repos::id.asc()))
        .limit(MOST)
        .select((repos::owner, repos::name, newest, runs, failed));
    conn.load(query).await
}
