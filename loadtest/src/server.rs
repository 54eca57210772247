//! The server under load: one that runs already, or (`--spawn`) the release binary started here on
//! a free port with a folder and secrets of its own, and ended by its process id. A spawned server
//! inherits no setting, so that it can never reach a database that someone cares about.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::http::Connection;
use crate::postgres::{Database, Postgres};
use crate::target::Target;
use crate::{cores, process};

/// How long a server may take to be ready, and to drain.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which server to load, in every scenario's options.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
#[group(skip)]
pub struct Options {
    /// The server; only addresses of this machine are accepted.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Start a server for this run, on a free port with its own data directory and secrets.
    #[arg(long, conflicts_with = "url")]
    pub spawn: bool,
    /// The binary to spawn [default: the campanile next to this tool].
    #[arg(long, requires = "spawn", value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// What the spawned server keeps its log in.
    #[arg(long, requires = "spawn", value_enum, default_value = "sqlite", conflicts_with = "database_url")]
    pub database: Database,
    /// The spawned server's DATABASE_URL; what it holds stays.
    #[arg(long, requires = "spawn", value_name = "URL")]
    pub database_url: Option<String>,
    /// The spawned server's REDIS_URL [default: none].
    #[arg(long, requires = "spawn", value_name = "URL")]
    pub redis_url: Option<String>,
    /// Make the spawned server's folder in here, to measure a certain disk [default: the temporary
    /// folder, which may be in memory].
    #[arg(long, requires = "spawn", value_name = "DIR")]
    pub data_in: Option<PathBuf>,
}

/// A server that answers.
pub struct Server {
    /// Where it is.
    pub target: Target,
    spawned: Option<Spawned>,
    /// After the server, which drains into it.
    _postgres: Option<Postgres>,
}

/// A server started here, in a folder of its own.
pub struct Spawned {
    /// Where it is.
    pub target: Target,
    child: Child,
    folder: PathBuf,
    ready_after: Duration,
}

/// How to start a server.
#[derive(Default)]
pub struct Launch<'a> {
    /// The binary, if not the one next to this tool.
    pub binary: Option<&'a Path>,
    /// Where its folder goes, if not among temporary files.
    pub data_in: Option<&'a Path>,
    /// Its `campanile.toml`.
    pub config: Option<&'a str>,
    /// Its secrets and addresses; it inherits nothing but the path.
    pub environment: Vec<(&'static str, String)>,
    /// Options of it, as its environment has them.
    pub settings: &'a [(String, String)],
    /// The one processor core it may use.
    pub core: Option<usize>,
}

impl Options {
    /// Finds the server, or starts it and waits until it is ready.
    pub async fn server(&self) -> Result<Server> {
        if self.spawn {
            return self.start().await;
        }
        let target = Target::resolve(&self.url).await?;
        Ok(Server { target, spawned: None, _postgres: None })
    }

    async fn start(&self) -> Result<Server> {
        let mut environment = vec![
            ("GITHUB_WEBHOOK_SECRET", new_secret()),
            ("CAMPANILE_JWT_SECRET", new_secret()),
            ("CAMPANILE_API_KEY", new_secret()),
        ];
        let (postgres, url) = self.database.start(self.data_in.as_deref(), None).await?.unzip();
        environment.extend(url.or_else(|| self.database_url.clone()).map(|url| ("DATABASE_URL", url)));
        environment.extend(self.redis_url.iter().map(|url| ("REDIS_URL", url.clone())));
        let launch = Launch {
            binary: self.binary.as_deref(),
            data_in: self.data_in.as_deref(),
            environment,
            ..Launch::default()
        };
        let spawned = launch.start().await?;
        let target = spawned.target.clone();
        Ok(Server { target, spawned: Some(spawned), _postgres: postgres })
    }
}

impl Launch<'_> {
    /// Starts the server and waits until it is ready.
    pub async fn start(self) -> Result<Spawned> {
        let binary = self.binary.map_or_else(neighbour, |file| Ok(file.to_owned()))?;
        let binary = binary.canonicalize().with_context(|| {
            format!("no {}: cargo build --release --locked --bin campanile", binary.display())
        })?;
        let folder = self.data_in.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = std::path::absolute(folder)?.join(format!("campanile-loadtest-{}", Uuid::new_v4()));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = std::fs::File::create(folder.join("log"))?;
        if let Some(config) = self.config {
            std::fs::write(folder.join("campanile.toml"), config)?;
        }

        let mut command = Command::new(&binary);
        command.arg("serve").current_dir(&folder).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.settings.iter().cloned());
        command.env("CAMPANILE_LISTEN", address.to_string());
        command.env("CAMPANILE_DATA_DIR", folder.join("data"));
        command.envs(self.environment);

        let began = Instant::now();
        let child = cores::start_on(self.core, command);
        let child = child.with_context(|| format!("cannot start {}", binary.display()))?;
        let target = Target::from(address);
        let mut spawned = Spawned { child, folder, target, ready_after: Duration::ZERO };
        spawned.wait_until_ready(began).await?;
        spawned.ready_after = began.elapsed();
        Ok(spawned)
    }
}

impl Server {
    /// The bytes that a spawned server has in memory.
    pub fn resident(&self) -> Option<u64> {
        process::resident(&self.spawned.as_ref()?.id()?.to_string())
    }

    /// Drains a spawned server and says how long its start and its end took.
    pub async fn finish(self) -> Result<Option<Value>> {
        let Some(mut spawned) = self.spawned else { return Ok(None) };
        let drained = spawned.drain().await?;
        let ready_ms = spawned.ready_after.as_secs_f64() * 1000.0;
        let drain_ms = drained.as_secs_f64() * 1000.0;
        println!("server     ready after {ready_ms:.0} ms, drained in {drain_ms:.0} ms");
        Ok(Some(json!({ "ready_ms": ready_ms, "drain_ms": drain_ms })))
    }
}

impl Spawned {
    /// Its process id, while it lives.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    async fn wait_until_ready(&mut self, began: Instant) -> Result<()> {
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\n\r\n", self.target.host);
        let mut body = Vec::new();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.last_words());
            }
            let mut connection = Connection::to(&self.target);
            if matches!(connection.exchange(request.as_bytes(), &mut body).await, Ok(200)) {
                return Ok(());
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("the server was not ready after {PATIENCE:?}:\n{}", self.last_words())
    }

    /// SIGTERM, and the wait for exit status 0.
    pub async fn drain(&mut self) -> Result<Duration> {
        let pid = self.child.id().with_context(|| format!("the server died:\n{}", self.last_words()))?;
        let began = Instant::now();
        // The shell's own kill, because a signal from here would take unsafe code.
        let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid.to_string()]).status().await?;
        ensure!(sent.success(), "the server is gone:\n{}", self.last_words());
        let status = timeout(PATIENCE, self.child.wait()).await.context("the server does not drain")??;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.last_words());
        Ok(began.elapsed())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // The process itself goes with `child` (kill_on_drop), if it has not gone before.
        let _ = self.child.start_kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A secret that nobody guesses, for one run.
pub fn new_secret() -> String {
    Uuid::new_v4().simple().to_string().repeat(2)
}

/// The campanile next to this tool.
pub fn neighbour() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    Ok(here.parent().unwrap_or(Path::new(".")).join("campanile"))
}
