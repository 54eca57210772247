//! `webhooks`: how many signed deliveries a second the server makes durable, and how long each takes.
//! Invariant: every one is answered 202. Bodies are signed on the fly, before their clock starts,
//! from a hash that is computed once up to where they differ.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;

use super::Volume;
use crate::drive::{self, Load, Verdict};
use crate::payload::Payloads;
use crate::{process, server};

/// Posts webhooks as fast as they are answered; every answer must be 202.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: server::Options,
    #[command(flatten)]
    volume: Volume,
    /// Spread over the repositories acme/r0, acme/r1 …
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repos: u16,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { volume, .. } = &options;
    let server = options.server.server().await?;
    let payloads =
        Payloads::new(&server.target, &server.secret, options.repos.into(), volume.shape.size as usize)?;
    let size = payloads.body_size();
    let load = Load {
        target: server.target.clone(),
        payloads,
        concurrency: volume.concurrency.into(),
        warmup: volume.warmup(),
        measured: volume.measured(),
        judge: |status| if status == 202 { Verdict::Accepted } else { Verdict::Wrong },
        reconnect: false,
        acked: None,
    };
    let (mut server_cpu, mut own_cpu) = (Vec::new(), Vec::new());
    let at_edges = || {
        server_cpu.extend(server.cpu_time());
        own_cpu.extend(process::cpu_time("self"));
    };
    let outcome = drive::run(load, at_edges).await?;

    if outcome.wrong.count > 0 {
        bail!("{} answers were not 202, the first: {}", outcome.wrong.count, outcome.wrong.first);
    }
    if outcome.lost.count > 0 {
        bail!("{} connections were lost, the first: {}", outcome.lost.count, outcome.lost.first);
    }
    let measured = outcome.measured();
    ensure!(measured > 0, "nothing was answered within the measured time");
    let rate = measured as f64 / volume.seconds as f64;
    let (slowest, fastest) = (outcome.per_second.iter().min(), outcome.per_second.iter().max());
    let latency = outcome.latencies.summary().context("nothing was measured")?;

    println!("webhooks   {} connections, {size} bytes, {} repositories", volume.concurrency, options.repos);
    println!("accepted   {measured} in {} s, {} in all", volume.seconds, outcome.accepted);
    println!("per second {rate:.0}, from {} to {}", slowest.unwrap_or(&0), fastest.unwrap_or(&0));
    println!("latency    {latency}");
    let mut report = json!({
        "scenario": "webhooks", "concurrency": volume.concurrency, "size": size, "repos": options.repos,
        "seconds": volume.seconds, "accepted": measured, "accepted_in_all": outcome.accepted,
        "per_second": rate, "each_second": outcome.per_second, "latency_ms": latency.to_json(),
    });
    for (who, cpu) in [("server", server_cpu), ("loadtest", own_cpu)] {
        let [before, after] = cpu[..] else { continue };
        let used: Duration = after - before;
        let cores = used.as_secs_f64() / volume.seconds as f64;
        let each = used.as_secs_f64() * 1e6 / measured as f64;
        println!("processor  {cores:.2} cores, {each:.0} µs a webhook: {who}");
        report["processor"][who] = json!({ "cores": cores, "us_each": each });
    }
    report["server"] = json!(server.finish().await?);
    super::write_json(options.json.as_ref(), &report)
}
