//! What goes wrong with a store while it is used: the call says so, nothing half done is left
//! behind, and the next call works again.

use std::time::{Duration, Instant};

use campanile::publish::{Apply, Committed, PublishError, UnitOfWork, Verdict};
use campanile::store::{Location, Options, Result, StoreError, Transaction};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use testkit::proxy::{Link, Proxy};

use crate::support::database::Database;
use crate::support::store::*;

on_both![work_that_panics_harms_only_itself, a_unit_that_panics_fails_alone];

async fn work_that_panics_harms_only_itself(store: TestStore) {
    let news = channel("news");
    for _ in 0..2 {
        let inner = store.store.clone();
        let write = tokio::spawn(async move {
            inner
                .write(|conn| {
                    async move {
                        conn.execute(diesel::sql_query("DELETE FROM meta")).await?;
                        panic!("in the middle of a transaction")
                    }
                    .boxed()
                })
                .await
        });
        let ended: Result<Result<()>, _> = write.await;
        assert!(matches!(ended, Ok(Err(StoreError::Failed(_)))), "{ended:?}");
        store.fill(&news, 1).await;
    }
    assert_eq!((store.whole_log(&news).await.len(), store.count("meta").await), (2, 2));
}

struct Panics;

impl Apply for Panics {
    fn apply<'a>(&'a self, _: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<Verdict>> {
        async { panic!("in the middle of a unit") }.boxed()
    }
}

async fn a_unit_that_panics_fails_alone(store: TestStore) {
    let news = channel("news");
    for round in 0..2 {
        let bad = UnitOfWork { apply: Some(Box::new(Panics)), ..unit(&news, "0") };
        let outcomes = store.commit_together(vec![unit(&news, "1"), bad, unit(&news, "2")]).await;
        let [Ok(Committed::Done(first)), Err(PublishError::Failed(_)), Ok(Committed::Done(last))] =
            &outcomes[..]
        else {
            panic!("{outcomes:?}")
        };
        assert_eq!((first[0].offset, last[0].offset), (2 * round + 1, 2 * round + 2));
    }
}

#[test]
fn a_full_disk_stops_sqlite_only_until_there_is_room() {
    on_sqlite(async |store| {
        let news = channel("news");
        store.fill(&news, 1).await;
        let limit = async |pages: i64| {
            let pragma = format!("PRAGMA max_page_count = {pages}");
            store.write(move |conn| conn.execute(diesel::sql_query(pragma))).await
        };
        let pages = store.number("SELECT page_count AS number FROM pragma_page_count".into()).await;
        let large = format!("\"{}\"", "x".repeat(1 << 20));
        for _ in 0..3 {
            // The limit is the connection's, so it ends with each connection that is replaced.
            limit(pages + 10).await;
            let full = store.commit_together(vec![unit(&news, &large)]).await.remove(0);
            assert!(matches!(full, Err(PublishError::Unconfirmed(_))), "{full:?}");
        }
        limit(pages + 10).await;
        let small = store.commit(unit(&news, "2")).await;
        assert!(matches!(small, Committed::Done(_)), "what is small still fits");
        limit(1 << 20).await;
        assert!(matches!(store.commit(unit(&news, &large)).await, Committed::Done(_)));
        assert_eq!(store.whole_log(&news).await.len(), 3);
    });
}

#[test]
fn work_that_waits_on_sqlite_is_refused_and_leaves_no_transaction_open() {
    on_sqlite(async |store| {
        let waits = store.store.write(|conn| {
            async move {
                conn.execute(diesel::sql_query("DELETE FROM meta")).await?;
                tokio::task::yield_now().await;
                Ok(())
            }
            .boxed()
        });
        assert!(matches!(waits.await, Err(StoreError::Failed(_))));
        store.fill(&channel("news"), 1).await;
        assert_eq!(store.count("meta").await, 2);
    });
}

#[test]
fn a_sqlite_file_that_another_holds_is_unavailable_until_it_lets_go() {
    in_folder(async |location| {
        let deadline = Duration::from_millis(300);
        let store = TestStore::open(Options { deadline, ..options(location) }).await;
        let news = channel("news");
        let mut other = SqliteConnection::establish(&store.file().to_string_lossy()).unwrap();
        other.batch_execute("BEGIN IMMEDIATE").unwrap();
        let began = Instant::now();
        let blocked = store.commit_together(vec![unit(&news, "1")]).await.remove(0);
        assert!(matches!(blocked, Err(PublishError::Unconfirmed(_))), "{blocked:?}");
        assert!(began.elapsed() < Duration::from_secs(4));
        assert!(!*store.store.health().borrow());
        other.batch_execute("ROLLBACK").unwrap();
        eventually("the store answers again", async || store.store.probe().await.is_ok()).await;
        // The one that nobody waited for may have been committed: retries carry a key.
        eventually("it commits again", async || {
            store.commit_together(vec![unit(&news, "2")]).await.remove(0).is_ok()
        })
        .await;
        store.whole_log(&news).await;
        assert!(*store.store.health().borrow());
    });
}

#[test]
fn callers_hear_in_time_of_a_disk_that_holds_up_the_publisher_too() {
    in_folder(async |location| {
        let deadline = Duration::from_millis(300);
        let store = TestStore::open(Options { deadline, ..options(location) }).await;
        let news = channel("news");
        let (publisher, recorded, work) = store.idle_publisher();
        let publishing = store.store.writing_thread().expect("SQLite has one").spawn(work);
        let (holds, held) = std::sync::mpsc::channel::<()>();
        let (began, begun) = tokio::sync::oneshot::channel();
        let writer = store.store.clone();
        let disk = tokio::spawn(async move {
            writer
                .write(move |_| {
                    let _ = began.send(());
                    let _ = held.recv();
                    async { Ok(()) }.boxed()
                })
                .await
        });
        begun.await.expect("the writer is held up");
        let since = Instant::now();
        let blocked = publisher.commit(unit(&news, "1")).await;
        assert!(matches!(blocked, Err(PublishError::Unconfirmed(_))), "{blocked:?}");
        assert!(since.elapsed() < 10 * deadline);
        assert!(!*store.store.health().borrow());
        assert!(matches!(disk.await.expect("no panic"), Err(StoreError::Unavailable(_))));

        // What was taken is committed once the disk answers, and announced.
        drop(holds);
        let next = publisher.commit(unit(&news, "2")).await.expect("it commits again");
        let Committed::Done(positions) = next else { panic!("{next:?}") };
        assert_eq!(positions[0].offset, 2);
        assert_eq!(recorded.logged(&news).len(), 2);
        drop(publisher);
        publishing.await.expect("it ends with its last handle");
    });
}

#[test]
fn a_commit_that_waits_too_long_for_a_row_is_unconfirmed_and_its_channel_checked() {
    in_schema(async |location| {
        let deadline = Duration::from_millis(400);
        let store = TestStore::open(Options { deadline, pool_size: 2, ..options(location) }).await;
        let (news, other) = (channel("news"), channel("other"));
        store.fill(&news, 1).await;
        let holder = store.session().await;
        holder.batch_execute("BEGIN; SELECT FROM channels WHERE name = 'news' FOR UPDATE").await.unwrap();

        let (publisher, recorded) = store.publisher();
        let began = Instant::now();
        let blocked = publisher.commit(unit(&news, "2")).await;
        assert!(matches!(blocked, Err(PublishError::Unconfirmed(_))), "{blocked:?}");
        assert!(began.elapsed() < 4 * deadline);
        assert_eq!(recorded.checks(), std::slice::from_ref(&news));
        assert!(!*store.store.health().borrow());

        // More that are blocked than there are connections: the rest waits in vain, but is told.
        let blocked = futures_util::future::join_all((0..6).map(|_| {
            let writer = store.store.clone();
            async move {
                let row = "UPDATE channels SET version = 1 WHERE name = 'news'";
                writer.write(move |conn| conn.execute(diesel::sql_query(row))).await
            }
        }));
        assert!(blocked.await.iter().all(|done| matches!(done, Err(StoreError::Unavailable(_)))));

        holder.batch_execute("COMMIT").await.unwrap();
        for n in 2..=9 {
            let committed =
                publisher.commit(UnitOfWork::of(vec![event(&news, "1"), event(&other, "1")])).await;
            let Ok(Committed::Done(positions)) = committed else { panic!("{committed:?}") };
            assert_eq!(positions[0].offset, n, "what was cut off has left nothing");
        }
        assert!(store.store.ready().await, "a probe finds out that all is well again");
    });
}

#[test]
fn a_server_that_restarts_costs_no_call_after_it_is_back() {
    on_postgres(async |store| {
        let news = channel("news");
        // As many calls at once as there are connections.
        let busy =
            || {
                futures_util::future::join_all((0..8).map(|_| {
                    let reader = store.store.clone();
                    async move {
                        reader.read(|conn| conn.execute(diesel::sql_query("SELECT pg_sleep(0.05)"))).await
                    }
                }))
            };
        for _ in 0..2 {
            assert!(busy().await.iter().all(Result::is_ok));
            store.end_sessions().await;
            let mut failed = 0;
            eventually("the store answers", async || {
                let answers = store.store.probe().await.is_ok();
                failed += usize::from(!answers);
                answers
            })
            .await;
            // The news of the end may be on its way for the first.
            assert!(failed <= 2, "{failed} calls got a connection that was known to be dead");
            let after = busy().await;
            assert!(after.iter().all(Result::is_ok), "{after:?}");
            store.fill(&news, 1).await;
        }
        store.whole_log(&news).await;
    });
}

#[test]
fn a_server_that_takes_no_connections_is_missed_at_once_and_used_at_once_when_it_does() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = &location else { panic!("a schema is Postgres's") };
        let proxy = Proxy::to(Database::server()).await.expect("a proxy");
        let through = url.replace(&Database::server().to_string(), &proxy.address.to_string());
        let location = Location::Postgres { url: through, direct_url: Some(url.clone()) };
        // Nobody here waits for so long.
        let store =
            TestStore::open(Options { deadline: Duration::from_secs(600), ..options(location) }).await;
        let (news, (publisher, _)) = (channel("news"), store.publisher());
        store.fill(&news, 1).await;
        for n in 0..3 {
            proxy.set(Link::Refused);
            for _ in 0..12 {
                let refused = publisher.commit(unit(&news, "1")).await;
                assert!(matches!(refused, Err(PublishError::Unconfirmed(_))), "{refused:?}");
            }
            proxy.set(Link::Open);
            let committed = publisher.commit(unit(&news, "2")).await;
            let Ok(Committed::Done(positions)) = committed else { panic!("{committed:?}") };
            assert_eq!(positions[0].offset, n + 2);
        }
    });
}

#[test]
fn the_first_commit_after_a_failover_is_in_the_new_history() {
    on_postgres(async |store| {
        let news = channel("news");
        let (publisher, recorded) = store.publisher();
        let server = store.session().await;
        let after = commit_after_failover(&publisher, &news, &server, store.end_sessions()).await;
        assert_eq!(after, store.head(&news).await);
        assert_eq!(recorded.logged(&news).last().unwrap().0, after.epoch);
    });
}
