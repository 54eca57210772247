//! `soak`: a steady mix for minutes: webhooks to dashboards, messages to clients that come and go,
//! pollers. Invariant: nothing is lost on any way in which it can be read, and memory and descriptors
//! are at the end what they were after the warm-up.

use std::time::{Duration, Instant};
use testkit::process;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{MEBI, count, mixed, percentile};
use crate::clients::Turns;
use crate::clients::dashboards::Dashboards;
use crate::clients::pollers::Pollers;
use crate::clients::resuming::ResumingClients;
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::stats::Histogram;

/// Bytes of a message's data, and of a webhook.
const SIZES: (usize, usize) = (128, 4096);
/// One cycle of the mix.
const CYCLE: Duration = Duration::from_secs(1);
/// Channels of those that come and go.
const CHANNELS: usize = 4;
/// One in this many clients is away for a part of each cycle.
const AWAY: usize = 10;
/// Connections that post webhooks.
const POSTERS: usize = 16;
/// Descriptors that may be open at the end beyond those after the warm-up: a database opens and
/// closes some of its own.
const DESCRIPTORS: u64 = 16;
/// What memory may have grown by: this part of it, and this.
const GROWTH: (f64, f64) = (0.25, 32.0 * MEBI);

/// A steady mix for minutes: is everything delivered, and are memory and descriptors given back?
///
/// Every second there is a burst of webhooks for the dashboards, messages to the clients, of which one
/// in ten is disconnected, misses some and comes back with its position, and every poller reads on. It takes
/// --minutes in all, of which the first fifth is warm-up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest soak --minutes 60 --repeats 1
  loadtest soak --rate 300 --html soak.html
  loadtest soak --database postgres")]
#[group(skip)]
pub struct Options {
    /// How long, in minutes; fractions are fine.
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Dashboards, on 8 of 50 repositories each.
    #[arg(long, default_value_t = 200, value_parser = count(1..=5000))]
    dashboards: usize,
    /// Clients that come and go, on 4 channels.
    #[arg(long, default_value_t = 400, value_parser = count(4..=5000))]
    clients: usize,
    /// Pollers of one of these channels.
    #[arg(long, default_value_t = 20, value_parser = count(1..=1000))]
    pollers: usize,
    /// Webhooks a second, and messages a second on all channels together.
    #[arg(long, default_value_t = 100, value_parser = count(4..=1000))]
    rate: usize,
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

impl Options {
    /// As many on each channel.
    fn clients(&self) -> usize {
        self.clients / CHANNELS * CHANNELS
    }
}

/// The memory and descriptors that the server holds.
struct Held {
    resident: f64,
    descriptors: u64,
}

/// The clients of the mix.
struct Mix {
    dashboards: Dashboards,
    clients: ResumingClients,
    pollers: Pollers,
    client_count: usize,
    rate: usize,
    /// Events that each poller has read.
    polled: u64,
    receipts: Histogram,
}

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        let Self { minutes, dashboards, pollers, rate, .. } = self;
        format!(
            "soak: {minutes} min of {rate} webhooks/s to {dashboards} dashboards, {rate} messages/s to {} \
             clients that come and go, {pollers} pollers",
            self.clients()
        )
    }

    fn connections(&self) -> usize {
        self.dashboards + self.clients() + self.pollers
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let (message, webhook) = SIZES;
        let (time, client_count) = (Duration::from_secs_f64(self.minutes * 60.0), self.clients());
        let repos = 50.min(self.dashboards * 8);
        let layout = mixed::layout(self.dashboards, repos, 8);
        let mut clients = ResumingClients::open(session, client_count, CHANNELS, super::WINDOW, message)?;
        // A position that pollers can start from.
        clients.publish(CHANNELS)?;
        clients.settle()?;
        let mut pollers = Pollers::open(session, self.pollers, false)?;
        pollers.catch_up()?;
        let mut mix = Mix {
            dashboards: Dashboards::open(session, layout, super::WINDOW, POSTERS, webhook)?,
            clients,
            pollers,
            client_count,
            rate: self.rate,
            polled: 0,
            receipts: Histogram::new(),
        };
        mix.run(time / 5)?;
        let warm = Held::by(session)?;
        let (posted, polled) = (mix.dashboards.posted(), mix.polled);
        let ((), cost) = session.measure(|| mix.run(time - time / 5))?;
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
        let returns = mix.clients.take_latencies();
        session.meter.observe("POST to receipt", &mix.receipts);
        session.meter.observe("one client back", &returns);
        let mut figures = vec![
            figure("resident after the warm-up, MiB", warm.resident / MEBI),
            figure("resident at the end, MiB", end.resident / MEBI),
            aside("descriptors after the warm-up", warm.descriptors as f64),
            aside("descriptors at the end", end.descriptors as f64),
            aside("webhooks/s", (mix.dashboards.posted() - posted) as f64 / cost.took),
            aside("clients back", returns.count() as f64),
            aside("events read by each poller", (mix.polled - polled) as f64),
            figure("POST to receipt p99, ms", percentile(&mix.receipts, 99)?),
            figure("one client back p99, ms", percentile(&returns, 99)?),
        ];
        figures.extend(cost.server_percent().map(|percent| aside("server CPU, %", percent)));
        Ok(figures)
    }
}

impl Mix {
    /// Works through cycles for this long, at least one.
    fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        self.receipts = Histogram::new();
        let mut share = 0;
        loop {
            let next = Instant::now() + CYCLE;
            self.cycle(share % AWAY)?;
            share += 1;
            // What is left of the cycle is quiet.
            self.dashboards.run_for(next.saturating_duration_since(Instant::now()))?;
            if next >= end {
                return Ok(());
            }
        }
    }

    fn cycle(&mut self, share: usize) -> Result<()> {
        self.dashboards.burst(self.rate, Instant::now());
        self.dashboards.settle()?;
        self.receipts.merge(&self.dashboards.take().receipts);

        let before = self.clients.published();
        let size = self.client_count / AWAY;
        let away = share * size..(share + 1) * size;
        self.clients.publish(self.rate / 2)?;
        self.clients.settle()?;
        self.clients.disconnect(away.clone())?;
        self.clients.publish(self.rate - self.rate / 2)?;
        let frames = self.clients.resume_frames(away)?;
        self.clients.resume(frames, super::WINDOW)?;
        self.clients.settle()?;
        let live = self.clients.live();
        ensure!(live == self.client_count, "{live} of {} clients are there", self.client_count);

        // Those of channel 0, which is every fourth.
        let expected: Vec<u32> = (before..self.clients.published())
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
        let resident = session.memory()? as f64;
        let descriptors = process::descriptors(pid).context("the server is gone")?;
        Ok(Self { resident, descriptors })
    }
}
