//! Repositories and their workflow runs, as far as a caller's claims show them. What a caller may not see
//! does not exist for it: it is not found, and lists leave it out.

mod cursor;

use std::collections::HashMap;

use chrono::{NaiveDate, NaiveTime, TimeDelta};
use uuid::Uuid;

use crate::domain::access::{Action, is_admin, may_see_repo};
use crate::domain::channel::{ChannelName, is_owner, is_repo_name};
use crate::domain::event::Time;
use crate::domain::pattern::ChannelPattern;
use crate::domain::principal::Principal;
use crate::domain::workflow::{WorkflowJob, WorkflowRun};
use crate::store::repos::{self, Filter, Visible};
use crate::store::{self, Store, runs};

pub use crate::store::repos::Repo;
pub use cursor::RepoCursor;

/// Runs of one day.
const MAX_RUNS: u32 = 500;
/// Rows in one read when patterns decide what is visible: few of them may be shown.
const LOOKED_AT: u32 = 500;

/// Which repositories are wanted.
#[derive(Debug, Default)]
pub struct ListRequest {
    /// Of this account.
    pub owner: Option<String>,
    /// With this in their names.
    pub text: Option<String>,
    /// Whose newest run stands like this.
    pub status: Option<String>,
    /// Those that follow.
    pub after: Option<RepoCursor>,
    /// At most so many.
    pub limit: u32,
}

/// A part of the list, by owner and name.
#[derive(Debug)]
pub struct Listed {
    /// Each with its newest run.
    pub repos: Vec<(Repo, Option<WorkflowRun>)>,
    /// Where the list goes on, unless this is its end.
    pub next: Option<RepoCursor>,
}

/// The repositories that `principal` may see.
pub async fn list(store: &Store, principal: &Principal, request: ListRequest) -> store::Result<Listed> {
    let ListRequest { owner, text, status, after, limit } = request;
    let filter = Filter { owner, text, status, after: after.map(|cursor| cursor.0) };
    let (principal, visible) = (principal.clone(), visible_to(principal));
    let read = store
        .read(move |conn| Box::pin(async move { page(conn, &principal, &visible, filter, limit).await }));
    read.await
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
    let by_claims = principal.caps.is_empty() && principal.channels.is_empty();
    let rows_at_once = if by_claims || is_admin(principal) { limit + 1 } else { LOOKED_AT };
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
    let next = shown.last().filter(|_| more).map(RepoCursor::after);
    let ids: Vec<Uuid> = shown.iter().map(|repo| repo.id).collect();
    let runs = if ids.is_empty() { Vec::new() } else { runs::newest_of(conn, &ids).await? };
    let mut runs: HashMap<Uuid, WorkflowRun> = runs.into_iter().collect();
    let repos = shown.into_iter().map(|repo| (runs.remove(&repo.id), repo)).map(|(run, repo)| (repo, run));
    Ok(Listed { repos: repos.collect(), next })
}

/// What a query can decide. Patterns are looked at row by row, among the repositories of the accounts that
/// they name; only one that leaves the account open makes all rows be read.
fn visible_to(principal: &Principal) -> Visible {
    let names = principal.channels.iter().map(ChannelName::as_str);
    let caps = principal.caps.iter().filter(|cap| cap.allow.includes(Action::Subscribe));
    let patterns = caps.flat_map(|cap| &cap.channels).map(ChannelPattern::as_str);
    let (mut all, mut owners) = (is_admin(principal), principal.orgs.iter().cloned().collect::<Vec<_>>());
    for text in names.chain(patterns) {
        // What comes before the first `*` is what all names that fit begin with.
        let (start, open) = text.split_once('*').map_or((text, false), |(start, _)| (start, true));
        match start.strip_prefix("repo:").map(|rest| rest.split_once('/')) {
            Some(Some((owner, _))) => owners.push(owner.to_owned()),
            Some(None) => all |= open,
            None => all |= open && "repo:".starts_with(start),
        }
    }
    Visible { all, owners: owners.into_iter().collect(), repos: principal.repos.clone() }
}

/// The repository `id`, our UUID or `owner/name`, with its newest run; `None` if `principal` may not see
/// one.
pub async fn get(
    store: &Store,
    principal: &Principal,
    id: &str,
) -> store::Result<Option<(Repo, Option<WorkflowRun>)>> {
    let Some(repo) = find(store, principal, id).await? else { return Ok(None) };
    let ids = [repo.id];
    let runs = store.read(move |conn| Box::pin(async move { runs::newest_of(conn, &ids).await })).await?;
    Ok(Some((repo, runs.into_iter().next().map(|(_, run)| run))))
}

/// The runs of the repository `id` that began on `day` (UTC) with their jobs, newest first; `None` if
/// `principal` may not see one.
pub async fn runs_of_day(
    store: &Store,
    principal: &Principal,
    id: &str,
    day: NaiveDate,
) -> store::Result<Option<Vec<(WorkflowRun, Vec<WorkflowJob>)>>> {
    let from: Time = day.and_time(NaiveTime::MIN).and_utc();
    let to = from + TimeDelta::days(1);
    let Some(repo) = find(store, principal, id).await? else { return Ok(None) };
    let read = store.read(move |conn| {
        Box::pin(async move {
            let runs = runs::between(conn, repo.id, from, to, MAX_RUNS).await?;
            let ids = runs.iter().map(|run| run.run_id).collect();
            Ok((runs, runs::jobs_of(conn, ids).await?))
        })
    });
    let (runs, jobs) = read.await?;
    let mut by_run: HashMap<i64, Vec<WorkflowJob>> = HashMap::new();
    for job in jobs {
        by_run.entry(job.run_id).or_default().push(job);
    }
    let with_jobs = |run: WorkflowRun| {
        let jobs = by_run.remove(&run.run_id).unwrap_or_default();
        (run, jobs)
    };
    Ok(Some(runs.into_iter().map(with_jobs).collect()))
}

async fn find(store: &Store, principal: &Principal, id: &str) -> store::Result<Option<Repo>> {
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
    Ok(found.filter(|repo| may_see_repo(principal, &repo.owner, &repo.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::{Capability, Rights};

    #[test]
    fn patterns_that_name_an_account_have_its_rows_read_alone() {
        let read_for = |pattern: &str| {
            let allow = Rights { subscribe: true, ..Rights::default() };
            let caps = [Capability { channels: vec![ChannelPattern::new(pattern)], allow }];
            let visible = visible_to(&Principal { caps: caps.into(), ..Principal::default() });
            (visible.all, visible.owners.iter().cloned().collect::<Vec<_>>().join(" "))
        };
        for (pattern, all, owners) in [
            ("repo:acme/*", false, "acme"),
            ("repo:acme/api", false, "acme"),
            ("repo:acme/*-web*", false, "acme"),
            ("repo:ac*/api", true, ""),
            ("repo:*", true, ""),
            ("re*", true, ""),
            ("*", true, ""),
            ("org:acme", false, ""),
            ("news:*", false, ""),
            ("repo:acme", false, ""),
        ] {
            assert_eq!(read_for(pattern), (all, owners.to_owned()), "{pattern}");
        }
    }
}
