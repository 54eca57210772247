//! The real binary as a child process, so that it can be killed: with data of its own, secrets by
//! environment and nothing inherited. Its folder and log outlive it.

use std::path::PathBuf;
use std::time::Duration;

use campanile::auth::{NewToken, mint};
use campanile::store::Location;
use testkit::gateway::{self, Launch};

use super::client::{Answer, Request};
use super::store::{eventually, in_schema, runtime};

/// The promise: ready so soon after a crash.
pub const READY_WITHIN: Duration = Duration::from_secs(15);

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
    in_schema(async |location| {
        let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
        test(Home::new(Some(url))).await;
    });
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

    /// The first line of it with `text`: the log is written a little later than what it tells has happened.
    pub async fn log_line(&self, text: &str) -> String {
        let found = || self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        eventually(text, async || found().is_some()).await;
        found().expect("it is there")
    }

    /// Writes `campanile.toml`.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.folder.path().join("campanile.toml"), config).expect("written");
    }

    fn launch(&self, under: &[&str]) -> Launch {
        let fixed = [
            ("CAMPANILE_JWT_SECRET", JWT_SECRET),
            ("CAMPANILE_API_KEY", API_KEY),
            ("GITHUB_WEBHOOK_SECRET", WEBHOOK_SECRET),
            ("CAMPANILE_LOG_FORMAT", "text"),
        ];
        let fixed = fixed.into_iter().map(|(name, value)| (name, value.to_owned()));
        let database = self.database.clone().map(|url| ("DATABASE_URL", url));
        Launch {
            binary: Some(env!("CARGO_BIN_EXE_campanile").into()),
            folder: Some(self.folder.path().to_owned()),
            under: under.iter().map(|word| (*word).to_owned()).collect(),
            environment: fixed.chain(database).chain(self.variables.iter().cloned()).collect(),
            ..Launch::default()
        }
    }
}

#[derive(derive_more::Deref, derive_more::DerefMut)]
pub struct Gateway(gateway::Gateway);

impl Gateway {
    /// Starts a process and waits until it is ready.
    pub async fn start(home: &Home) -> Self {
        Self::start_under(home, &[]).await
    }

    /// Starts it as the argument of another command, which must become the process.
    pub async fn start_under(home: &Home, under: &[&str]) -> Self {
        Self(home.launch(under).start().await.expect("the gateway starts"))
    }

    /// Starts a process that must end by itself; gives its status and what it said.
    pub async fn refused(home: &Home) -> String {
        home.launch(&[]).start().await.err().expect("it does not serve").to_string()
    }

    /// SIGKILL: the process is gone at once, and nothing else ended it.
    pub async fn kill9(mut self) {
        self.kill().await.expect("it is there until it is killed");
    }

    /// SIGTERM, and its end with exit code 0; gives how long that took.
    pub async fn stop(mut self) -> Duration {
        self.terminate().await.expect("it ends with 0")
    }

    /// One request with a token.
    pub async fn get(&self, path: &str) -> Answer {
        Request::get(path).bearer(&token()).send(self.address).await
    }
}
