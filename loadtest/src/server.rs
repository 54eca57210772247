//! The server under load: one that runs already, or (`--spawn`) the release binary started here on
//! a free port with a folder and secrets of its own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use testkit::gateway::{Gateway, Launch, new_secret};
use testkit::postgres::Postgres;
use testkit::process;
use testkit::target::Target;

/// What a gateway that is started here keeps its log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Database {
    /// A file in the gateway's folder.
    Sqlite,
    /// A server started for the run, with an empty database. It shares the gateway's core.
    Postgres,
}

impl Database {
    /// Starts the server and makes the gateway's database, if this is one with a server.
    pub async fn start(
        self,
        parent: Option<&Path>,
        core: Option<usize>,
    ) -> Result<Option<(Postgres, String)>> {
        if self == Self::Sqlite {
            return Ok(None);
        }
        let server = Postgres::start_in(parent, &[], core).await?;
        let url = server.create_database("campanile").await?;
        Ok(Some((server, url)))
    }
}

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
    spawned: Option<Gateway>,
    /// After the server, which drains into it.
    _postgres: Option<Postgres>,
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
            binary: self.binary.clone(),
            parent: self.data_in.clone(),
            environment,
            ..Launch::default()
        };
        let spawned = launch.start().await?;
        let target = spawned.target();
        Ok(Server { target, spawned: Some(spawned), _postgres: postgres })
    }
}

impl Server {
    /// The bytes that a spawned server has in memory.
    pub fn resident(&self) -> Option<u64> {
        process::resident(self.spawned.as_ref()?.id()?)
    }

    /// Drains a spawned server and says how long its start and its end took.
    pub async fn finish(self) -> Result<Option<Value>> {
        let Some(mut spawned) = self.spawned else { return Ok(None) };
        let drained = spawned.terminate().await?;
        let ready_ms = spawned.ready_after.as_secs_f64() * 1000.0;
        let drain_ms = drained.as_secs_f64() * 1000.0;
        println!("server     ready after {ready_ms:.0} ms, drained in {drain_ms:.0} ms");
        Ok(Some(json!({ "ready_ms": ready_ms, "drain_ms": drain_ms })))
    }
}
