//! `reconnect`: all clients lose their connection at once and come back, while others go on. Invariant:
//! everyone comes back and stays; those who stayed receive every message of the live traffic, in order,
//! without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{MEBI, percentile};
use crate::clients::Turns;
use crate::clients::broadcast::{self, Broadcast};
use crate::compare;
use crate::compare::sample::Cost;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::ws::swarm::FirstFrame;

/// Bytes of a live message's data.
const SIZE: usize = 128;
/// Live messages under way at once.
const PUBLISHERS: usize = 8;
/// For what the server does after the last reply.
const SETTLING: Duration = Duration::from_millis(500);

/// Closes all connections at once: how long until all are back, and what others notice of it.
///
/// The connections are closed without a Close frame, as when a proxy restarts, and the clients come back
/// as fast as they are answered, --window at a time. Meanwhile messages go to others on a schedule; their
/// latency counts from when each was due, and the longest is the pause that people see.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Connections that are lost.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Spread over this many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Connections that stay, and receive the live traffic.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=5000))]
    others: u16,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// Seconds of live traffic before, to compare with.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    before: u64,
    /// How often in a round, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
    times: u8,
    #[command(flatten)]
    servers: compare::Options,
}

pub async fn run(options: Options) -> Result<()> {
    let Options { connections, channels, window, others, rate, before, times, servers } = options;
    let title = format!(
        "reconnect: {connections} connections lost, {window} under way, {channels} channel(s); \
         {rate} messages/s to {others} others"
    );
    let load = Load {
        connections: connections as usize,
        channels: channels as usize,
        window: window.into(),
        broadcast: live_traffic(others.into(), rate),
        before: Duration::from_secs(before),
        times,
    };
    let all = load.connections + usize::from(others);
    servers.run(&title, all, move |session| load.measure(session)).await
}

/// Messages on a schedule to those that stay.
pub fn live_traffic(subscribers: usize, rate: u32) -> broadcast::Options {
    let rate = Some(rate.into());
    broadcast::Options { subscribers, publishers: PUBLISHERS, rate, size: SIZE, spin: false }
}

struct Load {
    connections: usize,
    channels: usize,
    window: usize,
    broadcast: broadcast::Options,
    before: Duration,
    times: u8,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let others = self.broadcast.subscribers;
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..others, 1), self.window)?;
        let mut live = Broadcast::open(session, swarm, &self.broadcast)?;
        live.connect(self.frames(session), self.window)?;
        live.resume();
        live.run_for(self.before / 2)?;
        live.take();
        live.run_for(self.before)?;
        let before = live.take().latencies;
        let resident_before = session.resident();

        let (mut took, mut server, mut client, mut longest) = (0.0, None, 0.0, 0.0_f64);
        for _ in 0..self.times {
            let frames = self.frames(session);
            // Signing their tokens is no pause of the server's: the schedule begins anew.
            live.finish()?;
            let (time, cost) = session.measure(|| self.reconnect(&mut live, frames))?;
            longest = longest.max(time.as_secs_f64());
            took += cost.took;
            server = cost.server.map(|used| used + server.unwrap_or(0.0));
            client += cost.client;
            live.run_for(SETTLING)?;
        }
        let meanwhile = live.take().latencies;
        live.finish()?;
        session.meter.observe("live before", &before);
        session.meter.observe("live while they come back", &meanwhile);
        let back = live.swarm.live() - others;
        ensure!(back == self.connections, "{back} of {} are still there", self.connections);

        let connects = self.connections as f64 * f64::from(self.times);
        let mut figures = vec![figure("all back after, s", longest), figure("connects/s", connects / took)];
        figures.extend(session.cost_figures(
            &Cost { took, server, client },
            "server CPU per connect, µs",
            connects,
        ));
        figures.extend([
            aside("live p50 before, ms", percentile(&before, 50)?),
            aside("live longest before, ms", percentile(&before, 100)?),
            figure("live p50 while they come back, ms", percentile(&meanwhile, 50)?),
            figure("live p99 while they come back, ms", percentile(&meanwhile, 99)?),
            figure("live longest while they come back, ms", percentile(&meanwhile, 100)?),
        ]);
        if let (Some(before), Some(after)) = (resident_before, session.resident()) {
            figures.push(aside("resident before, MiB", before as f64 / MEBI));
            figures.push(aside("resident after, MiB", after as f64 / MEBI));
        }
        Ok(figures)
    }

    /// At the places behind those that stay, on any channel but the first.
    fn frames(&self, session: &Session) -> Vec<(usize, FirstFrame)> {
        let others = self.broadcast.subscribers;
        let frame = |index| (others + index, session.first_frame(others + index, 1 + index % self.channels));
        (0..self.connections).map(frame).collect()
    }

    /// Closes them all, and lets them all come back.
    fn reconnect(&self, live: &mut Broadcast, frames: Vec<(usize, FirstFrame)>) -> Result<Duration> {
        let began = Instant::now();
        for (index, _) in &frames {
            live.swarm.disconnect(*index)?;
            if index % self.window == 0 {
                live.turn(Duration::ZERO)?;
            }
        }
        live.connect(frames, self.window)?;
        Ok(began.elapsed())
    }
}
