//! `soak`: a steady mix for minutes: webhooks to dashboards, messages to clients that come and go,
//! pollers. Invariant: nothing is lost on any way in which it can be read, and memory and descriptors
//! are at the end what they were after the warm-up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{mixed, percentile};
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::http::pollers::Pollers;
use crate::process;
use crate::stats::Histogram;
use crate::ws::dashboards::Dashboards;
use crate::ws::visitors::Visitors;

/// Bytes of a message's data, and of a webhook.
const SIZES: (usize, usize) = (128, 4096);
/// One cycle of the mix.
const CYCLE: Duration = Duration::from_secs(1);
/// Channels of those that come and go.
const CHANNELS: usize = 4;
/// One of so many clients is away for a part of each cycle.
const AWAY: usize = 10;
/// Connections that post webhooks.
const POSTERS: usize = 16;
/// Descriptors that may be open at the end beyond those after the warm-up: a database opens and
/// closes some of its own.
const DESCRIPTORS: u64 = 16;
/// What memory may have grown by: this part of it, and this.
const GROWTH: (f64, f64) = (0.25, 32.0 * MEBI);
const MEBI: f64 = 1024.0 * 1024.0;

/// A steady mix for minutes: is everything delivered, and are memory and descriptors given back?
///
/// Every second there is a burst of webhooks for the dashboards, messages to the clients, of which one
/// in ten is cut, misses some and comes back with its position, and every poller reads on. It takes
/// --minutes in all, of which the first fifth is warm-up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest soak --minutes 60 --repeats 1
  loadtest soak --rate 300 --html soak.html
  loadtest soak --database postgres

Exit codes:
  0  nothing was lost, and memory and descriptors were given back
  1  something was lost or kept, the run ended early, or --strict and a warning")]
#[group(skip)]
pub struct Options {
    /// How long, in minutes; fractions are fine.
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Dashboards, on 8 of 50 repositories each.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=5000))]
    dashboards: u16,
    /// Clients that come and go, on 4 channels.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u16).range(4..=5000))]
    clients: u16,
    /// Pollers of one of these channels.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pollers: u16,
    /// Webhooks a second, and messages a second on all channels together.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(4..=1000))]
    rate: u16,
    #[command(flatten)]
    servers: compare::Options,
}

/// The longest soak, in minutes.
const LONGEST: f64 = 24.0 * 60.0;

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match minutes {
        _ if (0.05..=LONGEST).contains(&minutes) => Ok(minutes),
        _ => Err(format!("between 0.05 and {LONGEST}")),
    }
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { minutes, dashboards, clients, pollers, rate, servers } = options;
    let clients = usize::from(clients) / CHANNELS * CHANNELS;
    let title = format!(
        "soak: {minutes} min of {rate} webhooks/s to {dashboards} dashboards, {rate} messages/s to {clients} \
         clients that come and go, {pollers} pollers"
    );
    let load = Load {
        time: Duration::from_secs_f64(minutes * 60.0),
        dashboards: dashboards.into(),
        clients,
        pollers: pollers.into(),
        rate: rate.into(),
    };
    let all = load.dashboards + load.clients + load.pollers;
    servers.gateway_alone()?.run(&title, all, move |session| load.measure(session)).await
}

struct Load {
    time: Duration,
    dashboards: usize,
    clients: usize,
    pollers: usize,
    rate: usize,
}

/// What the server holds.
struct Held {
    resident: f64,
    descriptors: u64,
}

/// The mix.
struct Mix {
    dashboards: Dashboards,
    visitors: Visitors,
    pollers: Pollers,
    clients: usize,
    rate: usize,
    /// Events that each poller has read.
    polled: u64,
    receipts: Histogram,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let (message, webhook) = SIZES;
        let repos = 50.min(self.dashboards * 8);
        let seating = mixed::seating(self.dashboards, repos, 8);
        let mut visitors = Visitors::open(session, self.clients, CHANNELS, super::WINDOW, message)?;
        // A place that pollers can come from.
        visitors.publish(CHANNELS)?;
        visitors.finish()?;
        let mut pollers = Pollers::open(session, self.pollers, false)?;
        pollers.catch_up()?;
        let mut mix = Mix {
            dashboards: Dashboards::open(session, seating, super::WINDOW, POSTERS, webhook)?,
            visitors,
            pollers,
            clients: self.clients,
            rate: self.rate,
            polled: 0,
            receipts: Histogram::new(),
        };
        mix.run(self.time / 5)?;
        let warm = Held::by(session)?;
        let (posted, polled) = (mix.dashboards.posted(), mix.polled);
        let cpu = session.cpu_time();
        let began = Instant::now();
        mix.run(self.time - self.time / 5)?;
        let took = began.elapsed().as_secs_f64();
        let cpu = session.cpu_time().zip(cpu).map(|(after, before)| (after - before).as_secs_f64());
        let end = Held::by(session)?;

        let growth = end.resident - warm.resident;
        let (part, more) = GROWTH;
        ensure!(
            growth <= warm.resident * part + more,
            "memory grew from {:.0} to {:.0} MiB after the warm-up",
            warm.resident / MEBI,
            end.resident / MEBI
        );
        ensure!(
            end.descriptors <= warm.descriptors + DESCRIPTORS,
            "{} descriptors are open at the end, and {} after the warm-up",
            end.descriptors,
            warm.descriptors
        );
        let returns = mix.visitors.take_latencies();
        session.observe("POST to receipt", &mix.receipts);
        session.observe("one client back", &returns);
        let mut figures = vec![
            figure("resident after the warm-up, MiB", warm.resident / MEBI),
            figure("resident at the end, MiB", end.resident / MEBI),
            aside("descriptors after the warm-up", warm.descriptors as f64),
            aside("descriptors at the end", end.descriptors as f64),
            aside("webhooks/s", (mix.dashboards.posted() - posted) as f64 / took),
            aside("clients back", returns.count() as f64),
            aside("events read by each poller", (mix.polled - polled) as f64),
            figure("POST to receipt p99, ms", percentile(&mix.receipts, 99)?),
            figure("one client back p99, ms", percentile(&returns, 99)?),
        ];
        if let Some(cpu) = cpu {
            figures.push(aside("server CPU, %", cpu * 100.0 / took));
        }
        Ok(figures)
    }
}

impl Mix {
    /// Cycles for so long, at least one.
    fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.receipts = Histogram::new();
        let mut share = 0;
        loop {
            let next = Instant::now() + CYCLE;
            self.cycle(share % AWAY)?;
            share += 1;
            // What is left of the cycle is quiet.
            loop {
                let now = Instant::now();
                if now >= next {
                    break;
                }
                self.dashboards.turn(next - now)?;
            }
            if next >= end {
                return Ok(());
            }
        }
    }

    fn cycle(&mut self, share: usize) -> Result<()> {
        self.dashboards.burst(self.rate, Instant::now());
        self.dashboards.settle()?;
        self.receipts.merge(&self.dashboards.take_seen().receipts);

        let before = self.visitors.published();
        let size = self.clients / AWAY;
        let away = share * size..(share + 1) * size;
        self.visitors.publish(self.rate / 2)?;
        self.visitors.finish()?;
        self.visitors.cut(away.clone())?;
        self.visitors.publish(self.rate - self.rate / 2)?;
        let returns = self.visitors.returns(away)?;
        self.visitors.come_back(returns, super::WINDOW)?;
        self.visitors.finish()?;
        let live = self.visitors.live();
        ensure!(live == self.clients, "{live} of {} clients are there", self.clients);

        // Those of channel 0, which is every fourth.
        let expected: Vec<u32> = (before..self.visitors.published())
            .filter(|number| number % CHANNELS == 0)
            .map(|number| number as u32)
            .collect();
        for mut seen in self.pollers.catch_up()? {
            seen.sort_unstable();
            ensure!(seen == expected, "a poller read {seen:?} instead of {expected:?}");
        }
        self.polled += expected.len() as u64;
        Ok(())
    }
}

impl Held {
    fn by(session: &Session) -> Result<Self> {
        let pid = session.pid.context("the server's process is not known: give its --pid")?;
        let resident = session.resident().context("the server is gone")? as f64;
        let descriptors = process::descriptors(pid).context("the server is gone")?;
        Ok(Self { resident, descriptors })
    }
}
