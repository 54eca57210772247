//! Workflow runs and their jobs. Deliveries come in any order, rows never go back: a row changes
//! only to a later attempt, a later status, or a later time of the same status.

use diesel::dsl::max;
use diesel::prelude::*;
use diesel::upsert::excluded;
use uuid::Uuid;

use super::conn::Conn;
use super::dialect::write_rows;
use super::error::Result;
use super::schema::{workflow_jobs as jobs, workflow_runs as runs};
use super::types::{Id, Ts};
use crate::domain::event::Time;
use crate::domain::workflow::{WorkflowJob, WorkflowRun, status_rank};

#[derive(Queryable, Insertable)]
#[diesel(table_name = runs, treat_none_as_default_value = false)]
struct RunRow {
    run_id: i64,
    repo_id: Id,
    workflow_id: i64,
    workflow_name: Option<String>,
    run_number: Option<i64>,
    status: String,
    status_rank: i16,
    conclusion: Option<String>,
    event: Option<String>,
    branch: Option<String>,
    commit_sha: Option<String>,
    attempt: i32,
    url: Option<String>,
    started_at: Option<Ts>,
    updated_at: Ts,
    created_at: Ts,
}

#[derive(Queryable, Insertable)]
#[diesel(table_name = jobs, treat_none_as_default_value = false)]
struct JobRow {
    job_id: i64,
    run_id: i64,
    repo_id: Id,
    attempt: i32,
    name: String,
    workflow_name: Option<String>,
    status: String,
    status_rank: i16,
    conclusion: Option<String>,
    url: Option<String>,
    steps: String,
    started_at: Option<Ts>,
    completed_at: Option<Ts>,
}

/// Records what was said about runs, each named once, unless a row is further already.
pub async fn record(conn: &mut Conn, all: impl Iterator<Item = (Uuid, WorkflowRun)>, now: Ts) -> Result<()> {
    let row = |(repo, run): (Uuid, WorkflowRun)| {
        let started = run.started_at.map(Ts::from);
        RunRow {
            run_id: run.run_id,
            repo_id: Id(repo),
            workflow_id: run.workflow_id,
            workflow_name: run.workflow_name,
            run_number: run.run_number,
            status_rank: status_rank(&run.status),
            status: run.status,
            conclusion: run.conclusion,
            event: run.event,
            branch: run.branch,
            commit_sha: run.commit_sha,
            attempt: run.attempt,
            url: run.url,
            started_at: started,
            updated_at: run.updated_at.map_or(now, Ts::from),
            created_at: run.created_at.map(Ts::from).or(started).unwrap_or(now),
        }
    };
    let rows: Vec<RunRow> = all.map(row).collect();
    write_rows!(conn, rows, |values| {
        use diesel::query_dsl::methods::FilterDsl as _; // DO UPDATE … WHERE
        let same_attempt = excluded(runs::attempt).eq(runs::attempt);
        let same_rank = excluded(runs::status_rank).eq(runs::status_rank);
        let advances = excluded(runs::attempt)
            .gt(runs::attempt)
            .or(same_attempt.and(excluded(runs::status_rank).gt(runs::status_rank)))
            .or(same_attempt.and(same_rank).and(excluded(runs::updated_at).ge(runs::updated_at)));
        diesel::insert_into(runs::table)
            .values(values)
            .on_conflict(runs::run_id)
            .do_update()
            .set((
                runs::repo_id.eq(excluded(runs::repo_id)),
                runs::workflow_id.eq(excluded(runs::workflow_id)),
                runs::workflow_name.eq(excluded(runs::workflow_name)),
                runs::run_number.eq(excluded(runs::run_number)),
                runs::status.eq(excluded(runs::status)),
                runs::status_rank.eq(excluded(runs::status_rank)),
                runs::conclusion.eq(excluded(runs::conclusion)),
                runs::event.eq(excluded(runs::event)),
                runs::branch.eq(excluded(runs::branch)),
                runs::commit_sha.eq(excluded(runs::commit_sha)),
                runs::attempt.eq(excluded(runs::attempt)),
                runs::url.eq(excluded(runs::url)),
                runs::started_at.eq(excluded(runs::started_at)),
                runs::updated_at.eq(excluded(runs::updated_at)),
            ))
            .filter(advances)
    });
    Ok(())
}

/// Records what was said about jobs, each named once, unless a row is further already. Their runs
/// may be unknown: deliveries come in any order.
pub async fn record_jobs(conn: &mut Conn, all: impl Iterator<Item = (Uuid, WorkflowJob)>) -> Result<()> {
    let row = |(repo, job): (Uuid, WorkflowJob)| JobRow {
        job_id: job.job_id,
        run_id: job.run_id,
        repo_id: Id(repo),
        attempt: job.attempt,
        name: job.name,
        workflow_name: job.workflow_name,
        status_rank: status_rank(&job.status),
        status: job.status,
        conclusion: job.conclusion,
        url: job.url,
        steps: job.steps,
        started_at: job.started_at.map(Ts::from),
        completed_at: job.completed_at.map(Ts::from),
    };
    let rows: Vec<JobRow> = all.map(row).collect();
    write_rows!(conn, rows, |values| {
        use diesel::query_dsl::methods::FilterDsl as _; // DO UPDATE … WHERE
        let same_attempt = excluded(jobs::attempt).eq(jobs::attempt);
        let advances = excluded(jobs::attempt)
            .gt(jobs::attempt)
            .or(same_attempt.and(excluded(jobs::status_rank).ge(jobs::status_rank)));
        diesel::insert_into(jobs::table)
            .values(values)
            .on_conflict(jobs::job_id)
            .do_update()
            .set((
                jobs::attempt.eq(excluded(jobs::attempt)),
                jobs::name.eq(excluded(jobs::name)),
                jobs::status.eq(excluded(jobs::status)),
                jobs::status_rank.eq(excluded(jobs::status_rank)),
                jobs::conclusion.eq(excluded(jobs::conclusion)),
                jobs::url.eq(excluded(jobs::url)),
                jobs::steps.eq(excluded(jobs::steps)),
                jobs::started_at.eq(excluded(jobs::started_at)),
                jobs::completed_at.eq(excluded(jobs::completed_at)),
            ))
            .filter(advances)
    });
    Ok(())
}

/// The runs of `repo` that began in `[from, to)`, newest first, at most `limit`.
pub async fn between(
    conn: &mut Conn,
    repo: Uuid,
    from: Time,
    to: Time,
    limit: u32,
) -> Result<Vec<WorkflowRun>> {
    let query = runs::table
        .filter(runs::repo_id.eq(Id(repo)))
        .filter(runs::created_at.ge(Ts::from(from)))
        .filter(runs::created_at.lt(Ts::from(to)))
        .order((runs::created_at.desc(), runs::run_id.desc()))
        .limit(i64::from(limit));
    let rows: Vec<RunRow> = conn.load(query).await?;
    Ok(rows.into_iter().map(WorkflowRun::from).collect())
}

/// The jobs of these runs, in the order of their numbers.
pub async fn jobs_of(conn: &mut Conn, run_ids: Vec<i64>) -> Result<Vec<WorkflowJob>> {
    let query = jobs::table.filter(jobs::run_id.eq_any(run_ids)).order(jobs::job_id.asc());
    let rows: Vec<JobRow> = conn.load(query).await?;
    Ok(rows.into_iter().map(WorkflowJob::from).collect())
}

/// The newest run of each of these repositories that has one, with the repository's id.
pub async fn newest_of(conn: &mut Conn, repos: &[Uuid]) -> Result<Vec<(Uuid, WorkflowRun)>> {
    let ids: Vec<Id> = repos.iter().copied().map(Id).collect();
    let of_repos = runs::table.filter(runs::repo_id.eq_any(ids));
    let newest = of_repos.group_by(runs::repo_id).select(max(runs::run_id));
    let numbers: Vec<Option<i64>> = conn.load(newest).await?;
    let numbers: Vec<i64> = numbers.into_iter().flatten().collect();
    let rows: Vec<RunRow> = conn.load(runs::table.filter(runs::run_id.eq_any(numbers))).await?;
    Ok(rows.into_iter().map(|row| (row.repo_id.0, row.into())).collect())
}

impl From<RunRow> for WorkflowRun {
    fn from(row: RunRow) -> Self {
        Self {
            run_id: row.run_id,
            workflow_id: row.workflow_id,
            workflow_name: row.workflow_name,
            run_number: row.run_number,
            status: row.status,
            conclusion: row.conclusion,
            event: row.event,
            branch: row.branch,
            commit_sha: row.commit_sha,
            attempt: row.attempt,
            url: row.url,
            created_at: Some(row.created_at.into()),
            started_at: row.started_at.map(Time::from),
            updated_at: Some(row.updated_at.into()),
        }
    }
}

impl From<JobRow> for WorkflowJob {
    fn from(row: JobRow) -> Self {
        Self {
            job_id: row.job_id,
            run_id: row.run_id,
            attempt: row.attempt,
            name: row.name,
            workflow_name: row.workflow_name,
            status: row.status,
            conclusion: row.conclusion,
            branch: None,
            commit_sha: None,
            url: row.url,
            steps: row.steps,
            started_at: row.started_at.map(Time::from),
            completed_at: row.completed_at.map(Time::from),
        }
    }
}
