//! `poll`: what it costs to say that nothing has changed, and how often a second it can be said.
//! Invariant: while nothing is published every answer is 304; each event published before and after
//! reaches every poller once, in order.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use mio::{Poll, Token};

use super::{Period, count, percentile};
use crate::clients::pollers::{Pace, Pollers};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::ws::publisher::Publisher;

/// Events there are before the clock starts, so that pollers have a position to start from.
const BEFORE: u32 = 3;
/// Bytes of their data.
const SIZE: usize = 128;

/// Polls a channel without news as fast as it is answered: 304 a second, CPU of each.
///
/// Every poller is a user of its own with a kept-alive connection, a cursor and If-None-Match, and
/// asks again when it is answered. The gateway under test is started with a rate limit that is out of
/// the way (limits.polls_per_minute). The floor compares a tag and sends a prepared answer. The client
/// never sleeps, if it has a core of its own: waking it would be the server's work, as in fanout.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest poll
  loadtest poll --pollers 1000 --pipeline 4
  loadtest poll --database postgres --against gateway")]
#[group(skip)]
pub struct Options {
    /// Pollers, each with a connection.
    #[arg(long, default_value_t = 64, value_parser = count(1..=10_000))]
    pollers: usize,
    /// Requests under way on each connection; more than one saves system calls on both sides.
    #[arg(long, default_value_t = 1, value_parser = count(1..=64))]
    pipeline: usize,
    #[command(flatten)]
    period: Period,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { pollers, pipeline, period, .. } = self;
        format!("poll: {pollers} pollers, {pipeline} under way on each, {} s a round", period.seconds)
    }

    fn connections(&self) -> usize {
        self.pollers
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let (period, pace) = (&self.period, Pace::Saturating { under_way: self.pipeline });
        let spin = session.meter.spin_on_own_core();
        publish(session, 0..BEFORE)?;
        let mut pollers = Pollers::open(session, self.pollers, spin)?;
        let seen = pollers.catch_up()?;
        ensure!(
            seen.iter().all(|seen| seen.ends_with(&[BEFORE - 1])),
            "a poller has not read what was published before: {:?}",
            seen.iter().find(|seen| !seen.ends_with(&[BEFORE - 1]))
        );
        pollers.run(pace, period.warmup())?;
        let (outcome, cost) = session.measure(|| pollers.run(pace, period.measured()))?;

        publish(session, BEFORE..BEFORE + 1)?;
        let seen = pollers.catch_up()?;
        ensure!(seen.iter().all(|seen| *seen == [BEFORE]), "a poller missed what was published, or got more");

        let (polls, took) = (outcome.unchanged as f64, outcome.took.as_secs_f64());
        ensure!(polls > 0.0, "nothing was answered within the measured time");
        session.meter.observe("poll", &outcome.latencies);
        let mut figures = vec![figure("answers 304/s", polls / took)];
        figures.extend(session.cost_figures(&cost, "server CPU per poll, µs", polls));
        figures.push(aside("latency p50, ms", percentile(&outcome.latencies, 50)?));
        figures.push(aside("latency p99, ms", percentile(&outcome.latencies, 99)?));
        Ok(figures)
    }
}

/// Publishes these numbers one after the other.
fn publish(session: &Session, numbers: std::ops::Range<u32>) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = mio::Events::with_capacity(1);
    let mut publisher = Publisher::open(&session.publishing(SIZE), poll.registry(), Token(0))?;
    for number in numbers {
        publisher.publish(number)?;
        while publisher.is_busy() {
            poll.poll(&mut events, Some(Duration::from_secs(5)))?;
            ensure!(!events.is_empty(), "publishing is not answered");
            publisher.receive()?;
        }
    }
    Ok(())
}
