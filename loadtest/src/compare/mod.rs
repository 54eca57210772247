//! Measures the gateway and the floor in turns, in one session and on the same cores, because a
//! figure of one alone says as much about the machine as about the gateway. Starts each anew for
//! every round, takes medians, and prints the ratio.

pub mod database;
pub mod meter;
mod options;
pub mod sample;
pub mod session;
mod warnings;

use std::sync::Arc;

use anyhow::{Context, Error, Result, ensure};
use clap::Args;
use tokio::sync::oneshot;

use crate::cores::{self, Cores};
use crate::report::table::{self, Figure, Side, aside};
use crate::report::{Latency, Report, Section, Throughput, command, text};
use crate::stats::Histogram;
use meter::Seen;
use options::Against;
pub use options::Options;
use sample::Sample;
use session::{RunningServer, Session};

/// Work that is done with each server, and what it is called.
pub trait Scenario: Send + Sync + 'static {
    /// Only a gateway can do it.
    const GATEWAY_ALONE: bool = false;

    /// What is done; runs of the same title did the same work.
    fn title(&self) -> String;

    /// How many connections one round opens at once.
    fn connections(&self) -> usize;

    /// An error if the options contradict each other.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// One round of one server, on a thread of its own, on the client's core.
    fn measure(&self, session: &Session) -> Result<Vec<Figure>>;
}

// A scenario, and the servers that it measures. A doc comment would take the place of the scenario's own in
// the help.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Comparison<S: Args> {
    #[command(flatten)]
    options: Options,
    // Whose description is the command's, and so comes last.
    #[command(flatten)]
    scenario: S,
}

/// Runs every round, prints the table and submits the section.
pub async fn run<S: Scenario + Args>(Comparison { options, scenario }: Comparison<S>) -> Result<()> {
    scenario.check()?;
    let sides = match options.against {
        Against::Floor => vec![Side::Floor],
        Against::Both if !S::GATEWAY_ALONE => vec![Side::Floor, Side::Gateway],
        Against::Gateway | Against::Both => vec![Side::Gateway],
    };
    ensure!(sides != [Side::Floor] || !S::GATEWAY_ALONE, "only the gateway can do this work");
    session::ensure_files(scenario.connections())?;
    let cores = options.cores.cores()?;
    let mut section = Section::new(&scenario.title(), &sides);
    section.command = command::shown();
    section.conditions = options.conditions(cores, &sides);
    warnings::check_setting(&mut section, cores.is_some(), options.binary.as_deref());
    let mut rounds = Rounds { section, sides, latencies: Vec::new(), samples: Vec::new() };
    let scenario = Arc::new(scenario);
    let outcome = rounds.run(&options, &scenario, cores).await;
    let section = rounds.close(cores.is_some(), outcome.as_ref().err());
    print!("{}", text::section(&section));
    Report::new(vec![section]).submit(&options.report).and(outcome)
}

/// What becomes a section.
struct Rounds {
    section: Section,
    sides: Vec<Side>,
    /// By name and side.
    latencies: Vec<(String, Side, Histogram)>,
    /// By side, with whether the client spun.
    samples: Vec<(Side, Vec<Sample>, bool)>,
}

impl Rounds {
    async fn run<S: Scenario>(
        &mut self,
        options: &Options,
        scenario: &Arc<S>,
        cores: Option<Cores>,
    ) -> Result<()> {
        let connections = scenario.connections();
        let sides = self.sides.clone();
        for round in 1..=options.repeats {
            for side in &sides {
                let label = format!("round {round} of {}, {}", options.repeats, side.name());
                let server =
                    RunningServer::start(options, *side, cores).await.with_context(|| label.clone())?;
                let name = side.name();
                warnings::check_files(&mut self.section, name, server.session.pid, connections);
                let meter = server.session.meter.clone();
                let measured = on_a_thread(server.session.clone(), cores, scenario.clone()).await;
                let mut figures = measured.with_context(|| label.clone())?;
                figures.extend(meter.database_percent().map(|share| aside("database CPU, %", share)));
                server.finish().await.with_context(|| label.clone())?;
                eprintln!("{label}: {}", table::line(&figures));
                self.section.add(*side, &figures);
                self.keep(*side, round, meter.seen(), meter.spins());
            }
        }
        Ok(())
    }

    fn keep(&mut self, side: Side, round: u8, seen: Seen, spins: bool) {
        let name = side.name();
        for (what, latencies) in &seen.latencies {
            let known = self.latencies.iter_mut().find(|(known, of, _)| known == what && *of == side);
            match known {
                Some((.., all)) => all.merge(latencies),
                None => self.latencies.push((what.clone(), side, latencies.clone())),
            }
        }
        for (what, timeline) in &seen.timelines {
            self.section.throughput.push(Throughput::new(what, name, round, timeline));
        }
        for (code, text) in seen.warnings {
            self.section.warn(code, format!("{name}: {text}"));
        }
        match self.samples.iter_mut().find(|(known, ..)| *known == side) {
            Some((_, samples, _)) => samples.extend(seen.samples),
            None => self.samples.push((side, seen.samples, spins)),
        }
    }

    fn close(mut self, pinned: bool, error: Option<&Error>) -> Section {
        self.section.conclude();
        let latency = |(name, side, all): &(String, Side, Histogram)| Latency::new(name, side.name(), all);
        self.section.latencies = self.latencies.iter().map(latency).collect();
        self.section.failed = error.map(|error| format!("{error:#}"));
        for (side, samples, spins) in &self.samples {
            warnings::check_samples(&mut self.section, side.name(), samples, pinned, *spins);
        }
        warnings::check_figures(&mut self.section);
        self.section
    }
}

/// The runtime stays free to notice Ctrl-C, and then ends the servers.
async fn on_a_thread<S: Scenario>(
    session: Session,
    cores: Option<Cores>,
    scenario: Arc<S>,
) -> Result<Vec<Figure>> {
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let work = || {
            cores.map_or(Ok(()), |cores| cores::pin_to(cores.client))?;
            let before = session.meter.start();
            let figures = scenario.measure(&session)?;
            session.meter.judge_whole(before);
            Ok(figures)
        };
        let measured = work();
        let _ = done.send(measured);
    });
    outcome.await.context("the measuring thread panicked")?
}
