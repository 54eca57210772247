//! `connect`: how many clients a second can connect, what one costs, and what others notice of it. A
//! connection is TCP, the upgrade, and one frame with connect and subscribe, answered. Invariant: every
//! one gets both replies, and all stay connected to the end; the others receive every message in order.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::reconnect::live_traffic;
use super::{count, percentile};
use crate::clients::Turns;
use crate::clients::broadcast::Broadcast;
use crate::compare::Scenario;
use crate::compare::sample::Cost;
use crate::compare::session::{self, Session};
use crate::report::table::{Figure, aside, figure};
use crate::ws::swarm::FirstFrame;

/// Connected before the clock starts, so that the first steps of a fresh process do not count.
const FIRST: usize = 200;
/// Without others, and with them if the limit of open files allows it.
const CONNECTIONS: (usize, usize) = (10_000, 19_000);
/// Live traffic before, to compare with.
const BEFORE: Duration = Duration::from_secs(3);

/// Connects, authenticates and subscribes clients as fast as they are answered.
///
/// Every client has a token of its own, signed before the clock starts. With --others messages go to
/// that many further connections meanwhile; their latency counts from when each was due, so that the
/// longest is the pause that people see, which should stay below 50 ms.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest connect
  loadtest connect --others 50 --channels 100 --against gateway")]
#[group(skip)]
pub struct Options {
    /// Connections, all held open until the last one is there [default: 10000; with --others 19000, or
    /// as many as the limit of open files allows].
    #[arg(long, value_parser = count(1..=60_000))]
    connections: Option<usize>,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW, value_parser = count(1..=1024))]
    window: usize,
    /// Spread over this many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 1, value_parser = count(1..=60_000))]
    channels: usize,
    /// Connections that receive live traffic meanwhile.
    #[arg(long, default_value_t = 0, value_parser = count(0..=5000))]
    others: usize,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = count(1..=5000))]
    rate: usize,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { window, channels, others, rate, .. } = self;
        let beside =
            if *others > 0 { format!("; {rate} messages/s to {others} others") } else { String::new() };
        format!("connect: {} connections, {window} under way, {channels} channel(s){beside}", self.count())
    }

    fn connections(&self) -> usize {
        self.count() + self.others + FIRST
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        if self.others > 0 { self.beside_traffic(session) } else { self.alone(session) }
    }
}

impl Options {
    fn count(&self) -> usize {
        let (few, many) = CONNECTIONS;
        let most = || session::most_connections().saturating_sub(self.others + FIRST);
        self.connections.unwrap_or_else(|| if self.others == 0 { few } else { most().min(many) })
    }

    fn alone(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..FIRST, self.channels), self.window)?;
        let frames = session.first_frames(FIRST..FIRST + self.count(), self.channels);
        let (_, cost) = session.measure(|| swarm.open(frames, self.window))?;
        swarm.listen(Duration::from_millis(200), false)?;
        Ok(self.figures(session, &cost))
    }

    fn beside_traffic(&self, session: &Session) -> Result<Vec<Figure>> {
        let (others, traffic) = (self.others, live_traffic(self.others, self.rate));
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..others, 1), self.window)?;
        // Signing their tokens takes longer than a pause that matters: before the live traffic begins.
        let frame = |index: usize| (index, session.first_frame(index, 1 + index % self.channels));
        let mut frames: Vec<(usize, FirstFrame)> =
            (others..others + FIRST + self.count()).map(frame).collect();
        let last = frames.split_off(FIRST);
        let mut live = Broadcast::open(session, swarm, &traffic)?;
        live.connect(frames, self.window)?;
        live.take();
        live.run_for(BEFORE)?;
        let before = live.take().latencies;
        let (_, cost) = session.measure(|| live.connect(last, self.window))?;
        let meanwhile = live.take().latencies;
        session.meter.observe("live before they connect", &before);
        session.meter.observe("live while they connect", &meanwhile);
        live.finish()?;
        let there = live.swarm.live();
        ensure!(there == others + FIRST + self.count(), "{there} connections are left");
        let mut figures = self.figures(session, &cost);
        figures.extend([
            aside("live longest before, ms", percentile(&before, 100)?),
            figure("live p99 while they connect, ms", percentile(&meanwhile, 99)?),
            figure("live longest while they connect, ms", percentile(&meanwhile, 100)?),
        ]);
        Ok(figures)
    }

    fn figures(&self, session: &Session, cost: &Cost) -> Vec<Figure> {
        let connections = self.count() as f64;
        let mut figures = vec![figure("connects/s", connections / cost.took)];
        figures.extend(session.cost_figures(cost, "server CPU per connect, µs", connections));
        figures
    }
}
