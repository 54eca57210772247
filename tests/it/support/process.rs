//! The real binary as a child process, so that it can be killed: with data of its own, secrets by
//! environment and nothing inherited. It listens on a port that the system chose and says which
//! in its log; the log is kept over restarts and shown when the test fails. The child is ended by
//! its own process id, at the latest when its [`Gateway`] is dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use campanile::auth::{NewToken, mint};
use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::wire::Wire;

/// The promise: ready so soon after a crash.
pub const READY_WITHIN: Duration = Duration::from_secs(15);
/// For everything else that a process has to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a process or its port.
const LOOK: Duration = Duration::from_millis(3);

pub const JWT_SECRET: &str = "a-secret-for-tokens-of-the-crash-tests";
pub const API_KEY: &str = "a-key-of-the-crash-tests";
pub const WEBHOOK_SECRET: &str = "a-secret-for-webhooks-of-the-crash-tests";

/// What outlives a process: its folder, its database, its log.
pub struct Home {
    folder: tempfile::TempDir,
    database: Option<String>,
    variables: Vec<(&'static str, String)>,
}

/// Runs `test` with an empty data folder.
pub fn on_sqlite(test: impl AsyncFnOnce(Home)) {
    runtime().block_on(test(Home::new(None)));
}

/// Runs `test` with an empty schema in the tests' Postgres, and takes it away afterwards.
pub fn on_postgres(test: impl AsyncFnOnce(Home)) {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let server = std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL is missing: run tests/run");
    let schema = format!("crash_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    runtime().block_on(async {
        let admin = session(&server).await;
        admin.batch_execute(&format!("CREATE SCHEMA {schema}")).await.expect("a schema of its own");
        let home = Home::new(Some(with_setting(&server, "search_path", &schema)));
        let outcome = AssertUnwindSafe(test(home)).catch_unwind().await;
        let dropped = admin.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await;
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        dropped.expect("the schema can be dropped");
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// `url` with a setting that all its sessions begin with.
pub fn with_setting(url: &str, name: &str, value: &str) -> String {
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}options=-c{name}%3D{value}")
}

/// A session on Postgres beside the gateway's own.
pub async fn session(url: &str) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("Postgres answers");
    tokio::spawn(connection);
    client
}

/// A token for `GET` on everything of `acme`.
pub fn token() -> String {
    let token = NewToken { user: "ana".into(), orgs: vec!["acme".into()], ..NewToken::default() };
    mint(JWT_SECRET, &token, chrono::Utc::now()).expect("a token")
}

impl Home {
    /// An empty home on the Postgres at `database`, or else on SQLite.
    pub fn new(database: Option<String>) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), database, variables: Vec::new() }
    }

    /// The same with one more variable.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// `None` on SQLite.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// What all processes at this home have said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self, before: &[&str]) -> Child {
        let mut words = before.iter().copied().chain([env!("CARGO_BIN_EXE_campanile"), "serve"]);
        let mut command = Command::new(words.next().expect("a program"));
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"));
        command.args(words).current_dir(self.folder.path()).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log"));
        command.env("CAMPANILE_LISTEN", "127.0.0.1:0").env("CAMPANILE_DATA_DIR", self.data());
        command.env("CAMPANILE_JWT_SECRET", JWT_SECRET).env("CAMPANILE_API_KEY", API_KEY);
        command.env("GITHUB_WEBHOOK_SECRET", WEBHOOK_SECRET).env("CAMPANILE_LOG_FORMAT", "text");
        command.envs(self.database.iter().map(|url| ("DATABASE_URL", url)));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.spawn().expect("the process starts")
    }
}

/// A process that serves.
pub struct Gateway<'h> {
    home: &'h Home,
    child: Child,
    pub address: SocketAddr,
    /// How long it took from its start to the first 200 of `/readyz`.
    pub ready_after: Duration,
}

impl<'h> Gateway<'h> {
    /// Starts a process and waits until it is ready.
    pub async fn start(home: &'h Home) -> Self {
        Self::start_under(home, &[]).await
    }

    /// Starts it as the argument of another command, which must become the process.
    pub async fn start_under(home: &'h Home, before: &[&str]) -> Self {
        let (began, said) = (Instant::now(), home.log().len());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let child = home.spawn(before);
        let mut gateway = Self { home, child, address: nowhere, ready_after: Duration::ZERO };
        while !gateway.is_ready(said).await {
            if let Some(status) = gateway.child.try_wait().expect("a child can be asked") {
                panic!("the gateway ended with {status}");
            }
            assert!(began.elapsed() < PATIENCE, "the gateway is not ready");
            sleep(LOOK).await;
        }
        gateway.ready_after = began.elapsed();
        gateway
    }

    /// Starts a process that must end by itself; gives its exit code and what was said.
    pub async fn refused(home: &Home) -> (Option<i32>, String) {
        let said = home.log().len();
        let mut child = Ended(home.spawn(&[]));
        let status = wait(&mut child.0).await;
        (status.code(), home.log()[said..].to_owned())
    }

    /// The log names the address before the port answers.
    async fn is_ready(&mut self, said: usize) -> bool {
        if self.address.port() == 0 {
            let log = self.home.log();
            let Some(line) = log[said..].lines().find(|line| line.contains(" listening ")) else {
                return false;
            };
            let address = line.split("address=").nth(1).and_then(|rest| rest.split(' ').next());
            self.address = address.and_then(|text| text.parse().ok()).expect("the log names the address");
        }
        let Ok(mut wire) = Wire::to(self.address).await else { return false };
        wire.ask("GET /readyz", "", "").await.is_ok_and(|answer| answer.status == 200)
    }

    /// SIGKILL: the process is gone at once.
    pub async fn kill9(mut self) {
        self.child.kill().expect("the process was there");
        assert_eq!(wait(&mut self.child).await.signal(), Some(9), "nothing else ended it");
    }

    /// SIGTERM; gives the exit code and how long the end took.
    pub async fn terminate(mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        self.signal("TERM");
        (wait(&mut self.child).await.code(), began.elapsed())
    }

    /// Waits for its end; gives the exit code.
    pub async fn ended(mut self) -> Option<i32> {
        wait(&mut self.child).await.code()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name: with the shell's own `kill`, as one from here takes unsafe code.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &pid]).status();
        assert!(sent.expect("a shell").success(), "the process is there");
    }

    /// One request on a connection of its own.
    pub async fn get(&self, path: &str) -> super::wire::Answer {
        let mut wire = Wire::to(self.address).await.expect("the gateway accepts");
        let token = format!("Authorization: Bearer {}\r\n", token());
        wire.ask(&format!("GET {path}"), &token, "").await.expect("an answer")
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        // It may have ended before: then there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.home.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the gateway's log:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// Killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the end of a process.
pub async fn wait(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be asked") {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "the process does not end");
        sleep(LOOK).await;
    }
}
