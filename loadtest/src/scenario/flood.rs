//! `flood`: webhooks for crash tests. Kill the server meanwhile, start it again, and compare the
//! file with what it kept: every delivery in the file was answered 2xx and must be there. Like a
//! real source it sends a delivery whose fate it does not know again, under the same id.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::Volume;
use crate::drive::{self, Limit, Load, Moment, Verdict};
use crate::payload::Payloads;
use crate::server;

/// Posts webhooks while the server may die, and notes each one that it answered with 2xx.
///
/// There is nothing to measure here, so there is no report: what counts is the file, and what the
/// server kept.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest flood --url http://127.0.0.1:8080 --secret S --acked acked.tsv
  loadtest flood --spawn --acked acked.tsv --seconds 30

Exit codes:
  0  nothing was refused
  1  a delivery was refused, or none was accepted")]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    server: server::Options,
    #[command(flatten)]
    volume: Volume,
    /// Spread over the repositories acme/r0, acme/r1 …
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repos: u16,
    /// A new file; one line for each accepted delivery: its id, its repository and its run id,
    /// separated by tabs. The line is in the file before the connection's next delivery.
    #[arg(long, value_name = "FILE")]
    acked: PathBuf,
    /// A lost connection stays lost. Otherwise it is made again, and the delivery sent again.
    #[arg(long)]
    stop_on_loss: bool,
    /// Write the counts to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { volume, .. } = &options;
    let server = options.server.server().await?;
    let file = File::create_new(&options.acked)
        .with_context(|| format!("cannot create {}", options.acked.display()))?;
    let load = Load {
        target: server.target.clone(),
        payloads: Payloads::new(
            &server.target,
            &server.secret,
            options.repos.into(),
            volume.shape.size as usize,
        )?,
        concurrency: volume.concurrency.into(),
        warmup: volume.warmup(),
        limit: Limit::Time(volume.measured()),
        rate: None,
        judge,
        reconnect: !options.stop_on_loss,
        acked: Some(Mutex::new(file)),
    };
    let mut ticks = 0;
    let hear = |moment| {
        if let Moment::Tick(accepted) = moment {
            // Four of them are a second.
            if ticks % 4 == 0 {
                eprintln!("{:>4} s  {accepted} accepted", ticks / 4);
            }
            ticks += 1;
        }
    };
    let outcome = drive::run(load, hear).await?;
    println!("accepted   {}", outcome.accepted);
    println!("put off    {}", outcome.later);
    println!("lost       {} {}", outcome.lost.count, outcome.lost.first);
    if outcome.wrong.count > 0 {
        bail!("{} wrong answers, the first: {}", outcome.wrong.count, outcome.wrong.first);
    }
    ensure!(outcome.accepted > 0, "nothing was accepted");
    let server = server.finish().await?;
    let counts = json!({
        "scenario": "flood", "accepted": outcome.accepted, "put_off": outcome.later,
        "lost": outcome.lost.count, "first_loss": outcome.lost.first, "server": server,
    });
    super::write_json(options.json.as_ref(), &counts)
}

/// A server that starts, drains or cannot reach its store may say so; it may not refuse.
fn judge(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Accepted,
        429 | 500..=599 => Verdict::Later,
        _ => Verdict::Wrong,
    }
}
