//! `reconnect`: all clients lose their connection at once and come back, while others go on. Invariant:
//! everyone comes back and stays; those who stayed receive every message of the live traffic, in order,
//! without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{MEBI, count, percentile};
use crate::clients::Turns;
use crate::clients::broadcast::{self, Broadcast};
use crate::compare::Scenario;
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
    #[arg(long, default_value_t = 5000, value_parser = count(1..=60_000))]
    connections: usize,
    /// Spread over this many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 100, value_parser = count(1..=60_000))]
    channels: usize,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW, value_parser = count(1..=1024))]
    window: usize,
    /// Connections that stay, and receive the live traffic.
    #[arg(long, default_value_t = 50, value_parser = count(1..=5000))]
    others: usize,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = count(1..=5000))]
    rate: usize,
    /// Seconds of live traffic before, to compare with.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    before: u64,
    /// How often in a round, one after the other.
    #[arg(long, default_value_t = 1, value_parser = count(1..=20))]
    times: usize,
}

/// Messages on a schedule to those that stay.
pub fn live_traffic(subscribers: usize, rate: usize) -> broadcast::Options {
    let rate = Some(rate as f64);
    broadcast::Options { subscribers, publishers: PUBLISHERS, rate, size: SIZE, spin: false }
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { connections, channels, window, others, rate, .. } = self;
        format!(
            "reconnect: {connections} connections lost, {window} under way, {channels} channel(s); \
             {rate} messages/s to {others} others"
        )
    }

    fn connections(&self) -> usize {
        self.connections + self.others
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let (others, traffic) = (self.others, live_traffic(self.others, self.rate));
        let before_time = Duration::from_secs(self.before);
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..others, 1), self.window)?;
        let mut live = Broadcast::open(session, swarm, &traffic)?;
        live.connect(self.frames(session), self.window)?;
        live.resume();
        live.run_for(before_time / 2)?;
        live.take();
        live.run_for(before_time)?;
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

        let connects = self.connections as f64 * self.times as f64;
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
}

impl Options {
    /// At the places behind those that stay, on any channel but the first.
    fn frames(&self, session: &Session) -> Vec<(usize, FirstFrame)> {
        let others = self.others;
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
