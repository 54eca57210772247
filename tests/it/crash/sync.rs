//! Watches the system calls of the real thing: before a webhook is answered, its commit has left
//! the operating system's memory. A killed process proves nothing about that, because the page
//! cache outlives it; without syncing, this fails. SQLite is watched in the gateway itself,
//! Postgres in a server of its own, where nobody else's syncs can be mistaken for ours.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::flood::Book;
use crate::support::process::{Gateway, Home, session, with_setting};

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
    assert_eq!(gateway.terminate().await.0, Some(0));
    assert_eq!(synced(&trace, "campanile.db-wal", "\"HTTP/1.1 202 "), POSTS, "answers after a sync");
}

#[tokio::test]
async fn postgres_syncs_its_log_before_each_answer() {
    let mut server = Server::start().await;
    let home = Home::new(Some(server.url.clone()));
    let careless = Home::new(Some(with_setting(&server.url, "synchronous_commit", "off")))
        .with("CAMPANILE_STORE__ALLOW_DATA_LOSS", "true");
    let book = Arc::new(Book::default());
    let mut commits = Vec::new();
    for home in [&home, &careless] {
        let gateway = Gateway::start(home).await;
        // Opening has committed and synced things of its own.
        let opened = server.synced_commits();
        book.post_new(gateway.address, POSTS).await;
        gateway.kill9().await;
        commits.push(server.synced_commits() - opened);
    }
    assert!(commits[0] >= POSTS, "commits confirmed after a sync: {commits:?}");
    assert!(commits[1] < POSTS / 5, "without syncing this fails, as it must: {commits:?}");
    server.stop();
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

/// A Postgres for one test, watched. It listens on a socket in its folder and nowhere else.
struct Server {
    folder: TempDir,
    child: Child,
    url: String,
}

impl Server {
    /// Starts one of the same version as the tests' Postgres.
    async fn start() -> Self {
        let shared = std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL is missing: run tests/run");
        let query = "SELECT setting FROM pg_config WHERE name = 'BINDIR'";
        let row = session(&shared).await.query_one(query, &[]).await.expect("Postgres knows its place");
        let programs = PathBuf::from(row.get::<_, String>(0));

        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = ordinary_user();
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).expect("root may give things away");
        }
        let data = folder.path().join("data");
        let prepare = |mut command: Command| {
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
            let log = std::fs::File::options().create(true).append(true).open(folder.path().join("log"));
            command.stderr(log.expect("a log"));
            if let Some((user, group)) = user {
                command.uid(user).gid(group);
            }
            command
        };
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        let made = prepare(initdb).arg("--no-sync").arg("--pgdata").arg(&data).status();
        assert!(made.expect("initdb runs").success(), "{}", log(&folder));

        let strace = watching("--trace=fdatasync,fsync,pwrite64,sendto", &folder.path().join("trace"));
        let mut server = Command::new(&strace[0]);
        server.args(&strace[1..]).arg(programs.join("postgres")).arg("-D").arg(&data);
        // The WAL writer shall not sync by itself while the test runs.
        let sockets = format!("unix_socket_directories={}", folder.path().display());
        for setting in ["listen_addresses=", &sockets, "wal_writer_delay=10s", "autovacuum=off"] {
            server.args(["-c", setting]);
        }
        let url = format!("postgres://postgres@/postgres?host={}", folder.path().display());
        let child = prepare(server).spawn().expect("strace starts: is it installed?");
        let mut server = Self { folder, child, url };
        server.wait().await;
        server
    }

    async fn wait(&mut self) {
        let ready = || log(&self.folder).contains("ready to accept connections");
        for _ in 0..3000 {
            if ready() {
                return;
            }
            let ended = self.child.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "Postgres ended:\n{}", log(&self.folder));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("Postgres does not start:\n{}", log(&self.folder));
    }

    /// Commits that were confirmed to a client after a sync of the WAL.
    fn synced_commits(&self) -> u64 {
        synced(&self.folder.path().join("trace"), "/pg_wal/", "\"C\\0\\0\\0\\vCOMMIT")
    }

    fn stop(&mut self) {
        let pid = self.child.id().to_string();
        // "Immediate": nothing here is kept.
        let sent = Command::new("sh").args(["-c", "kill -QUIT \"$0\"", &pid]).status();
        assert!(sent.expect("a shell").success(), "Postgres is there");
        self.child.wait().expect("Postgres ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", log(&self.folder));
        }
        // Its own children see that it is gone, and go.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(folder: &TempDir) -> String {
    std::fs::read_to_string(folder.path().join("log")).unwrap_or_default()
}

/// Postgres refuses root: then it runs as another user, with its group.
fn ordinary_user() -> Option<(u32, u32)> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let fields: Vec<&str> = users
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.collect::<Vec<_>>()))?;
        Some((fields[1].parse().ok()?, fields[2].parse().ok()?))
    };
    root.then(|| find("postgres").or_else(|| find("nobody")).expect("a user for Postgres"))
}
