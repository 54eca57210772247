//! Workflow runs and jobs: deliveries come in any order, rows never go back.

use campanile::domain::event::Time;
use campanile::domain::workflow::{WorkflowJob, WorkflowRun, advances, status_rank};
use campanile::store::repos::id_of;
use campanile::store::runs;
use futures_util::FutureExt as _;

use crate::support::store::*;

on_both![
    a_run_ends_the_same_in_whatever_order_its_deliveries_come,
    a_job_ends_the_same_in_whatever_order_its_deliveries_come,
    runs_are_found_by_when_they_began,
    the_newest_run_of_each_repository_is_found,
];

const REPO: i64 = 7;

fn at(secs: i64) -> Time {
    Time::from_timestamp(1_700_000_000 + secs, 0).unwrap()
}

fn run(run_id: i64, attempt: i32, status: &str, updated: i64) -> WorkflowRun {
    WorkflowRun {
        run_id,
        workflow_id: 1,
        workflow_name: Some("CI".into()),
        run_number: Some(42),
        status: status.into(),
        conclusion: (status == "completed").then(|| "success".into()),
        event: Some("push".into()),
        branch: Some("main".into()),
        commit_sha: Some("c0ffee".into()),
        attempt,
        url: None,
        created_at: Some(at(1000)),
        started_at: Some(at(1000 * i64::from(attempt))),
        updated_at: Some(at(updated)),
    }
}

fn job(job_id: i64, attempt: i32, status: &str, steps: &str) -> WorkflowJob {
    WorkflowJob {
        job_id,
        run_id: 1,
        attempt,
        name: "test".into(),
        workflow_name: None,
        status: status.into(),
        conclusion: (status == "completed").then(|| "failure".into()),
        branch: None,
        commit_sha: None,
        url: None,
        steps: steps.into(),
        started_at: (status_rank(status) > 0).then(|| at(1)),
        completed_at: (status == "completed").then(|| at(2)),
    }
}

/// Calls `visit` with every order of `items`.
fn permutations<T: Clone>(items: &[T], visit: &mut impl FnMut(&[T])) {
    fn go<T: Clone>(items: &mut Vec<T>, done: usize, visit: &mut impl FnMut(&[T])) {
        if done == items.len() {
            return visit(items);
        }
        for i in done..items.len() {
            items.swap(done, i);
            go(items, done + 1, visit);
            items.swap(done, i);
        }
    }
    go(&mut items.to_vec(), 0, visit);
}

async fn began_between(store: &TestStore, from: i64, to: i64) -> Vec<WorkflowRun> {
    let repo = id_of(REPO);
    store.read(move |conn| runs::between(conn, repo, at(from), at(to), 1000).boxed()).await
}

async fn a_run_ends_the_same_in_whatever_order_its_deliveries_come(store: TestStore) {
    let said = [
        run(0, 1, "requested", 1000),
        run(0, 1, "in_progress", 1003),
        run(0, 1, "completed", 1002),
        run(0, 2, "queued", 2000),
        run(0, 2, "in_progress", 2001),
    ];
    let mut orders = Vec::new();
    permutations(&said, &mut |order| orders.push(order.to_vec()));
    let now = store.store.timestamp();
    let count = orders.len() as i64;
    store
        .write(move |conn| {
            async move {
                for (run_id, order) in (1..).zip(&orders) {
                    let mut furthest = None;
                    for state in order {
                        let state = WorkflowRun { run_id, ..state.clone() };
                        runs::record(conn, std::iter::once((id_of(REPO), state.clone())), now).await?;
                        if furthest.is_none_or(|stored| advances(stored, state.progress())) {
                            furthest = Some(state.progress());
                        }
                        let row = runs::newest_of(conn, &[id_of(REPO)]).await?.remove(0).1;
                        let stored = (row.attempt, status_rank(&row.status), row.updated_at);
                        assert_eq!((row.run_id, Some(stored)), (run_id, furthest));
                    }
                }
                Ok(())
            }
            .boxed()
        })
        .await;

    let mut rows = began_between(&store, 1000, 1001).await;
    assert_eq!(rows.len() as i64, count, "a run began with its first attempt");
    rows.iter_mut().for_each(|row| row.run_id = 0);
    assert!(rows.iter().all(|row| *row == rows[0]));
    let last = said.last().unwrap();
    assert_eq!((rows[0].attempt, &rows[0].status), (last.attempt, &last.status));
    assert_eq!((rows[0].conclusion.as_ref(), rows[0].started_at), (None, last.started_at));
}

async fn a_job_ends_the_same_in_whatever_order_its_deliveries_come(store: TestStore) {
    let said = [
        job(0, 1, "queued", "[]"),
        job(0, 1, "waiting", "[]"),
        job(0, 1, "in_progress", "[1]"),
        job(0, 1, "completed", "[1,2]"),
    ];
    let mut orders = Vec::new();
    permutations(&said, &mut |order| orders.push(order.to_vec()));
    let jobs: Vec<WorkflowJob> = store
        .write(move |conn| {
            async move {
                for (job_id, order) in (1..).zip(&orders) {
                    let mut rank = 0;
                    for state in order {
                        runs::record_jobs(
                            conn,
                            std::iter::once((id_of(REPO), WorkflowJob { job_id, ..state.clone() })),
                        )
                        .await?;
                        rank = rank.max(status_rank(&state.status));
                        let row = runs::jobs_of(conn, vec![1]).await?.pop().unwrap();
                        assert_eq!((row.job_id, status_rank(&row.status)), (job_id, rank));
                    }
                }
                runs::jobs_of(conn, vec![1, 2]).await
            }
            .boxed()
        })
        .await;
    assert_eq!(jobs.len(), 24);
    for job in &jobs {
        assert_eq!((job.status.as_str(), job.steps.as_str()), ("completed", "[1,2]"));
        assert_eq!((job.started_at, job.completed_at), (Some(at(1)), Some(at(2))));
    }
    assert!(jobs.is_sorted_by_key(|job| job.job_id));
}

async fn runs_are_found_by_when_they_began(store: TestStore) {
    let now = store.store.timestamp();
    let said = [(1, 10), (2, 20), (3, 20), (4, 30)]
        .map(|(id, started)| WorkflowRun { created_at: Some(at(started)), ..run(id, 1, "queued", 0) });
    store
        .write(move |conn| {
            async move {
                for state in &said {
                    runs::record(conn, std::iter::once((id_of(REPO), state.clone())), now).await?;
                }
                runs::record(
                    conn,
                    std::iter::once((id_of(REPO + 1), WorkflowRun { run_id: 5, ..said[1].clone() })),
                    now,
                )
                .await
            }
            .boxed()
        })
        .await;
    let found = async |from, to| {
        began_between(&store, from, to).await.iter().map(|run| run.run_id).collect::<Vec<_>>()
    };
    assert_eq!(found(10, 31).await, [4, 3, 2, 1], "newest first");
    assert_eq!(found(10, 20).await, [1], "the end does not belong to it");
    assert_eq!(found(20, 30).await, [3, 2]);
    let repo = id_of(REPO);
    let two = store.read(move |conn| runs::between(conn, repo, at(0), at(99), 2).boxed()).await;
    assert_eq!(two.iter().map(|run| run.run_id).collect::<Vec<_>>(), [4, 3]);
}

async fn the_newest_run_of_each_repository_is_found(store: TestStore) {
    let now = store.store.timestamp();
    store
        .write(move |conn| {
            async move {
                for (repo, run_id) in [(1, 10), (1, 12), (1, 11), (2, 5), (3, 99)] {
                    runs::record(conn, std::iter::once((id_of(repo), run(run_id, 1, "queued", 0))), now)
                        .await?;
                }
                Ok(())
            }
            .boxed()
        })
        .await;
    let asked = [1, 2, 4].map(id_of);
    let found = store.read(move |conn| async move { runs::newest_of(conn, &asked).await }.boxed()).await;
    let mut found: Vec<_> = found.iter().map(|(repo, run)| (run.run_id, *repo)).collect();
    found.sort();
    assert_eq!(found, [(5, id_of(2)), (12, id_of(1))]);
}
