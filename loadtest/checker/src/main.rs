//! Checks whether Campanile keeps its promise while things go wrong: no gap without a signal, no repeat,
//! in order, nothing lost. Publishers, hundreds of subscribers and a nemesis act by seed; at the end every
//! history is compared with the log, read by SQL. Before it judges the gateway it has to convict servers
//! that are known to be wrong. Counts, and times only where the project promises one.

mod case;
mod cursor;
mod disk;
mod environment;
mod faulty_proxy;
mod history;
mod log;
mod measure;
mod message_loss;
mod nemesis;
mod outage;
mod plan;
mod publisher;
mod reload;
mod report;
mod roster;
mod self_test;
mod strangers;
mod subscriber;
mod verifier;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use testkit::random::Random;
use tokio::sync::Semaphore;

use case::CaseResult;
use faulty_proxy::Defect;
use history::Transport;
use plan::{Case, Database, Fault, Scenario, Workload};
use report::Report;

/// How long subscribers may take to reach the head at the end of a case.
const SETTLING: Duration = Duration::from_secs(120);

/// Checks the promise under faults: no gap without a signal, no repeat, in order, nothing lost.
///
/// Starts gateways, alone or several together, and a PostgreSQL and a Redis of its own. Publishers send
/// signed webhooks and numbered publications; subscribers on every transport come and go with their
/// cursors; a nemesis kills, stops, cuts, fills and loses. At the end each subscriber's history is
/// compared with the log, read by SQL. First it has to convict servers that drop, repeat, reorder, delay
/// or forget.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "checker",
    version,
    after_long_help = "\
Examples:
  checker                                   the whole table
  checker --fault kill --database sqlite    one fault, all scenarios
  checker --seed 7 --scenario churn --fault cut --database postgres
  checker --database cluster --nodes 5 --fault mixed
  checker --database cluster --fault redis-down --fault node-death      with figures
  checker --minutes 20 --at-once 2          everything, over and over
  checker --self-test                       only the servers that are known to be wrong

Exit codes:
  0  no violation
  1  a violation, a wrong server that was not noticed, or a run that could not be made here"
)]
struct Options {
    /// Plans the run: the same seed makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How subscribers behave; may be given several times [default: all].
    #[arg(long, value_name = "NAME")]
    scenario: Vec<Scenario>,
    /// What goes wrong; may be given several times [default: all].
    #[arg(long, value_name = "NAME")]
    fault: Vec<Fault>,
    /// Where the log is, and how many nodes share it; may be given several times [default: all].
    #[arg(long, value_name = "NAME")]
    database: Vec<Database>,
    /// Nodes of a cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    nodes: u8,
    /// Subscribers of each case, each a user of its own.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u16).range(1..=2000))]
    subscribers: u16,
    /// Webhooks and publications of each case, together.
    #[arg(long, default_value_t = 1600, value_parser = clap::value_parser!(u32).range(24..=20_000))]
    events: u32,
    /// Cases that run side by side: they mostly wait, until the processor is busy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    at_once: u8,
    /// Go on with the next seed, each time with everything in another order and every fault in one
    /// scenario, until so many minutes are over.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1440))]
    minutes: Option<u16>,
    /// Threads of the checker itself; each takes a core from the gateways.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    threads: u8,
    /// Do not fail because this machine could not run something.
    #[arg(long)]
    allow_missing: bool,
    /// Write the table to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the cases of this choice and run none.
    #[arg(long)]
    list: bool,
    /// Only run against servers that are known to be wrong; each has to be convicted.
    #[arg(long)]
    self_test: bool,
    /// Run the cases against a server with this defect.
    #[arg(long, hide = true, conflicts_with = "self_test")]
    defect: Option<Defect>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match testkit::run(options.threads.into(), run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("checker: failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    let cases = plan::cases(&options.scenario, &options.fault, &options.database);
    ensure!(!cases.is_empty(), "these faults do not concern this database");
    if options.list {
        for Case { scenario, fault, database } in cases {
            println!("{database:<14} {scenario:<8} {fault}");
        }
        return Ok(());
    }
    let began = Instant::now();
    let mut report = Report::new(options.seed);
    if options.defect.is_none() {
        eprintln!("first against servers that are known to be wrong");
        self_test::run(options.seed, options.self_test, &mut report).await?;
    }
    if !options.self_test {
        match options.minutes {
            None => round(&options, &cases, None, &mut report).await?,
            Some(minutes) => {
                let end = began + Duration::from_secs(60 * u64::from(minutes));
                let mut again = options.clone();
                while Instant::now() < end {
                    round(&again, &plan::draw(&cases, again.seed), Some(end), &mut report).await?;
                    again.seed += 1;
                }
            }
        }
    }
    report.print(began.elapsed());
    if let Some(file) = &options.json {
        write(file, &format!("{:#}\n", report.to_json(began.elapsed())))?;
    }
    ensure!(report.is_clean(), "the promise was broken: see above");
    ensure!(options.allow_missing || report.is_whole(), "not everything could run here: see above");
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Runs these cases, so many at once; those that would begin after `end` are left out.
async fn round(options: &Options, cases: &[Case], end: Option<Instant>, report: &mut Report) -> Result<()> {
    let slots = Arc::new(Semaphore::new(options.at_once.into()));
    let start = |(at, case): (usize, &Case)| {
        let label = format!("[{}/{}]", at + 1, cases.len());
        (*case, tokio::spawn(one(options.clone(), *case, label, slots.clone(), end)))
    };
    let running: Vec<_> = cases.iter().enumerate().map(start).collect();
    for (case, result) in running {
        if let Some(result) = result.await.context("a case panicked")?? {
            report.add(case, result);
        }
    }
    Ok(())
}

async fn one(
    options: Options,
    case: Case,
    label: String,
    slots: Arc<Semaphore>,
    end: Option<Instant>,
) -> Result<Option<CaseResult>> {
    let Case { scenario, fault, database } = case;
    // A case that measures has the machine to itself.
    let needed = if fault.is_measured() { options.at_once } else { 1 };
    let _slots = slots.acquire_many_owned(needed.into()).await?;
    if end.is_some_and(|end| Instant::now() >= end) {
        return Ok(None);
    }
    eprintln!("{label} {database} {scenario} {fault}, seed {}", options.seed);
    let workload = Workload {
        // Every case has a plan of its own, and the same one if it is run alone.
        seed: Random::new(options.seed).derive(&format!("{database} {scenario} {fault}"), 0).seed(),
        subscribers: options.subscribers.into(),
        events: options.events,
        nodes: options.nodes.into(),
        transports: Transport::ALL.to_vec(),
        settling: if options.defect.is_some() { self_test::DEADLINE } else { SETTLING },
        label: Some(label.clone()),
    };
    let result = Box::pin(case::run(case, options.defect, &workload)).await?;
    if let CaseResult::Done(outcome) = &result {
        let (checked, seconds) = (outcome.checked.sum(), outcome.took.as_secs_f64());
        eprintln!("{label} {checked} checked, {} violations, {seconds:.1} s", outcome.violated);
        for violation in &outcome.violations {
            eprintln!("{label} VIOLATION {violation}");
        }
        if outcome.violated > 0 {
            let Options { seed, subscribers, events, nodes, .. } = options;
            let nodes = if database.is_cluster() { format!(" --nodes {nodes}") } else { String::new() };
            eprintln!(
                "{label} seed {seed}; again with: checker --seed {seed} --scenario {scenario} --fault {fault} \
                 --database {database} --subscribers {subscribers} --events {events}{nodes}"
            );
        }
    }
    Ok(Some(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Options::command().debug_assert();
    }
}
