//! Watches the system calls of the real thing: before a webhook is answered, its commit has left
//! the operating system's memory. A killed process proves nothing about that, because the page
//! cache outlives it; without syncing, this fails. SQLite is watched in the gateway itself,
//! Postgres in a server of its own, where nobody else's syncs can be mistaken for ours.

use std::path::Path;
use std::sync::Arc;

use testkit::postgres::Postgres;

use super::flood::Book;
use crate::support::process::{Gateway, Home};
use crate::support::store::with_setting;

const POSTS: u64 = 25;

#[tokio::test]
async fn sqlite_syncs_the_log_before_each_answer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    let home = Home::new(None);
    let calls = "--trace=fdatasync,fsync,pwrite64,sendto,write,writev";
    let strace = watching(calls, &trace);
    let strace: Vec<&str> = strace.iter().map(String::as_str).collect();
    let gateway = Gateway::start_under(&home, &strace).await;
    let book = Arc::new(Book::default());
    book.post_new(gateway.address, POSTS).await;
    gateway.stop().await;
    assert_eq!(synced(&trace, "campanile.db-wal", "\"HTTP/1.1 202 "), POSTS, "answers after a sync");
}

#[tokio::test]
async fn postgres_syncs_its_log_before_each_answer() {
    // The WAL writer shall not sync by itself while the test runs.
    let settings = ["wal_writer_delay=10s", "autovacuum=off"];
    let strace = watching("--trace=fdatasync,fsync,pwrite64,sendto", Path::new("trace"));
    let server = Postgres::start_under(&strace, &settings).await.expect("strace starts: is it installed?");
    // Commits that were confirmed to a client after a sync of the WAL.
    let synced_commits = || synced(&server.folder().join("trace"), "/pg_wal/", "\"C\\0\\0\\0\\vCOMMIT");
    let url = server.url("postgres");
    let careless = Home::new(Some(with_setting(&url, "synchronous_commit", "off")))
        .with("CAMPANILE_STORE__ALLOW_DATA_LOSS", "true");
    let home = Home::new(Some(url));
    let book = Arc::new(Book::default());
    let mut commits = Vec::new();
    for home in [&home, &careless] {
        let gateway = Gateway::start(home).await;
        // Opening has committed and synced things of its own.
        let opened = synced_commits();
        book.post_new(gateway.address, POSTS).await;
        gateway.kill9().await;
        commits.push(synced_commits() - opened);
    }
    assert!(commits[0] >= POSTS, "commits confirmed after a sync: {commits:?}");
    assert!(commits[1] < POSTS / 5, "without syncing this fails, as it must: {commits:?}");
}

/// How `strace` writes the calls of a command and of all its children to a file, and leaves the
/// command in its own place.
fn watching(calls: &str, trace: &Path) -> Vec<String> {
    let trace = trace.to_string_lossy();
    ["strace", "-D", "-f", "-y", "-s", "32", calls, "-o", &trace].map(str::to_owned).to_vec()
}

/// How often `answer` was sent when a sync of the files whose path contains `log` had been completed
/// since the answer before, and nothing was written to them after it. The trace has the calls of
/// all threads in the order of their happening; a call that others overtake is in two lines.
fn synced(trace: &Path, log: &str, answer: &str) -> u64 {
    let text = std::fs::read_to_string(trace).expect("a trace: is strace installed?");
    let (mut syncing, mut synced, mut answers) = (Vec::new(), false, 0);
    for line in text.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let is_sync = call.starts_with("fdatasync(") || call.starts_with("fsync(");
        if is_sync && call.contains(log) {
            match call.ends_with("= 0") {
                true => synced = true,
                false => syncing.push(process),
            }
        } else if call.starts_with("<... ") && call.contains("sync resumed") && call.ends_with("= 0") {
            synced |= syncing.contains(&process);
            syncing.retain(|other| *other != process);
        } else if call.starts_with("pwrite64(") && call.contains(log) {
            synced = false;
        } else if call.contains(answer) {
            answers += u64::from(std::mem::take(&mut synced));
        }
    }
    answers
}
