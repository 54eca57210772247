//! `flood`: webhooks for crash tests. Kill the server meanwhile, start it again, and compare the
//! file with what it kept: every delivery in the file was answered 2xx and must be there. Like a
//! real source it sends a delivery whose fate it does not know again, under the same id.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::Volume;
use crate::drive::{self, Load, Verdict};
use crate::payload::Payloads;
use crate::server;

/// Posts webhooks while the server may die, and notes each one that it answered with 2xx.
#[derive(Debug, Args)]
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
        measured: volume.measured(),
        judge,
        reconnect: !options.stop_on_loss,
        acked: Some(Mutex::new(file)),
    };
    let outcome = drive::run(load, || ()).await?;
    println!("accepted   {}", outcome.accepted);
    println!("put off    {}", outcome.later);
    println!("lost       {} {}", outcome.lost.count, outcome.lost.first);
    if outcome.wrong.count > 0 {
        bail!("{} wrong answers, the first: {}", outcome.wrong.count, outcome.wrong.first);
    }
    ensure!(outcome.accepted > 0, "nothing was accepted");
    server.finish().await?;
    Ok(())
}

/// A server that starts, drains or cannot reach its store may say so; it may not refuse.
fn judge(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Accepted,
        429 | 500..=599 => Verdict::Later,
        _ => Verdict::Wrong,
    }
}
