//! `storm`: all clients lose their connection at once and come back, while others go on. Invariant:
//! everyone comes back and stays; those who were not cut see every message of the live traffic, in
//! order, without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::percentile;
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::process;
use crate::ws::swarm::{PATIENCE, Swarm, expect_nothing};
use crate::ws::traffic::Traffic;

/// Bytes of a live message's data.
const SIZE: usize = 128;
/// For what the server does behind the last reply.
const SETTLING: Duration = Duration::from_millis(500);

/// Cuts all connections at once: how long until all are back, and what others notice of it.
///
/// The clients are cut without a close frame, as when a proxy restarts, and come back as fast as they
/// are answered, --window at a time. Meanwhile messages go to others on a schedule; their latency
/// counts from when each was due, and the longest is the pause that people see.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Connections that are cut.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Spread over so many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Connections that are not cut, and receive the live traffic.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=5000))]
    others: u16,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// Seconds of live traffic before the storm, to compare with.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    before: u64,
    /// Storms in a round, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
    storms: u8,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { connections, channels, window, others, rate, before, storms, servers } = options;
    let title = format!(
        "storm: {connections} connections cut, {window} under way, {channels} channel(s); \
         {rate} messages/s to {others} others"
    );
    let load = Load {
        connections: connections as usize,
        channels: channels as usize,
        window: window.into(),
        others: others.into(),
        rate,
        before: Duration::from_secs(before),
        storms,
    };
    let all = load.connections + load.others;
    servers.run(&title, all, move |session| load.measure(session)).await
}

struct Load {
    connections: usize,
    channels: usize,
    window: usize,
    others: usize,
    rate: u32,
    before: Duration,
    storms: u8,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut swarm = Swarm::new(session.address, &session.host)?;
        swarm.open(session.first_frames(0..self.others, 1), self.window)?;
        swarm.open(self.firsts(session), self.window)?;
        let mut traffic = Traffic::open(session, &swarm, self.others, self.rate, SIZE)?;
        traffic.run(&mut swarm, self.before / 2)?;
        traffic.take_latencies();
        traffic.run(&mut swarm, self.before)?;
        let calm = traffic.take_latencies();
        let resident_before = session.resident();

        let (mut took, mut cpu, mut own) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let mut longest = Duration::ZERO;
        for _ in 0..self.storms {
            let firsts = self.firsts(session);
            // Signing is no pause of the server's: the schedule begins anew.
            traffic.finish(&mut swarm)?;
            let (server_before, own_before) = (session.cpu_time(), process::own_time());
            let storm = self.storm(&mut swarm, &mut traffic, firsts)?;
            took += storm;
            longest = longest.max(storm);
            cpu += session.cpu_time().zip(server_before).map_or(Duration::ZERO, |(a, b)| a - b);
            own += process::own_time().zip(own_before).map_or(Duration::ZERO, |(a, b)| a - b);
            traffic.run(&mut swarm, SETTLING)?;
        }
        let stormy = traffic.take_latencies();
        traffic.finish(&mut swarm)?;
        session.observe("live before the storm", &calm);
        session.observe("live in the storm", &stormy);
        let back = swarm.live() - self.others;
        ensure!(back == self.connections, "{back} of {} are still there", self.connections);

        let connects = self.connections as f64 * f64::from(self.storms);
        let took = took.as_secs_f64();
        let mut figures = vec![
            figure("all back after, s", longest.as_secs_f64()),
            figure("connects/s", connects / took),
            figure("server CPU per connect, µs", cpu.as_secs_f64() * 1e6 / connects),
            aside("server CPU, %", cpu.as_secs_f64() * 100.0 / took),
            aside("client CPU, %", own.as_secs_f64() * 100.0 / took),
            aside("live p50 before, ms", percentile(&calm, 50)?),
            aside("live longest before, ms", percentile(&calm, 100)?),
            figure("live p50 in the storm, ms", percentile(&stormy, 50)?),
            figure("live p99 in the storm, ms", percentile(&stormy, 99)?),
            figure("live longest in the storm, ms", percentile(&stormy, 100)?),
        ];
        if let (Some(before), Some(after)) = (resident_before, session.resident()) {
            figures.push(aside("resident before, MiB", before as f64 / MEBI));
            figures.push(aside("resident after, MiB", after as f64 / MEBI));
        }
        Ok(figures)
    }

    /// On any channel but the first.
    fn firsts(&self, session: &Session) -> Vec<Vec<u8>> {
        (0..self.connections)
            .map(|index| session.first_frame(self.others + index, 1 + index % self.channels))
            .collect()
    }

    /// Cuts them all, and lets them all come back.
    fn storm(&self, swarm: &mut Swarm, traffic: &mut Traffic, firsts: Vec<Vec<u8>>) -> Result<Duration> {
        let everyone = self.others + self.connections;
        let began = Instant::now();
        for index in self.others..everyone {
            swarm.cut(index)?;
            if index % self.window == 0 {
                traffic.turn(swarm, Duration::ZERO, &mut expect_nothing)?;
            }
        }
        let mut returning = (self.others..everyone).zip(firsts);
        let mut progress = (swarm.live(), began);
        while swarm.live() < everyone {
            while swarm.coming() < self.window
                && let Some((index, first)) = returning.next()
            {
                swarm.replace(index, first)?;
            }
            traffic.turn(swarm, Duration::from_secs(1), &mut expect_nothing)?;
            if swarm.live() != progress.0 {
                progress = (swarm.live(), Instant::now());
            }
            ensure!(
                progress.1.elapsed() < PATIENCE,
                "{} of {everyone} are live, then nothing more",
                progress.0
            );
        }
        Ok(began.elapsed())
    }
}

const MEBI: f64 = 1024.0 * 1024.0;
