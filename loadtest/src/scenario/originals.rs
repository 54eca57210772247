//! `originals`: the lines that the original designs drew, each measured, so that ours can be compared
//! with them. Invariant: no webhook is dropped, every event comes to everyone once and in order, and
//! every poll without news is answered 304.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::{count, mixed};
use crate::clients::Turns;
use crate::clients::dashboards::Dashboards;
use crate::clients::pollers::{Pace, Pollers};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, Side, aside, figure};
use crate::ws::delivery_log::Layout;

/// Bytes of a webhook.
const SIZE: usize = 4096;
/// How often a poller asks that does not back off, and what one that does starts with.
const INTERVAL: Duration = Duration::from_secs(4);
/// How far pollers back off.
const LONGEST: Duration = Duration::from_secs(60);

/// The lines of the original designs: delivery to 1,000 connections, a flood of webhooks, pollers.
///
/// 1,000 connections over 10 repositories, one webhook for each: theirs within 2 s, ours within 50 ms.
/// Then webhooks at once, none dropped: theirs 100, ours 10,000. Then 100 pollers every 4 s under 5 %
/// of a core, and 500 that back off under 15 %: ours a tenth of that. While they poll the client never
/// sleeps, if it has a core of its own: waking it would be the server's work, as in poll. The floor only
/// answers polls: what it uses is what a core needs whose caches are cold after each pause.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest originals
  loadtest originals --webhooks 50000 --seconds 60
  loadtest originals --database postgres")]
#[group(skip)]
pub struct Options {
    /// Connections that follow the repositories.
    #[arg(long, default_value_t = 1000, value_parser = count(10..=10_000))]
    connections: usize,
    /// Webhooks at once.
    #[arg(long, default_value_t = 10_000, value_parser = count(1..=100_000))]
    webhooks: usize,
    /// Connections that post them.
    #[arg(long, default_value_t = 256, value_parser = count(1..=1024))]
    posters: usize,
    /// Pollers that ask every 4 seconds.
    #[arg(long, default_value_t = 100, value_parser = count(1..=5000))]
    pollers: usize,
    /// Pollers that back off: 4 seconds, then half as long again each time, up to a minute.
    #[arg(long, default_value_t = 500, value_parser = count(1..=5000))]
    backing_off: usize,
    /// Measured seconds of polling, twice a round.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

const REPOS: usize = 10;

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { connections, webhooks, pollers, backing_off, .. } = self;
        format!(
            "originals: {connections} connections on {REPOS} repositories, {webhooks} webhooks at once, \
             {pollers} pollers every {INTERVAL:?}, {backing_off} that back off"
        )
    }

    fn connections(&self) -> usize {
        self.connections + self.posters + self.pollers + self.backing_off
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut figures = if session.side == Side::Floor { Vec::new() } else { self.deliver(session)? };
        let (count, every) = (self.pollers, Pace::Every { interval: INTERVAL, longest: INTERVAL });
        figures.push(figure("pollers every 4 s, % of a core", self.poll(session, count, every)?));
        let (count, every) = (self.backing_off, Pace::Every { interval: INTERVAL, longest: LONGEST });
        figures.push(figure("pollers backing off, % of a core", self.poll(session, count, every)?));
        Ok(figures)
    }
}

impl Options {
    fn deliver(&self, session: &Session) -> Result<Vec<Figure>> {
        let layout =
            Layout { channels: REPOS, fan_out: self.connections / REPOS, connections: self.connections };
        let mut dashboards = Dashboards::open(session, layout, super::WINDOW, self.posters, SIZE)?;
        dashboards.burst(REPOS, Instant::now());
        dashboards.settle()?;
        let receipts = dashboards.take().receipts;
        session.meter.observe("one webhook a repository, POST to receipt", &receipts);
        let mut figures = mixed::latencies(&receipts)?;

        let began = Instant::now();
        dashboards.burst(self.webhooks, began);
        dashboards.settle()?;
        let measured = dashboards.take();
        figures
            .push(figure("webhooks at once, all received after, s", (measured.last - began).as_secs_f64()));
        figures.push(aside("of them answered 202", measured.answers.count() as f64));
        figures.push(aside("their receipts", measured.receipts.count() as f64));
        Ok(figures)
    }

    /// The server's CPU while pollers ask, in percent of a core.
    fn poll(&self, session: &Session, count: usize, pace: Pace) -> Result<f64> {
        let spin = session.meter.spin_on_own_core();
        let mut pollers = Pollers::open(session, count, spin)?;
        pollers.catch_up()?;
        let (_, cost) = session.measure(|| pollers.run(pace, Duration::from_secs(self.seconds)))?;
        cost.server_percent().context("the server's CPU is not known: give its --pid")
    }
}
