//! `start`: how long a gateway takes until it is ready: with nothing there yet, and again after it was
//! killed. Invariant: it becomes ready every time, on the folder that the kill left behind too.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use testkit::gateway::new_secret;
use testkit::postgres;
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::compare;
use crate::compare::session::Session;
use crate::http::blocking;
use crate::report::table::{Figure, aside, figure};
use crate::stats::Latencies;

/// A start that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether it is ready.
const LOOK: Duration = Duration::from_millis(1);

/// Starts gateways: time to ready with an empty folder, and again after kill -9.
///
/// The binary is that of the gateway which the run starts anyway. The clock runs from before the
/// process is made until /readyz answers 200, which is asked every millisecond. A cold start should
/// take less than 200 ms; the first of a round also reads the binary from disk. With a PostgreSQL every
/// cold start has an empty database.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest start
  loadtest start --starts 50 --repeats 1
  loadtest start --database postgres")]
#[group(skip)]
pub struct Options {
    /// Starts of each kind in a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    starts: u16,
    #[command(flatten)]
    servers: compare::Options,
}

pub async fn run(options: Options) -> Result<()> {
    let Options { starts, servers } = options;
    let title = format!("start: {starts} cold starts, and {starts} after a kill");
    let runtime = Handle::current();
    servers.gateway_alone()?.run(&title, 1, move |session| measure(session, starts, &runtime)).await
}

fn measure(session: &Session, starts: u16, runtime: &Handle) -> Result<Vec<Figure>> {
    let pid = session.pid.context("the gateway's process is not known: give its --pid")?;
    let binary = std::fs::read_link(format!("/proc/{pid}/exe")).context("the gateway is gone")?;
    let (mut cold, mut again) = (Latencies::default(), Latencies::default());
    for number in 0..starts {
        let folder = Folder::make()?;
        let environment = match &session.postgres {
            Some(url) => runtime.block_on(environment(url, number))?,
            None => Vec::new(),
        };
        for latencies in [&mut cold, &mut again] {
            let (mut gateway, took) = Gateway::start(&binary, &folder.0, &environment)?;
            latencies.record(took);
            gateway.0.kill()?;
            gateway.0.wait()?;
        }
    }
    let (cold, again) = (cold.summary().context("no start")?, again.summary().context("no start")?);
    Ok(vec![
        figure("cold start to ready p50, ms", cold.p50),
        aside("cold start to ready longest, ms", cold.max),
        figure("start after a kill p50, ms", again.p50),
        aside("start after a kill longest, ms", again.max),
    ])
}

/// What a gateway on an empty database needs. On SQLite it makes its secrets itself.
async fn environment(url: &str, number: u16) -> Result<Vec<(&'static str, String)>> {
    let name = format!("start_{number}");
    let session = postgres::session(url).await?;
    session.batch_execute(&format!("CREATE DATABASE {name}")).await?;
    let (server, _) = url.rsplit_once('/').context("a URL without a database")?;
    let secrets = ["GITHUB_WEBHOOK_SECRET", "CAMPANILE_JWT_SECRET", "CAMPANILE_API_KEY"];
    let secrets = secrets.into_iter().map(|name| (name, new_secret()));
    Ok(secrets.chain([("DATABASE_URL", format!("{server}/{name}"))]).collect())
}

/// A folder that goes with its user.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("campanile-loadtest-{}", Uuid::new_v4()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that is killed with its owner.
struct Gateway(Child);

impl Gateway {
    fn start(
        binary: &Path,
        folder: &Path,
        environment: &[(&'static str, String)],
    ) -> Result<(Self, Duration)> {
        let address: SocketAddr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = std::fs::File::create(folder.join("log"))?;
        let mut command = Command::new(binary);
        command.arg("serve").current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // It inherits no setting.
        command.env_clear().envs(environment.iter().cloned()).env("CAMPANILE_LISTEN", address.to_string());
        command.env("CAMPANILE_DATA_DIR", folder.join("data"));
        let began = Instant::now();
        let mut gateway = Self(command.spawn().context("cannot start the gateway")?);
        let host = address.to_string();
        while !matches!(blocking::get(address, &host, "/readyz"), Ok((200, _))) {
            let ended = gateway.0.try_wait()?;
            ensure!(ended.is_none(), "the gateway ended: {ended:?}");
            ensure!(began.elapsed() < TIMEOUT, "the gateway is not ready after {TIMEOUT:?}");
            // Nobody unparks: a pause that leaves the core to the gateway.
            std::thread::park_timeout(LOOK);
        }
        Ok((gateway, began.elapsed()))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
