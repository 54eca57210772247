//! Campanile's load harness: `cargo run --release -p loadtest -- SCENARIO [options]`.
//! Every scenario has an invariant and a number worth printing. Breaking the invariant fails the
//! run, however fast it was. All traffic goes to this machine, bounded in count and time.

mod compare;
mod cores;
mod drive;
mod floor;
mod framing;
mod http;
mod metrics;
mod port;
mod report;
mod scenario;
mod server;
mod sse;
mod stats;
mod ws;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use testkit::{payload, process, target, token};
use tokio::signal::unix::{SignalKind, signal};

/// Puts a Campanile on this machine under load, and checks that it keeps its promise meanwhile.
///
/// Start the server yourself and pass its URL and secrets, or let --spawn start the release binary
/// on a free port with a data directory of its own. `fanout`, `idle` and `connect` start what they
/// measure unless told otherwise, and compare it with the floor: a bare epoll server that only
/// writes to sockets, which is what the kernel charges and no gateway can undercut.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    /// Threads of the load tool itself; each takes a core from the server.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    Webhooks(scenario::webhooks::Options),
    Latency(scenario::latency::Options),
    Flood(scenario::flood::Options),
    Hostile(scenario::hostile::Options),
    Fanout(scenario::fanout::Options),
    Idle(scenario::idle::Options),
    Connect(scenario::connect::Options),
    Set(scenario::set::Options),
    Diff(report::diff::Options),
    Poll(scenario::poll::Options),
    Storm(scenario::storm::Options),
    Spread(scenario::spread::Options),
    Depth(scenario::depth::Options),
    Start(scenario::start::Options),
    Soak(scenario::soak::Options),
    Crowd(scenario::crowd::Options),
    Slow(scenario::slow::Options),
    Resume(scenario::resume::Options),
    Originals(scenario::originals::Options),
    Mixed(scenario::mixed::Options),
    Cluster(scenario::cluster::Options),
    /// The bare server that the gateway is compared with, as a process of its own.
    #[command(hide = true)]
    Floor,
}

fn main() -> ExitCode {
    match load(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(cli: Cli) -> Result<()> {
    match &cli.scenario {
        Scenario::Floor => return floor::run(),
        Scenario::Diff(options) => return report::diff::run(options),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.threads.into())
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = run(cli.scenario) => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn run(scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::Webhooks(options) => scenario::webhooks::run(options).await,
        Scenario::Latency(options) => scenario::latency::run(options).await,
        Scenario::Flood(options) => scenario::flood::run(options).await,
        Scenario::Hostile(options) => scenario::hostile::run(options).await,
        Scenario::Fanout(options) => scenario::fanout::run(options).await,
        Scenario::Idle(options) => scenario::idle::run(options).await,
        Scenario::Connect(options) => scenario::connect::run(options).await,
        Scenario::Set(options) => scenario::set::run(options).await,
        Scenario::Diff(options) => report::diff::run(&options),
        Scenario::Poll(options) => scenario::poll::run(options).await,
        Scenario::Storm(options) => scenario::storm::run(options).await,
        Scenario::Spread(options) => scenario::spread::run(options).await,
        Scenario::Depth(options) => scenario::depth::run(options).await,
        Scenario::Start(options) => scenario::start::run(options).await,
        Scenario::Soak(options) => scenario::soak::run(options).await,
        Scenario::Crowd(options) => scenario::crowd::run(options).await,
        Scenario::Slow(options) => scenario::slow::run(options).await,
        Scenario::Resume(options) => scenario::resume::run(options).await,
        Scenario::Originals(options) => scenario::originals::run(options).await,
        Scenario::Mixed(options) => scenario::mixed::run(options).await,
        Scenario::Cluster(options) => scenario::cluster::run(options).await,
        Scenario::Floor => floor::run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
