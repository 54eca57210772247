//! Repositories and their workflow runs, as far as the caller's claims show them. What a caller
//! may not see does not exist for it: 404, and lists leave it out.

use std::collections::HashMap;

use actix_web::{HttpResponse, web};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{NaiveDate, NaiveTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::access::Caller;
use super::error::{ApiError, ApiResult};
use crate::domain::access::{is_admin, may_see_repo};
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::event::{Time, rfc3339};
use crate::domain::principal::Principal;
use crate::store::repos::{self, Filter, Repo, Visible};
use crate::store::runs::{self, Job, Run};
use crate::store::{self, Store};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;
/// Runs of one day.
const MAX_RUNS: u32 = 500;
/// Rows in one read when patterns decide what is visible: few of them may be shown.
const LOOKED_AT: u32 = 500;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RepoOut {
    id: Uuid,
    github_id: i64,
    owner: String,
    name: String,
    default_branch: Option<String>,
    private: bool,
    webhook_enabled: bool,
    latest_coverage: Option<f64>,
    latest_scan_at: Option<String>,
    latest_run: Option<RunOut>,
    updated_at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunOut {
    run_id: i64,
    workflow_id: i64,
    workflow_name: Option<String>,
    run_number: Option<i64>,
    status: String,
    conclusion: Option<String>,
    event: Option<String>,
    branch: Option<String>,
    commit_sha: Option<String>,
    attempt: i32,
    url: Option<String>,
    started_at: Option<String>,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Vec<JobOut>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobOut {
    job_id: i64,
    attempt: i32,
    name: String,
    status: String,
    conclusion: Option<String>,
    url: Option<String>,
    started_at: Option<String>,
    completed_at: Option<String>,
    steps: Option<Box<RawValue>>,
}

impl RepoOut {
    fn new(repo: Repo, latest_run: Option<Run>) -> Self {
        Self {
            id: repo.id,
            github_id: repo.github_id,
            owner: repo.owner,
            name: repo.name,
            default_branch: repo.default_branch,
            private: repo.private,
            webhook_enabled: repo.webhook_enabled,
            latest_coverage: repo.latest_coverage.map(|points| f64::from(points) / 100.0),
            latest_scan_at: repo.latest_scan_at.map(rfc3339),
            latest_run: latest_run.map(|run| RunOut::new(run, None)),
            updated_at: rfc3339(repo.updated_at),
        }
    }
}

impl RunOut {
    fn new(run: Run, jobs: Option<Vec<JobOut>>) -> Self {
        Self {
            run_id: run.run_id,
            workflow_id: run.workflow_id,
            workflow_name: run.workflow_name,
            run_number: run.run_number,
            status: run.status,
            conclusion: run.conclusion,
            event: run.event,
            branch: run.branch,
            commit_sha: run.commit_sha,
            attempt: run.attempt,
            url: run.url,
            started_at: run.started_at.map(rfc3339),
            updated_at: rfc3339(run.updated_at),
            jobs,
        }
    }
}

impl From<Job> for JobOut {
    fn from(job: Job) -> Self {
        Self {
            job_id: job.job_id,
            attempt: job.attempt,
            name: job.name,
            status: job.status,
            conclusion: job.conclusion,
            url: job.url,
            started_at: job.started_at.map(rfc3339),
            completed_at: job.completed_at.map(rfc3339),
            steps: RawValue::from_string(job.steps).ok(),
        }
    }
}

/// The query string of the list.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    org: Option<String>,
    q: Option<String>,
    status: Option<String>,
    cursor: Option<String>,
    limit: Option<String>,
}

/// `GET /api/repos`: by owner and name; `cursor` is null at the end.
pub async fn list(
    Caller(principal): Caller,
    query: web::Query<ListQuery>,
    store: web::Data<Store>,
) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let ListQuery { org, q, status, cursor, .. } = query.into_inner();
    if [&org, &q, &status].into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(ApiError::bad_request("bad_query", "the query must not contain NUL"));
    }
    let after = cursor.as_deref().map(parse_cursor).transpose()?;
    let visible = visible_to(&principal);
    let filter = Filter { owner: org, text: q, status, after };
    let found = store
        .read(move |conn| Box::pin(async move { page(conn, &principal, &visible, filter, limit).await }))
        .await?;
    let Listed { repos, runs, more } = found;
    let cursor = repos.last().filter(|_| more).map(print_cursor);
    let mut runs: HashMap<Uuid, Run> = runs.into_iter().map(|run| (run.repo_id, run)).collect();
    let repos: Vec<RepoOut> = repos
        .into_iter()
        .map(|repo| (runs.remove(&repo.id), repo))
        .map(|(run, repo)| RepoOut::new(repo, run))
        .collect();
    Ok(HttpResponse::Ok().json(json!({ "repos": repos, "cursor": cursor })))
}

struct Listed {
    repos: Vec<Repo>,
    runs: Vec<Run>,
    more: bool,
}

async fn page(
    conn: &mut store::Conn,
    principal: &Principal,
    visible: &Visible,
    mut filter: Filter,
    limit: u32,
) -> store::Result<Listed> {
    let mut shown = Vec::new();
    let wanted = limit as usize + 1;
    let rows_at_once = if visible.all && !is_admin(principal) { LOOKED_AT } else { limit + 1 };
    // To the end if need be: a list that stops in between without a cursor hides what follows.
    loop {
        let rows = repos::list(conn, visible, &filter, rows_at_once).await?;
        let last_page = rows.len() < rows_at_once as usize;
        filter.after = rows.last().map(|repo| (repo.owner.clone(), repo.name.clone(), repo.id));
        shown.extend(rows.into_iter().filter(|repo| may_see_repo(principal, &repo.owner, &repo.name)));
        if last_page || shown.len() >= wanted {
            break;
        }
    }
    let more = shown.len() >= wanted;
    shown.truncate(limit as usize);
    let ids: Vec<Uuid> = shown.iter().map(|repo| repo.id).collect();
    let runs = if ids.is_empty() { Vec::new() } else { runs::newest_of(conn, &ids).await? };
    Ok(Listed { repos: shown, runs, more })
}

/// What a query can decide; capabilities with patterns are looked at row by row.
fn visible_to(principal: &Principal) -> Visible {
    Visible {
        all: is_admin(principal) || !principal.caps.is_empty() || !principal.channels.is_empty(),
        owners: principal.orgs.clone(),
        repos: principal.repos.clone(),
    }
}

fn print_cursor(repo: &Repo) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}/{}/{}", repo.owner, repo.name, repo.id))
}

fn parse_cursor(cursor: &str) -> Result<(String, String, Uuid), ApiError> {
    let parse = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
        let mut parts = text.splitn(3, '/');
        let (owner, name, id) = (parts.next()?, parts.next()?, parts.next()?);
        let named = is_owner(owner) && is_repo_name(name);
        Some((owner.to_owned(), name.to_owned(), Uuid::try_parse(id).ok()?)).filter(|_| named)
    };
    parse().ok_or_else(|| ApiError::bad_request("bad_cursor", "`cursor` must be one that this list returned"))
}

/// `GET /api/repos/{id}`, where the id is our UUID or `owner%2Fname`.
pub async fn get(Caller(principal): Caller, id: web::Path<String>, store: web::Data<Store>) -> ApiResult {
    let repo = find(&store, &principal, &id).await?;
    let ids = [repo.id];
    let runs = store.read(move |conn| Box::pin(async move { runs::newest_of(conn, &ids).await })).await?;
    Ok(HttpResponse::Ok().json(RepoOut::new(repo, runs.into_iter().next())))
}

/// The query string of the runs.
#[derive(Debug, Deserialize)]
pub struct RunsQuery {
    date: Option<String>,
}

/// `GET /api/repos/{id}/runs?date=2026-11-21`: the runs that began on a day (UTC, today if absent)
/// with their jobs, newest first.
pub async fn runs(
    Caller(principal): Caller,
    id: web::Path<String>,
    query: web::Query<RunsQuery>,
    store: web::Data<Store>,
) -> ApiResult {
    let day = match &query.date {
        None => Utc::now().date_naive(),
        Some(text) => NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            // Four digits: other years are no dates to a store.
            .filter(|_| text.len() == 10)
            .ok_or_else(|| ApiError::bad_request("bad_date", "`date` must be a day such as 2026-11-21"))?,
    };
    let from: Time = day.and_time(NaiveTime::MIN).and_utc();
    let to = from + TimeDelta::days(1);
    let repo = find(&store, &principal, &id).await?;
    let (found, jobs) = store
        .read(move |conn| {
            Box::pin(async move {
                let found = runs::between(conn, repo.id, from, to, MAX_RUNS).await?;
                let ids = found.iter().map(|run| run.run_id).collect();
                let jobs = runs::jobs_of(conn, ids).await?;
                store::Result::Ok((found, jobs))
            })
        })
        .await?;
    let mut by_run: HashMap<i64, Vec<JobOut>> = HashMap::new();
    for job in jobs {
        by_run.entry(job.run_id).or_default().push(JobOut::from(job));
    }
    let runs: Vec<RunOut> = found
        .into_iter()
        .map(|run| (by_run.remove(&run.run_id).unwrap_or_default(), run))
        .map(|(jobs, run)| RunOut::new(run, Some(jobs)))
        .collect();
    Ok(HttpResponse::Ok().json(json!({ "date": day.to_string(), "runs": runs })))
}

async fn find(store: &Store, principal: &Principal, id: &str) -> Result<Repo, ApiError> {
    let missing = || ApiError::not_found("repository");
    let found = match (Uuid::try_parse(id), id.split_once('/')) {
        (Ok(id), _) => store.read(move |conn| Box::pin(async move { repos::get(conn, id).await })).await?,
        (_, Some((owner, name))) if is_owner(owner) && is_repo_name(name) => {
            let (owner, name) = (owner.to_owned(), name.to_owned());
            store
                .read(move |conn| Box::pin(async move { repos::get_by_name(conn, &owner, &name).await }))
                .await?
        }
        _ => None,
    };
    found.filter(|repo| may_see_repo(principal, &repo.owner, &repo.name)).ok_or_else(missing)
}
