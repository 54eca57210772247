//! `connect`: how many clients a second can connect, what one costs, and what others notice of it. A
//! connection is TCP, the upgrade, and one frame with connect and subscribe, answered. Invariant: every
//! one gets both replies, and all stay connected to the end; the others receive every message in order.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::percentile;
use super::reconnect::live_traffic;
use crate::clients::Turns;
use crate::clients::broadcast::{self, Broadcast};
use crate::compare;
use crate::compare::sample::Cost;
use crate::compare::session::{self, Session};
use crate::report::table::{Figure, aside, figure};
use crate::ws::swarm::FirstFrame;

/// Connected before the clock starts, so that the first steps of a fresh process do not count.
const FIRST: usize = 200;
/// Without others, and with them if the limit of open files allows it.
const CONNECTIONS: (u32, u32) = (10_000, 19_000);
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
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: Option<u32>,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Spread over this many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    /// Connections that receive live traffic meanwhile.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=5000))]
    others: u16,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    #[command(flatten)]
    servers: compare::Options,
}

pub async fn run(options: Options) -> Result<()> {
    let Options { connections, window, channels, others, rate, servers } = options;
    let (few, many) = CONNECTIONS;
    let connections = match connections {
        Some(connections) => connections,
        None if others == 0 => few,
        None => {
            let most = session::most_connections()?.saturating_sub(u64::from(others) + FIRST as u64);
            most.min(many.into()) as u32
        }
    };
    let beside = if others > 0 { format!("; {rate} messages/s to {others} others") } else { String::new() };
    let title =
        format!("connect: {connections} connections, {window} under way, {channels} channel(s){beside}");
    let load = Load {
        connections: connections as usize,
        channels: channels as usize,
        window: window.into(),
        broadcast: live_traffic(others.into(), rate),
    };
    let all = load.connections + usize::from(others) + FIRST;
    servers.run(&title, all, move |session| load.measure(session)).await
}

struct Load {
    connections: usize,
    channels: usize,
    window: usize,
    broadcast: broadcast::Options,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        if self.broadcast.subscribers > 0 { self.beside_traffic(session) } else { self.alone(session) }
    }

    fn alone(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..FIRST, self.channels), self.window)?;
        let frames = session.first_frames(FIRST..FIRST + self.connections, self.channels);
        let (_, cost) = session.measure(|| swarm.open(frames, self.window))?;
        swarm.listen(Duration::from_millis(200), false)?;
        Ok(self.figures(session, &cost))
    }

    fn beside_traffic(&self, session: &Session) -> Result<Vec<Figure>> {
        let others = self.broadcast.subscribers;
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..others, 1), self.window)?;
        // Signing their tokens takes longer than a pause that matters: before the live traffic begins.
        let frame = |index: usize| (index, session.first_frame(index, 1 + index % self.channels));
        let mut frames: Vec<(usize, FirstFrame)> =
            (others..others + FIRST + self.connections).map(frame).collect();
        let last = frames.split_off(FIRST);
        let mut live = Broadcast::open(session, swarm, &self.broadcast)?;
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
        ensure!(there == others + FIRST + self.connections, "{there} connections are left");
        let mut figures = self.figures(session, &cost);
        figures.extend([
            aside("live longest before, ms", percentile(&before, 100)?),
            figure("live p99 while they connect, ms", percentile(&meanwhile, 99)?),
            figure("live longest while they connect, ms", percentile(&meanwhile, 100)?),
        ]);
        Ok(figures)
    }

    fn figures(&self, session: &Session, cost: &Cost) -> Vec<Figure> {
        let connections = self.connections as f64;
        let mut figures = vec![figure("connects/s", connections / cost.took)];
        figures.extend(session.cost_figures(cost, "server CPU per connect, µs", connections));
        figures
    }
}
