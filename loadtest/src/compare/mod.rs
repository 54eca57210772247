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

use anyhow::{Context, Error, Result};
use tokio::sync::oneshot;

use crate::cores::{self, Cores};
use crate::report::table::{self, Figure, Side, Table, aside};
use crate::report::{Latency, Report, Section, Throughput, command, text};
use crate::stats::Histogram;
use meter::Seen;
use options::Against;
pub use options::Options;
use sample::Sample;
use session::{RunningServer, Session};

impl Options {
    /// Runs every round, prints the table and submits the section. `connections` is how many one
    /// round opens at once; `measure` runs on a thread of its own, on the client's core.
    pub async fn run<M>(&self, title: &str, connections: usize, measure: M) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        let sides = match self.against {
            Against::Gateway => vec![Side::Gateway],
            Against::Floor => vec![Side::Floor],
            Against::Both => vec![Side::Floor, Side::Gateway],
        };
        session::ensure_files(connections)?;
        let cores = self.cores.cores()?;
        let mut section = Section {
            title: title.to_owned(),
            command: command::shown(),
            conditions: self.conditions(cores, &sides),
            sides: sides.iter().map(|side| side.name().to_owned()).collect(),
            ..Section::default()
        };
        warnings::check_setting(&mut section, cores.is_some(), self.binary.as_deref());
        let mut rounds = Rounds::of(section, &sides);
        let outcome = rounds.run(self, connections, cores, Arc::new(measure)).await;
        let section = rounds.close(cores.is_some(), outcome.as_ref().err());
        print!("{}", text::section(&section));
        Report::new(vec![section]).submit(&self.report).and(outcome)
    }
}

/// What becomes a section.
struct Rounds {
    section: Section,
    table: Table,
    /// By name and side.
    latencies: Vec<(String, Side, Histogram)>,
    /// By side, with whether the client spun.
    samples: Vec<(Side, Vec<Sample>, bool)>,
}

impl Rounds {
    fn of(section: Section, sides: &[Side]) -> Self {
        Self { section, table: Table::new(sides), latencies: Vec::new(), samples: Vec::new() }
    }

    async fn run<M>(
        &mut self,
        options: &Options,
        connections: usize,
        cores: Option<Cores>,
        measure: Arc<M>,
    ) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        let sides = self.table.sides().to_vec();
        for round in 1..=options.repeats {
            for side in &sides {
                let label = format!("round {round} of {}, {}", options.repeats, side.name());
                let server =
                    RunningServer::start(options, *side, cores).await.with_context(|| label.clone())?;
                let name = side.name();
                warnings::check_files(&mut self.section, name, server.session.pid, connections);
                let meter = server.session.meter.clone();
                let measured = on_a_thread(server.session.clone(), cores, measure.clone()).await;
                let mut figures = measured.with_context(|| label.clone())?;
                figures.extend(meter.database_percent().map(|share| aside("database CPU, %", share)));
                server.finish().await.with_context(|| label.clone())?;
                eprintln!("{label}: {}", table::line(&figures));
                self.table.add(*side, &figures);
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
        self.section.figures = self.table.rows();
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
async fn on_a_thread<M>(session: Session, cores: Option<Cores>, measure: Arc<M>) -> Result<Vec<Figure>>
where
    M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
{
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let work = || {
            cores.map_or(Ok(()), |cores| cores::pin_to(cores.client))?;
            let before = session.meter.start();
            let figures = measure(&session)?;
            session.meter.judge_whole(before);
            Ok(figures)
        };
        let measured = work();
        let _ = done.send(measured);
    });
    outcome.await.context("the measuring thread panicked")?
}
