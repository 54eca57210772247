//! `start`: how long a gateway takes until it is ready: with nothing there yet, and again after it was
//! killed. Invariant: it becomes ready every time, on the folder that the kill left behind too.

use anyhow::{Context, Result};
use clap::Args;
use testkit::gateway::{Launch, new_secret};
use testkit::postgres;

use super::{count, percentile};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::stats::Histogram;

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
    #[arg(long, default_value_t = 10, value_parser = count(1..=1000))]
    starts: usize,
}

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        format!("start: {0} cold starts, and {0} after a kill", self.starts)
    }

    fn connections(&self) -> usize {
        1
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let pid = session.pid.context("the gateway's process is not known: give its --pid")?;
        let binary = std::fs::read_link(format!("/proc/{pid}/exe")).context("the gateway is gone")?;
        let (mut cold, mut again) = (Histogram::new(), Histogram::new());
        for number in 0..self.starts {
            session.runtime.block_on(async {
                let environment = match &session.postgres {
                    Some(url) => environment(url, number).await?,
                    None => Vec::new(),
                };
                let launch = Launch { binary: Some(binary.clone()), environment, ..Launch::default() };
                let mut gateway = launch.start().await?;
                cold.record(gateway.ready_after);
                gateway.kill().await?;
                gateway.start().await?;
                again.record(gateway.ready_after);
                gateway.kill().await
            })?;
        }
        Ok(vec![
            figure("cold start to ready p50, ms", percentile(&cold, 50)?),
            aside("cold start to ready longest, ms", percentile(&cold, 100)?),
            figure("start after a kill p50, ms", percentile(&again, 50)?),
            aside("start after a kill longest, ms", percentile(&again, 100)?),
        ])
    }
}

/// What a gateway on an empty database needs. On SQLite it makes its secrets itself.
async fn environment(url: &str, number: usize) -> Result<Vec<(&'static str, String)>> {
    let name = format!("start_{number}");
    let session = postgres::session(url).await?;
    session.batch_execute(&format!("CREATE DATABASE {name}")).await?;
    let (server, _) = url.rsplit_once('/').context("a URL without a database")?;
    let secrets = ["GITHUB_WEBHOOK_SECRET", "CAMPANILE_JWT_SECRET", "CAMPANILE_API_KEY"];
    let secrets = secrets.into_iter().map(|name| (name, new_secret()));
    Ok(secrets.chain([("DATABASE_URL", format!("{server}/{name}"))]).collect())
}
