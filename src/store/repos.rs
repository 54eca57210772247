//! Repositories: what GitHub last said about each. Their ids follow from GitHub's numbers, so a
//! unit of work knows them without asking.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};
use uuid::Uuid;

use super::conn::Conn;
use super::dialect::{FEW_ROWS, Prepared};
use super::error::Result;
use super::schema::repos as table;
use super::types::{Id, Ts};
use crate::domain::event::Time;
use crate::domain::sorted_set::SortedSet;
use crate::domain::workflow::RepoUpdate;

/// A repository as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    pub id: Uuid,
    pub github_id: i64,
    /// The account that owns it.
    pub owner: String,
    /// Its name without the owner.
    pub name: String,
    /// The branch that scans follow.
    pub default_branch: Option<String>,
    /// Hidden from strangers.
    pub private: bool,
    /// Whether GitHub delivers its events.
    pub webhook_enabled: bool,
    /// Documentation coverage in basis points.
    pub latest_coverage: Option<i32>,
    /// When it was last scanned.
    pub latest_scan_at: Option<Time>,
    /// When this row last changed.
    pub updated_at: Time,
}

#[derive(Queryable, Insertable, Clone, PartialEq)]
#[diesel(table_name = table)]
struct Row {
    id: Id,
    github_id: i64,
    owner: String,
    name: String,
    default_branch: Option<String>,
    private: bool,
    installation_id: Option<i64>,
    webhook_enabled: bool,
    latest_scan_id: Option<Id>,
    latest_coverage: Option<i32>,
    latest_scan_at: Option<Ts>,
    removed_at: Option<Ts>,
    created_at: Ts,
    updated_at: Ts,
}

/// What one delivery changes of a row that is there. Absent fields are not touched: what was read
/// before may have been changed by another transaction since.
#[derive(AsChangeset)]
#[diesel(table_name = table)]
struct Seen<'a> {
    owner: &'a str,
    name: &'a str,
    default_branch: Option<&'a str>,
    private: Option<bool>,
    installation_id: Option<i64>,
    removed_at: Option<Option<Ts>>,
    updated_at: Ts,
}

/// The id of the repository with GitHub's number `github_id`.
pub fn id_of(github_id: i64) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x6f8d_5f0e_9c1b_4c0f_8a53_3d7c_5a10_c4b1);
    Uuid::new_v5(&NAMESPACE, &github_id.to_be_bytes())
}

/// Records that repositories exist and look like `all`, which names each once. Writes only what
/// changed, because nearly every delivery mentions a repository that has not.
pub async fn record(conn: &mut Conn, all: &[RepoUpdate], now: Ts) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let ids: Vec<Id> = all.iter().map(|update| Id(id_of(update.github_id))).collect();
    let keep = ids.len() <= FEW_ROWS;
    let query = Prepared { query: table::table.filter(table::id.eq_any(ids)), keep };
    let rows: Vec<Row> = conn.load(query).await?;
    let stored: HashMap<i64, Row> = rows.into_iter().map(|row| (row.github_id, row)).collect();
    for update in all {
        let stored = stored.get(&update.github_id);
        let row = merge(stored, update, id_of(update.github_id), now);
        if stored != Some(&row) {
            upsert(conn, Row { updated_at: now, ..row }, update, now).await?;
        }
    }
    Ok(())
}

async fn upsert(conn: &mut Conn, row: Row, update: &RepoUpdate, now: Ts) -> Result<()> {
    let seen = Seen {
        owner: &update.owner,
        name: &update.name,
        default_branch: update.default_branch.as_deref(),
        private: update.private,
        installation_id: update.installation_id,
        removed_at: Some(None),
        updated_at: now,
    };
    let upsert =
        diesel::insert_into(table::table).values(row).on_conflict(table::github_id).do_update().set(seen);
    conn.execute(upsert).await?;
    Ok(())
}

/// The row as it should be: what a delivery left out keeps its stored value.
fn merge(stored: Option<&Row>, update: &RepoUpdate, id: Uuid, now: Ts) -> Row {
    Row {
        id: Id(id),
        github_id: update.github_id,
        owner: update.owner.clone(),
        name: update.name.clone(),
        default_branch: update
            .default_branch
            .clone()
            .or_else(|| stored.and_then(|row| row.default_branch.clone())),
        private: update.private.or(stored.map(|row| row.private)).unwrap_or(true),
        installation_id: update.installation_id.or(stored.and_then(|row| row.installation_id)),
        webhook_enabled: stored.is_none_or(|row| row.webhook_enabled),
        latest_scan_id: stored.and_then(|row| row.latest_scan_id),
        latest_coverage: stored.and_then(|row| row.latest_coverage),
        latest_scan_at: stored.and_then(|row| row.latest_scan_at),
        removed_at: None,
        created_at: stored.map_or(now, |row| row.created_at),
        updated_at: stored.map_or(now, |row| row.updated_at),
    }
}

/// Hides a repository that is gone. Its log stays until retention takes it.
pub async fn remove(conn: &mut Conn, github_id: i64, now: Ts) -> Result<()> {
    let row = table::table.filter(table::github_id.eq(github_id));
    conn.execute(diesel::update(row).set((table::removed_at.eq(Some(now)), table::updated_at.eq(now))))
        .await?;
    Ok(())
}

/// Records whether GitHub delivers a repository's events.
pub async fn set_webhook(conn: &mut Conn, github_id: i64, enabled: bool, now: Ts) -> Result<()> {
    let row = table::table.filter(table::github_id.eq(github_id));
    let change = (table::webhook_enabled.eq(enabled), table::updated_at.eq(now));
    conn.execute(diesel::update(row).set(change)).await?;
    Ok(())
}

/// Which repositories a reader may be shown.
#[derive(Debug, Clone, Default)]
pub struct Visible {
    /// All of them.
    pub all: bool,
    /// Those of these owners.
    pub owners: SortedSet<String>,
    /// These, as `owner/name`.
    pub repos: SortedSet<String>,
}

/// What a list is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub owner: Option<String>,
    /// A part of `owner/name`, in any case.
    pub text: Option<String>,
    /// The conclusion of the newest run, or its status while it has none.
    pub status: Option<String>,
    /// Only what follows this `(owner, name, id)`.
    pub after: Option<(String, String, Uuid)>,
}

/// The repositories of an account, or those that came through an installation.
#[derive(Debug, Clone)]
pub enum Of {
    Owner(String),
    Installation(i64),
    Repository(i64),
}

/// Up to `limit` repositories of one account or installation, as a delivery would describe them.
pub async fn known(conn: &mut Conn, of: Of, limit: u32) -> Result<Vec<RepoUpdate>> {
    let query = table::table.filter(table::removed_at.is_null()).order(table::id.asc()).limit(limit.into());
    let rows: Vec<Row> = match of {
        Of::Owner(owner) => conn.load(query.filter(table::owner.eq(owner))).await?,
        Of::Installation(id) => conn.load(query.filter(table::installation_id.eq(id))).await?,
        Of::Repository(id) => conn.load(query.filter(table::github_id.eq(id))).await?,
    };
    Ok(rows.into_iter().map(RepoUpdate::from).collect())
}

/// Up to `limit` repositories by owner and name.
pub async fn list(conn: &mut Conn, visible: &Visible, filter: &Filter, limit: u32) -> Result<Vec<Repo>> {
    let flag = |on: bool| on.into_sql::<Bool>();
    let full_name = || table::owner.concat("/").concat(table::name);
    let owner = filter.owner.as_deref();
    let pattern = filter.text.as_deref().map(contains_pattern);
    let newest_run = diesel::dsl::sql::<Bool>(
        "COALESCE((SELECT COALESCE(r.conclusion, r.status) FROM workflow_runs r \
         WHERE r.repo_id = repos.id ORDER BY r.run_id DESC LIMIT 1), '') = ",
    )
    .bind::<Text, _>(filter.status.clone().unwrap_or_default());
    let (after_owner, after_name, after_id) = filter.after.clone().unwrap_or_default();
    let follows = table::owner
        .gt(after_owner.clone())
        .or(table::owner.eq(after_owner.clone()).and(table::name.gt(after_name.clone())))
        .or(table::owner.eq(after_owner).and(table::name.eq(after_name)).and(table::id.gt(Id(after_id))));
    let query = table::table
        .filter(table::removed_at.is_null())
        .filter(
            flag(visible.all)
                .or(table::owner.eq_any(visible.owners.iter().cloned().collect::<Vec<_>>()))
                .or(full_name().eq_any(visible.repos.iter().cloned().collect::<Vec<_>>())),
        )
        .filter(flag(owner.is_none()).or(table::owner.eq(owner.unwrap_or_default().to_owned())))
        .filter(
            flag(pattern.is_none())
                .or(lower(full_name()).like(pattern.clone().unwrap_or_default()).escape('\\')),
        )
        .filter(flag(filter.status.is_none()).or(newest_run))
        .filter(flag(filter.after.is_none()).or(follows))
        .order((table::owner.asc(), table::name.asc(), table::id.asc()))
        .limit(i64::from(limit));
    let rows: Vec<Row> = conn.load(query).await?;
    Ok(rows.into_iter().map(Repo::from).collect())
}

diesel::define_sql_function! {
    /// Lower case of ASCII letters on both backends, as far as repository names go.
    fn lower(text: Text) -> Text;
}

fn contains_pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for c in text.chars().flat_map(char::to_lowercase) {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

/// One repository by our id.
pub async fn get(conn: &mut Conn, id: Uuid) -> Result<Option<Repo>> {
    let query = table::table.find(Id(id)).filter(table::removed_at.is_null());
    let row: Option<Row> = conn.maybe(query).await?;
    Ok(row.map(Repo::from))
}

/// One repository by its current name.
pub async fn get_by_name(conn: &mut Conn, owner: &str, name: &str) -> Result<Option<Repo>> {
    let query = table::table
        .filter(table::owner.eq(owner))
        .filter(table::name.eq(name))
        .filter(table::removed_at.is_null())
        .order(table::updated_at.desc())
        .limit(1);
    let row: Option<Row> = conn.maybe(query).await?;
    Ok(row.map(Repo::from))
}

impl From<Row> for RepoUpdate {
    fn from(row: Row) -> Self {
        Self {
            github_id: row.github_id,
            owner: row.owner,
            name: row.name,
            default_branch: row.default_branch,
            private: Some(row.private),
            installation_id: row.installation_id,
        }
    }
}

impl From<Row> for Repo {
    fn from(row: Row) -> Self {
        Self {
            id: row.id.0,
            github_id: row.github_id,
            owner: row.owner,
            name: row.name,
            default_branch: row.default_branch,
            private: row.private,
            webhook_enabled: row.webhook_enabled,
            latest_coverage: row.latest_coverage,
            latest_scan_at: row.latest_scan_at.map(Time::from),
            updated_at: row.updated_at.into(),
        }
    }
}
