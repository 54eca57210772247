//! `webhooks`: how many signed deliveries a second the server makes durable, and how long each takes.
//! Invariant: every one is answered 202. Bodies are signed before their time begins, from a hash that
//! is computed once up to where they differ.

use std::time::Instant;
use testkit::payload::Payloads;

use anyhow::{Result, ensure};
use clap::Args;

use super::{Period, Shape, count, percentile};
use crate::clients::Limit;
use crate::clients::webhook_load::{Answered, WebhookLoad};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, Side, aside, figure};
use crate::scenario::log_depth;
use crate::stats::{Histogram, Timeline};

/// Posts webhooks as fast as they are answered, or at a rate; every answer must be 202.
///
/// Without --rate each connection posts its next delivery when the last one is answered: a server
/// that stalls gets fewer requests meanwhile, so the latency is what a delivery takes, not what a
/// source would wait. With --rate deliveries are due on a schedule, and latency counts from when they
/// were due.
///
/// The floor appends each body to a file, syncs once for all that arrived together, and answers: the
/// price of making a request durable, without signatures, deduplication or a database.
///
/// With --log-depth the gateway's log holds this many events of other repositories before the clock
/// starts: 10 million take about 3 GB in the temporary folder, or in --data-in, and a minute.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest webhooks
  loadtest webhooks --rate 1000 --html webhooks.html
  loadtest webhooks --data-in /var/tmp --against gateway --log-depth 10000000
  loadtest webhooks --url http://127.0.0.1:8080 --secret S --jwt-secret J")]
#[group(skip)]
pub struct Options {
    /// Connections, each with one delivery at a time.
    #[arg(long, default_value_t = 64, value_parser = count(1..=1024))]
    concurrency: usize,
    /// Spread over the repositories acme/r0, acme/r1 …
    #[arg(long, default_value_t = 5, value_parser = count(1..=10_000))]
    repos: usize,
    /// Deliveries a second, due on a schedule, whatever has become of those before.
    #[arg(long, value_parser = count(1..=100_000))]
    rate: Option<usize>,
    /// Instead of --seconds and --warmup: this many deliveries, however long that takes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    deliveries: Option<u64>,
    /// Events of other repositories in the gateway's log, rounded up to 10,000.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    log_depth: Option<u32>,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    shape: Shape,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { concurrency, repos, rate, deliveries, log_depth, period, shape, .. } = self;
        let pace =
            rate.map_or("as fast as they are answered".to_owned(), |rate| format!("{rate} /s, on schedule"));
        let length =
            deliveries.map_or(format!("{} s", period.seconds), |count| format!("{count} deliveries"));
        let depth = log_depth.map(|events| format!(", behind {events} events")).unwrap_or_default();
        format!(
            "webhooks: {concurrency} connections, {pace}, {} bytes, {repos} repositories, {length} a round{depth}",
            shape.size
        )
    }

    fn connections(&self) -> usize {
        self.concurrency
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let depth = self.log_depth.filter(|_| session.side == Side::Gateway);
        let depth = depth.map(|events| log_depth::fill(session, events)).transpose()?;
        let target = session.target();
        let rate = self.rate.map(|rate| rate as f64);
        let limit = self.deliveries.map_or(Limit::Time(self.period.measured()), Limit::Count);
        let payloads = Payloads::new(&target, session.webhook_secret()?, self.repos, self.shape.size)?;
        let mut load = WebhookLoad::open(&target, payloads, self.concurrency)?;
        if rate.is_some() {
            session.meter.spin();
        }
        if self.deliveries.is_none() {
            load.run(Limit::Time(self.period.warmup()), rate, |_| ())?;
        }
        let (mut latencies, mut late) = (Histogram::new(), Histogram::new());
        let mut timeline = Timeline::since(Instant::now());
        let ((), cost, stored) = session.measure_stored(|| {
            load.run(limit, rate, |Answered { due, sent, at }| {
                latencies.record(at - due.unwrap_or(sent));
                due.into_iter().for_each(|due| late.record(sent - due));
                timeline.count(at, 1);
            })
        })?;
        session.meter.observe("from post to 202", &latencies);
        session.meter.observe_over_time("webhooks", timeline);
        ensure!(latencies.count() > 0, "nothing was answered within the measured time");

        let reached = latencies.count() as f64 / cost.took;
        let mut figures = vec![figure("webhooks/s", reached)];
        figures.extend(session.cost_figures(&cost, "server CPU per webhook, µs", latencies.count() as f64));
        figures.push(figure("latency p50, ms", percentile(&latencies, 50)?));
        figures.push(figure("latency p99, ms", percentile(&latencies, 99)?));
        figures.extend(late.percentile(99).map(|late| aside("behind schedule p99, ms", late)));
        figures.extend(stored.into_iter().flat_map(|stored| stored.figures()));
        figures.push(aside("body, bytes", load.body_size() as f64));
        figures.extend(depth.map(|events| aside("events in the log", events as f64)));
        if let Some(rate) = rate {
            super::warn_if_missed(session, rate, reached);
        }
        Ok(figures)
    }
}
