//! The routes of repositories and their workflow runs.

use actix_web::{HttpResponse, get, web};
use chrono::{NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::State;
use super::error::{ApiError, ApiResult};
use super::extract::Caller;
use crate::domain::event::rfc3339;
use crate::domain::workflow::{WorkflowJob, WorkflowRun};
use crate::repos::{self, ListRequest, Listed, Repo, RepoCursor};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 100;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Repo)]
struct RepoOut {
    id: Uuid,
    github_id: i64,
    owner: String,
    name: String,
    default_branch: Option<String>,
    private: bool,
    webhook_enabled: bool,
    /// Percent.
    latest_coverage: Option<f64>,
    #[schema(format = DateTime)]
    latest_scan_at: Option<String>,
    latest_run: Option<WorkflowRun>,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// A part of the list.
#[derive(Serialize, ToSchema)]
struct RepoList {
    repos: Vec<RepoOut>,
    /// Null at the end of the list.
    cursor: Option<String>,
}

/// A run with its jobs.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkflowRunWithJobs)]
struct RunOut {
    #[serde(flatten)]
    run: WorkflowRun,
    jobs: Vec<WorkflowJob>,
}

/// The runs of a day.
#[derive(Serialize, ToSchema)]
struct RunList {
    #[schema(value_type = NaiveDate)]
    date: String,
    runs: Vec<RunOut>,
}

impl RepoOut {
    fn new(repo: Repo, latest_run: Option<WorkflowRun>) -> Self {
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
            latest_run,
            updated_at: rfc3339(repo.updated_at),
        }
    }
}

/// The query string of the list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    org: Option<String>,
    /// A part of the name.
    q: Option<String>,
    /// Status or conclusion of the newest run.
    status: Option<String>,
    /// The `cursor` of an earlier response.
    cursor: Option<String>,
    #[param(value_type = Option<u32>, minimum = 1, maximum = 100, default = 50)]
    limit: Option<String>,
}

/// Repositories by owner and name.
#[utoipa::path(
    params(ListQuery),
    responses((
        status = 200, description = "Those that the caller may see.", body = RepoList,
        links(
            ("repo" = (operation_id = "getRepo", parameters(("id" = "$response.body#/repos/0/id")))),
            ("runs" = (operation_id = "listRuns", parameters(("id" = "$response.body#/repos/0/id")))),
        ),
    )),
)]
#[get("/api/repos")]
pub async fn list_repos(Caller(principal): Caller, query: web::Query<ListQuery>, state: State) -> ApiResult {
    let limit = super::parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT)?;
    let ListQuery { org, q, status, cursor, .. } = query.into_inner();
    if [&org, &q, &status].into_iter().flatten().any(|text| text.contains('\0')) {
        return Err(ApiError::bad_request("bad_query", "the query must not contain NUL"));
    }
    let after = cursor.as_deref().map(parse_cursor).transpose()?;
    let listed =
        repos::list(&state.store, &principal, ListRequest { owner: org, text: q, status, after, limit });
    let Listed { repos, next } = listed.await?;
    let repos = repos.into_iter().map(|(repo, run)| RepoOut::new(repo, run)).collect();
    let cursor = next.as_ref().map(ToString::to_string);
    Ok(HttpResponse::Ok().json(RepoList { repos, cursor }))
}

fn parse_cursor(cursor: &str) -> Result<RepoCursor, ApiError> {
    let bad = || ApiError::bad_request("bad_cursor", "`cursor` must be one that this list returned");
    RepoCursor::parse(cursor).ok_or_else(bad)
}

fn missing() -> ApiError {
    ApiError::not_found("repository")
}

/// One repository.
#[utoipa::path(
    params(("id" = String, Path, description = "#RepoId")),
    responses((status = 200, description = "The repository.", body = RepoOut)),
)]
#[get("/api/repos/{id}")]
pub async fn get_repo(Caller(principal): Caller, id: web::Path<String>, state: State) -> ApiResult {
    let (repo, run) = repos::get(&state.store, &principal, &id).await?.ok_or_else(missing)?;
    Ok(HttpResponse::Ok().json(RepoOut::new(repo, run)))
}

/// The query string of the runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RunsQuery {
    /// Today if absent.
    #[param(value_type = Option<NaiveDate>)]
    date: Option<String>,
}

/// The workflow runs of one day (UTC), newest first.
#[utoipa::path(
    params(("id" = String, Path, description = "#RepoId"), RunsQuery),
    responses((status = 200, description = "With their jobs.", body = RunList)),
)]
#[get("/api/repos/{id}/runs")]
pub async fn list_runs(
    Caller(principal): Caller,
    id: web::Path<String>,
    query: web::Query<RunsQuery>,
    state: State,
) -> ApiResult {
    let day = match &query.date {
        None => Utc::now().date_naive(),
        Some(text) => NaiveDate::parse_from_str(text, "%Y-%m-%d")
            .ok()
            // Four digits: other years are no dates to a store.
            .filter(|_| text.len() == 10)
            .ok_or_else(|| ApiError::bad_request("bad_date", "`date` must be a day such as 2026-11-21"))?,
    };
    let runs = repos::runs_of_day(&state.store, &principal, &id, day).await?.ok_or_else(missing)?;
    let runs = runs.into_iter().map(|(run, jobs)| RunOut { run, jobs }).collect();
    Ok(HttpResponse::Ok().json(RunList { date: day.to_string(), runs }))
}
