//! Campanile's load harness: `cargo run --release -p loadtest -- SCENARIO [options]`.
//! Every scenario has an invariant and a number worth printing. Breaking the invariant fails the
//! run, however fast it was. All traffic goes to this machine, bounded in count and time.

mod clients;
mod compare;
mod cores;
mod floor;
mod metrics;
mod pipeline;
mod port;
mod progress;
mod report;
mod scenario;
mod stats;
mod ws;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use compare::Comparison;

/// Puts a Campanile on this machine under load, and checks that it keeps its promise meanwhile.
///
/// Most scenarios start what they measure unless a --url is given, and compare it with the floor where
/// there is one: a bare epoll server that only writes to sockets, which is what the kernel charges.
#[derive(Parser)]
#[command(
    name = "loadtest",
    version,
    after_help = "Exit codes:
  0  the scenario ran and kept its invariant
  1  an invariant was broken, the run ended early, or --strict was given and there was a warning"
)]
struct Cli {
    /// Threads of the load tool itself; each takes a core from the server.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    Webhooks(Comparison<scenario::webhooks::Options>),
    Latency(Comparison<scenario::latency::Options>),
    Fanout(Comparison<scenario::fanout::Options>),
    ChannelScaling(Comparison<scenario::channel_scaling::Options>),
    Idle(Comparison<scenario::idle::Options>),
    Connect(Comparison<scenario::connect::Options>),
    Reconnect(Comparison<scenario::reconnect::Options>),
    Resume(Comparison<scenario::resume::Options>),
    Slow(Comparison<scenario::slow::Options>),
    Poll(Comparison<scenario::poll::Options>),
    Mixed(Comparison<scenario::mixed::Options>),
    Originals(Comparison<scenario::originals::Options>),
    Start(Comparison<scenario::start::Options>),
    Soak(Comparison<scenario::soak::Options>),
    Hostile(Comparison<scenario::hostile::Options>),
    Cluster(scenario::cluster::Options),
    Suite(scenario::suite::Options),
    Diff(report::diff::Options),
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
    testkit::run(cli.threads.into(), run(cli.scenario))
}

async fn run(scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::Suite(options) => scenario::suite::run(options).await,
        Scenario::Webhooks(options) => compare::run(options).await,
        Scenario::Latency(options) => compare::run(options).await,
        Scenario::Fanout(options) => compare::run(options).await,
        Scenario::ChannelScaling(options) => compare::run(options).await,
        Scenario::Idle(options) => compare::run(options).await,
        Scenario::Connect(options) => compare::run(options).await,
        Scenario::Reconnect(options) => compare::run(options).await,
        Scenario::Resume(options) => compare::run(options).await,
        Scenario::Slow(options) => compare::run(options).await,
        Scenario::Poll(options) => compare::run(options).await,
        Scenario::Mixed(options) => compare::run(options).await,
        Scenario::Originals(options) => compare::run(options).await,
        Scenario::Start(options) => compare::run(options).await,
        Scenario::Soak(options) => compare::run(options).await,
        Scenario::Hostile(options) => compare::run(options).await,
        Scenario::Cluster(options) => scenario::cluster::run(options).await,
        Scenario::Diff(options) => report::diff::run(&options),
        Scenario::Floor => floor::run(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_scenario_says_what_it_does() {
        let cli = Cli::command();
        let described: Vec<String> =
            cli.get_subcommands().map(|one| one.get_about().expect("a description").to_string()).collect();
        let different: BTreeSet<&String> = described.iter().collect();
        assert_eq!(different.len(), described.len(), "{described:#?}");
    }

    #[test]
    fn every_line_of_the_suite_is_understood() {
        for line in scenario::suite::FULL.iter().chain(&scenario::suite::QUICK) {
            let words = ["loadtest"].into_iter().chain(line.split(' '));
            let common = ["--repeats", "1", "--cores", "off", "--binary", "b", "--data-in", "d"];
            if let Err(error) = Cli::try_parse_from(words.chain(common)) {
                panic!("{line}: {error}");
            }
        }
    }
}
