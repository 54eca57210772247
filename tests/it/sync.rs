//! Committed before answered means on the disk before answered. For SQLite the system calls of a
//! process that commits are watched; Postgres is asked how far its log was flushed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use campanile::publish::Committed;
use campanile::store::Location;
use campanile::store::log::{self, Append};
use diesel::sql_types::Text;
use futures_util::FutureExt as _;

use crate::support::store::*;

const COMMITS: usize = 25;
/// Names the folder to work in to the process that is watched.
const FOLDER: &str = "CAMPANILE_IT_WATCHED_FOLDER";

/// Run by itself it only looks whether commits are there after a restart; run by the test below it
/// says on its output, which nobody captures, which commits were answered.
#[test]
fn commits_are_there_after_a_restart() {
    let watched = std::env::var_os(FOLDER).map(PathBuf::from);
    in_folder(async |location| {
        let inside = |folder: &PathBuf| Location::Sqlite { path: folder.join("campanile.db") };
        let location = watched.as_ref().map_or(location, inside);
        let store = TestStore::open(options(location)).await;
        let news = channel("news");
        let (publisher, _, work) = store.idle_publisher();
        let work = tokio::spawn(work);
        for n in 1..=COMMITS {
            let committed = publisher.commit(unit(&news, &n.to_string())).await;
            assert!(matches!(committed, Ok(Committed::Done(_))));
            if watched.is_some() {
                writeln!(std::io::stdout(), "commit {n} was answered").unwrap();
            }
        }
        drop(publisher);
        work.await.unwrap();
        assert_eq!(store.reopen().await.whole_log(&news).await.len(), COMMITS);
    });
}

#[test]
fn sqlite_syncs_each_commit_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls");
    let watched = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync,write", "-e", "signal=none", "-o"])
        .arg(&calls)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "sync::commits_are_there_after_a_restart", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .stdout(Stdio::null())
        .status()
        .expect("strace is installed: run tests/run");
    assert!(watched.success());

    let calls = std::fs::read_to_string(calls).unwrap();
    let (mut syncs, mut answered) = (0, Vec::new());
    for call in calls.lines() {
        // A call that others interrupt ends on a line of its own: `<... fdatasync resumed>) = 0`.
        if (call.contains("fsync") || call.contains("fdatasync")) && call.ends_with("= 0") {
            syncs += 1;
        } else if call.contains("was answered") && !call.contains("resumed>") {
            answered.push(std::mem::take(&mut syncs));
        }
    }
    assert_eq!(answered.len(), COMMITS);
    assert!(answered.iter().all(|syncs| *syncs > 0), "syncs before each answer: {answered:?}");
}

#[test]
fn postgres_flushes_each_commit_before_it_is_answered() {
    on_postgres(async |store| {
        let (news, watcher) = (channel("news"), store.session().await);
        for n in 1..=COMMITS {
            let event = event(&news, &n.to_string());
            let before_commit: String = store
                .write_log(move |mut conn| {
                    async move {
                        log::append(&mut conn, &[Append { events: &[&event], ..log::Append::default() }])
                            .await?;
                        conn.one(diesel::select(diesel::dsl::sql::<Text>(
                            "pg_current_wal_insert_lsn()::text",
                        )))
                        .await
                    }
                    .boxed()
                })
                .await;
            // The commit's own record comes after that place, so the flush has to go beyond it.
            let flushed = format!("SELECT pg_current_wal_flush_lsn() > '{before_commit}'::pg_lsn");
            let flushed: bool = watcher.query_one(&flushed, &[]).await.unwrap().get(0);
            assert!(flushed, "commit {n} was answered before it was on the disk");
        }
    });
}

#[test]
fn postgres_syncs_as_often_as_one_commit_follows_another() {
    on_postgres(async |store| {
        let (news, watcher) = (channel("news"), store.session().await);
        // From version 18 on the number is where all input and output is counted.
        let moved = "SELECT current_setting('server_version_num')::int >= 180000";
        let moved: bool = watcher.query_one(moved, &[]).await.unwrap().get(0);
        let syncs = if moved {
            "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'"
        } else {
            "SELECT wal_sync FROM pg_stat_wal"
        };
        let syncs = async || -> i64 { watcher.query_one(syncs, &[]).await.unwrap().get(0) };
        let before = syncs().await;
        let (publisher, _) = store.publisher();
        for n in 1..=COMMITS {
            let committed = publisher.commit(unit(&news, &n.to_string())).await;
            assert!(matches!(committed, Ok(Committed::Done(_))));
        }
        // Sessions report what they did with a delay.
        eventually("each commit has a sync", async || syncs().await >= before + COMMITS as i64).await;
    });
}
