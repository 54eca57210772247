//! `crowd`: many connections come while messages go to others: memory of each at the thousandth and
//! at the last, and the longest pause that the others see. Invariant: everyone comes and stays; the
//! others see every message in order, without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::percentile;
use crate::compare::session::{self, Session};
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::ws::swarm::{PATIENCE, Swarm, expect_nothing};
use crate::ws::traffic::Traffic;

/// Bytes of a live message's data.
const SIZE: usize = 128;
/// Connected before the first look, so that what a server allocates once does not count.
const FIRST: usize = 64;
/// Connections, if there may be so many.
const MANY: u64 = 19_000;
/// Memory is settled when it has changed by less than this in half a second.
const STILL: u64 = 256 * 1024;
const SETTLING: Duration = Duration::from_secs(20);

/// Fills a node with connections while messages go to others: memory of each, and the longest pause.
///
/// Memory per connection is measured over the first --few and over all the rest; both should be the
/// same. The live traffic's latency counts from when each message was due, so that its longest is the
/// pause that people see; it should stay under 50 ms. Afterwards all idle for a while: a node with
/// 5,000 connections should need less than 1 % of a core.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest crowd
  loadtest crowd --connections 5000 --channels 1
  loadtest crowd --database postgres --against gateway

Exit codes:
  0  measured, everyone came and stayed, and the others had every message in order
  1  an invariant was broken, the run ended early, or --strict and a warning")]
#[group(skip)]
pub struct Options {
    /// Connections; each needs a descriptor here and one in the server (ulimit -Hn) [default: 19000, or
    /// as many as there may be].
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    connections: Option<u32>,
    /// The first so many, to compare the memory of the others with.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    few: u32,
    /// Spread over so many channels, none of them the one with the live traffic.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Connections that receive the live traffic.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=5000))]
    others: u16,
    /// Messages a second for them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    rate: u32,
    /// Seconds of idling when all are there, without live traffic.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { connections, few, channels, window, others, rate, seconds, servers } = options;
    let connections = match connections {
        Some(connections) => connections,
        None => {
            session::most_connections()?.saturating_sub(u64::from(others) + FIRST as u64).min(MANY) as u32
        }
    };
    ensure!(few < connections, "--few must be fewer than --connections");
    let title = format!(
        "crowd: {connections} connections, {window} under way, {channels} channel(s); \
         {rate} messages/s to {others} others"
    );
    let load = Load {
        connections: connections as usize,
        few: few as usize,
        channels: channels as usize,
        window: window.into(),
        others: others.into(),
        rate,
        idle: Duration::from_secs(seconds),
        spin: servers.has_cores()?,
    };
    let all = load.connections + load.others + FIRST;
    servers.run(&title, all, move |session| load.measure(session)).await
}

struct Load {
    connections: usize,
    few: usize,
    channels: usize,
    window: usize,
    others: usize,
    rate: u32,
    idle: Duration,
    spin: bool,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let resident = || session.resident().context("the server's memory is not known: give its --pid");
        let mut swarm = Swarm::new(session.address, &session.host)?;
        swarm.open(session.first_frames(0..self.others, 1), self.window)?;
        // Signing their tokens takes longer than a pause that matters: before the live traffic begins.
        // They follow any channel but the first.
        let first = |connection| session.first_frame(connection, 1 + connection % self.channels);
        let newcomers = self.others..self.others + FIRST + self.connections;
        let mut newcomers = newcomers.map(first).collect::<Vec<_>>().into_iter();
        let mut traffic = Traffic::open(session, &swarm, self.others, self.rate, SIZE)?;
        self.come(&mut swarm, &mut traffic, newcomers.by_ref().take(FIRST))?;
        traffic.take_latencies();
        traffic.run(&mut swarm, Duration::from_secs(3))?;
        let calm = traffic.take_latencies();

        let start = settled(&mut swarm, &mut traffic, resident)?;
        self.come(&mut swarm, &mut traffic, newcomers.by_ref().take(self.few))?;
        let few = settled(&mut swarm, &mut traffic, resident)?;
        let rest = self.connections - self.few;
        traffic.take_latencies();
        let (took, cost) = session.measure(|| self.come(&mut swarm, &mut traffic, newcomers))?;
        let crowded = traffic.take_latencies();
        session.observe("live before they come", &calm);
        session.observe("live while they come", &crowded);
        traffic.finish(&mut swarm)?;
        let all = settled(&mut swarm, &mut traffic, resident)?;
        traffic.finish(&mut swarm)?;

        let cpu = session.cpu_time().context("the server is gone")?;
        let began = Instant::now();
        // Whoever sleeps is woken at the server's cost.
        if self.spin {
            swarm.spin(self.idle)?
        } else {
            swarm.listen(self.idle)?
        }
        let cpu = session.cpu_time().context("the server is gone")? - cpu;
        let idle = cpu.as_secs_f64() * 100.0 / began.elapsed().as_secs_f64();
        let there = swarm.live();
        ensure!(there == self.others + FIRST + self.connections, "{there} connections are left");

        let each = |before: u64, after: u64, count: usize| (after as f64 - before as f64) / count as f64;
        Ok(vec![
            figure("resident bytes per connection, the few", each(start, few, self.few)),
            figure("resident bytes per connection, the rest", each(few, all, rest)),
            aside("resident in all, MiB", all as f64 / (1024.0 * 1024.0)),
            figure("connects/s beside live traffic", rest as f64 / took.as_secs_f64()),
            aside("live longest before, ms", percentile(&calm, 100)?),
            figure("live p99 while they come, ms", percentile(&crowded, 99)?),
            figure("live longest while they come, ms", percentile(&crowded, 100)?),
            aside("server CPU while idle, %", idle),
            aside("client CPU while they come, %", cost.client_percent()),
        ])
    }

    /// Connects them all.
    fn come(
        &self,
        swarm: &mut Swarm,
        traffic: &mut Traffic,
        mut newcomers: impl ExactSizeIterator<Item = Vec<u8>>,
    ) -> Result<Duration> {
        let began = Instant::now();
        let goal = swarm.live() + newcomers.len();
        let mut progress = (swarm.live(), began);
        while swarm.live() < goal {
            while swarm.coming() < self.window
                && let Some(first) = newcomers.next()
            {
                swarm.add(first)?;
            }
            traffic.turn(swarm, Duration::from_secs(1), &mut expect_nothing)?;
            if swarm.live() != progress.0 {
                progress = (swarm.live(), Instant::now());
            }
            ensure!(progress.1.elapsed() < PATIENCE, "{} are live, then nothing more", progress.0);
        }
        Ok(began.elapsed())
    }
}

/// The server's memory when it has settled. The live traffic goes on.
fn settled(swarm: &mut Swarm, traffic: &mut Traffic, resident: impl Fn() -> Result<u64>) -> Result<u64> {
    let began = Instant::now();
    loop {
        let before = resident()?;
        traffic.run(swarm, Duration::from_millis(500))?;
        let now = resident()?;
        if now.abs_diff(before) < STILL || began.elapsed() > SETTLING {
            return Ok(now);
        }
    }
}
