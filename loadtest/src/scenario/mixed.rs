//! `mixed`: an ordinary day, compressed: dashboards that follow repositories, and bursts of signed
//! webhooks. Invariant: every webhook is answered 202, and its event comes to every dashboard that
//! follows its repository, in the same order for all, no gap, no repeat.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{Shape, percentile};
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::stats::Histogram;
use crate::ws::books::Seating;
use crate::ws::dashboards::Dashboards;

/// Dashboards that follow repositories, and bursts of signed webhooks: latency to each receipt.
///
/// All webhooks of a burst are due at once; latency counts from that moment to the receipt of the
/// event by each dashboard, and to the 202. A dashboard follows several repositories, so that each
/// event goes to some of them.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Dashboards, each with a connection.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    dashboards: u16,
    /// Repositories.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repos: u16,
    /// Repositories that each dashboard follows, or about so many.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=128))]
    follows: u8,
    /// Webhooks of a burst.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    burst: u16,
    /// Milliseconds from one burst to the next.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    every: u64,
    /// Connections that post.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Measured seconds of a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { dashboards, repos, follows, burst, every, connections, seconds, warmup, shape, servers } =
        options;
    let title = format!(
        "mixed: {dashboards} dashboards on {follows} of {repos} repositories each; {burst} webhooks of {} \
         bytes every {every} ms",
        shape.size
    );
    let (connections, all) = (usize::from(connections), usize::from(dashboards) + usize::from(connections));
    let load = Load {
        seating: seating(dashboards.into(), repos.into(), follows.into()),
        burst: burst.into(),
        every: Duration::from_millis(every),
        connections,
        size: shape.size as usize,
        warmup: Duration::from_secs(warmup),
        measured: Duration::from_secs(seconds),
    };
    servers.gateway_alone()?.run(&title, all, move |session| load.measure(session)).await
}

/// Dashboards on repositories.
pub fn seating(dashboards: usize, repos: usize, follows: usize) -> Seating {
    let fan_out = (dashboards * follows / repos).clamp(1, dashboards);
    Seating { channels: repos, fan_out, connections: dashboards }
}

/// Bursts on a schedule.
struct Load {
    seating: Seating,
    burst: usize,
    every: Duration,
    connections: usize,
    size: usize,
    warmup: Duration,
    measured: Duration,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut dashboards =
            Dashboards::open(session, self.seating, super::WINDOW, self.connections, self.size)?;
        bursts(&mut dashboards, self.burst, self.every, self.warmup)?;
        dashboards.settle()?;
        dashboards.take_seen();
        let (before, cpu, began) = (dashboards.posted(), session.cpu_time(), Instant::now());
        bursts(&mut dashboards, self.burst, self.every, self.measured)?;
        let (posted, took) = (dashboards.posted() - before, began.elapsed().as_secs_f64());
        let cpu = session.cpu_time().zip(cpu).map(|(after, before)| (after - before).as_secs_f64());
        dashboards.settle()?;

        let seen = dashboards.take_seen();
        let receipts = seen.receipts.count() as f64;
        ensure!(receipts > 0.0, "nothing was received within the measured time");
        session.observe("POST to receipt", &seen.receipts);
        session.observe("POST to 202", &seen.answers);
        let mut figures = latencies(&seen.receipts)?;
        figures.push(figure("POST to 202 p99, ms", percentile(&seen.answers, 99)?));
        figures.push(aside("webhooks/s", posted as f64 / took));
        figures.push(aside("receipts/s", receipts / took));
        if let Some(cpu) = cpu {
            figures.push(aside("server CPU, %", cpu * 100.0 / took));
        }
        Ok(figures)
    }
}

/// Posts bursts on a schedule for a while; at least one.
pub fn bursts(dashboards: &mut Dashboards, burst: usize, every: Duration, time: Duration) -> Result<()> {
    let began = Instant::now();
    let mut due = began;
    while due < began + time {
        dashboards.burst(burst, due);
        due += every;
        loop {
            let now = Instant::now();
            if now >= due {
                break;
            }
            dashboards.turn(due - now)?;
        }
    }
    Ok(())
}

/// From due to receipt, as figures.
pub fn latencies(receipts: &Histogram) -> Result<Vec<Figure>> {
    Ok(vec![
        figure("POST to receipt p50, ms", percentile(receipts, 50)?),
        figure("POST to receipt p99, ms", percentile(receipts, 99)?),
        figure("POST to receipt longest, ms", percentile(receipts, 100)?),
    ])
}
