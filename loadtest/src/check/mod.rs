//! `check`: whether the promise holds while things go wrong. Publishers, hundreds of subscribers and
//! a nemesis, all by seed; at the end every history is compared with the log as SQL has it. Before
//! it judges the gateway it has to convict servers that lie. Counts, and times only where the project
//! promises one.

mod backend;
mod case;
mod cast;
mod disk;
mod forgetful;
mod history;
mod judge;
mod lie;
mod log;
mod measure;
mod nemesis;
mod node;
mod outage;
mod plan;
mod proxy;
mod publisher;
mod random;
mod report;
mod resp;
mod self_test;
mod subscriber;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use tokio::sync::Semaphore;

use case::{Effort, Ran};
use history::Transport;
use lie::Lie;
use plan::{Case, Database, Fault, Scenario};
use random::Random;
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
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Examples:
  loadtest check                                   the whole table
  loadtest check --fault kill --database sqlite    one fault, all scenarios
  loadtest check --seed 7 --scenario churn --fault cut --database postgres
  loadtest check --database cluster --nodes 5 --fault mixed
  loadtest check --database cluster --fault redis-down --fault node-death      with figures
  loadtest check --minutes 20 --at-once 2          everything, over and over
  loadtest check --self-test                       only the servers that lie

Exit codes:
  0  no violation
  1  a violation, a lie that was not noticed, or a run that could not be made here")]
pub struct Options {
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
    /// Do not fail because this machine could not run something.
    #[arg(long)]
    allow_missing: bool,
    /// Write the table to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show the cases of this choice and run none.
    #[arg(long)]
    list: bool,
    /// Only run against servers that lie; each has to be convicted.
    #[arg(long)]
    self_test: bool,
    /// Run the cases against a server that tells this lie.
    #[arg(long, hide = true, conflicts_with = "self_test")]
    lie: Option<Lie>,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
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
    if options.lie.is_none() {
        eprintln!("first against servers that lie");
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
    crate::scenario::write_json(options.json.as_ref(), &report.to_json(began.elapsed()))?;
    ensure!(report.is_clean(), "the promise was broken: see above");
    ensure!(options.allow_missing || report.is_whole(), "not everything could run here: see above");
    Ok(())
}

/// Runs these cases, so many at once; those that would begin after `end` are left out.
async fn round(options: &Options, cases: &[Case], end: Option<Instant>, report: &mut Report) -> Result<()> {
    let gate = Arc::new(Semaphore::new(options.at_once.into()));
    let start = |(at, case): (usize, &Case)| {
        let place = format!("[{}/{}]", at + 1, cases.len());
        (*case, tokio::spawn(one(options.clone(), *case, place, gate.clone(), end)))
    };
    let running: Vec<_> = cases.iter().enumerate().map(start).collect();
    for (case, ran) in running {
        if let Some(ran) = ran.await.context("a case panicked")?? {
            report.add(case, ran);
        }
    }
    Ok(())
}

async fn one(
    options: Options,
    case: Case,
    place: String,
    gate: Arc<Semaphore>,
    end: Option<Instant>,
) -> Result<Option<Ran>> {
    let Case { scenario, fault, database } = case;
    // Whoever measures has the machine alone.
    let turns = if fault.is_measured() { options.at_once } else { 1 };
    let _turn = gate.acquire_many_owned(turns.into()).await?;
    if end.is_some_and(|end| Instant::now() >= end) {
        return Ok(None);
    }
    eprintln!("{place} {database} {scenario} {fault}, seed {}", options.seed);
    let effort = Effort {
        // Every case has a plan of its own, and the same one if it is run alone.
        seed: Random::new(options.seed).of(&format!("{database} {scenario} {fault}"), 0).next(),
        subscribers: options.subscribers.into(),
        events: options.events,
        nodes: options.nodes.into(),
        transports: Transport::ALL.to_vec(),
        settling: if options.lie.is_some() { self_test::DEADLINE } else { SETTLING },
        talks_as: Some(place.clone()),
    };
    let ran = case::run(case, options.lie, &effort).await?;
    if let Ran::Done(outcome) = &ran {
        let (checked, seconds) = (outcome.checked.sum(), outcome.took.as_secs_f64());
        eprintln!("{place} {checked} checked, {} violations, {seconds:.1} s", outcome.violated);
        for violation in &outcome.violations {
            eprintln!("{place} VIOLATION {violation}");
        }
        if outcome.violated > 0 {
            let Options { seed, subscribers, events, nodes, .. } = options;
            let nodes = if database.is_cluster() { format!(" --nodes {nodes}") } else { String::new() };
            eprintln!(
                "{place} seed {seed}; again with: loadtest check --seed {seed} --scenario {scenario} --fault \
                 {fault} --database {database} --subscribers {subscribers} --events {events}{nodes}"
            );
        }
    }
    Ok(Some(ran))
}
