//! `webhooks`: how many signed deliveries a second the server makes durable, and how long each takes.
//! Invariant: every one is answered 202. Bodies are signed on the fly, before their clock starts,
//! from a hash that is computed once up to where they differ.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::Volume;
use crate::compare;
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::drive::{self, Limit, Load, Moment, Verdict};
use crate::metrics::PerEvent;
use crate::payload::Payloads;

/// Posts webhooks as fast as they are answered, or at a rate; every answer must be 202.
///
/// Without --rate each connection posts its next delivery when the last one is answered: a server
/// that stalls is asked less meanwhile, so the latency is what a delivery takes, not what a source
/// would wait. With --rate deliveries are due on a schedule and latency counts from when they were.
///
/// The floor appends each body to a file, syncs it once for all that came together, and answers: the
/// price of making a request durable, with no signature, no duplicates, and no database.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest webhooks
  loadtest webhooks --rate 1000 --html webhooks.html
  loadtest webhooks --data-in /var/tmp --against gateway
  loadtest webhooks --url http://127.0.0.1:8080 --secret S --jwt-secret J

Exit codes:
  0  measured, and every delivery was answered 202
  1  one was not, the run ended early, or --strict and a warning")]
#[group(skip)]
pub struct Options {
    #[command(flatten)]
    volume: Volume,
    /// Spread over the repositories acme/r0, acme/r1 …
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    repos: u16,
    /// Deliveries a second, due on a schedule, whatever has become of those before.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Instead of --seconds and --warmup: so many deliveries, however long that takes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    deliveries: Option<u64>,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { volume, repos, rate, deliveries, servers } = options;
    let pace =
        rate.map_or("as fast as they are answered".to_owned(), |rate| format!("{rate} /s, on schedule"));
    let length = deliveries.map_or(format!("{} s", volume.seconds), |count| format!("{count} deliveries"));
    let title = format!(
        "webhooks: {} connections, {pace}, {} bytes, {repos} repositories, {length} a round",
        volume.concurrency, volume.shape.size
    );
    let connections = volume.concurrency.into();
    let work = Work { volume, repos, rate, deliveries };
    servers.run(&title, connections, move |session| work.measure(session)).await
}

struct Work {
    volume: Volume,
    repos: u16,
    rate: Option<u32>,
    deliveries: Option<u64>,
}

impl Work {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let load = self.load(session)?;
        let size = load.payloads.body_size() as f64;
        let measured = if let Limit::Time(time) = load.limit { Some(time) } else { None };
        session.stage("warming up", Some(load.warmup));
        if self.rate.is_some() {
            session.spin();
        }
        let (mut watch, mut cost) = (None, None);
        let mut before = 0;
        let hear = |moment| match moment {
            Moment::Start => {
                session.stage("measuring", measured);
                watch = Some(session.watch());
            }
            Moment::Tick(accepted) if watch.is_none() => before = accepted,
            Moment::Tick(accepted) => session.count(accepted - before),
            Moment::End => cost = watch.take().map(|watch| session.enough(watch)),
        };
        // Of what is not a gateway nothing is known.
        let unloaded = session.metrics().ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(drive::run(load, hear))?;
        if outcome.wrong.count > 0 {
            bail!("{} answers were not 202, the first: {}", outcome.wrong.count, outcome.wrong.first);
        }
        if outcome.lost.count > 0 {
            bail!("{} connections were lost, the first: {}", outcome.lost.count, outcome.lost.first);
        }
        let cost = cost.context("the measured time never ended")?;
        session.observe("from post to 202", &outcome.latencies.histogram());
        session.observe_over_time("webhooks", outcome.timeline);
        let latency = outcome.latencies.summary().context("nothing was answered within the measured time")?;
        let measured = latency.count as f64;

        let mut figures = vec![figure("webhooks/s", measured / cost.took)];
        if let Some(used) = cost.server {
            figures.push(figure("server CPU per webhook, µs", used * 1e6 / measured));
            figures.push(aside("server CPU, %", used * 100.0 / cost.took));
        }
        if self.rate.is_none() {
            figures.push(aside("client CPU, %", cost.client_percent()));
        }
        figures.push(figure("latency p50, ms", latency.p50));
        figures.push(figure("latency p99, ms", latency.p99));
        if let Some(late) = outcome.late.summary() {
            figures.push(aside("behind schedule p99, ms", late.p99));
        }
        let stored = unloaded.zip(session.metrics().ok());
        if let Some(stored) = stored.and_then(|(before, after)| PerEvent::between(&before, &after)) {
            figures.push(aside("statements per event", stored.statements));
            figures.push(aside("commits per event", stored.commits));
        }
        figures.push(aside("body, bytes", size));
        if let Some(rate) = self.rate.map(f64::from) {
            super::warn_if_missed(session, rate, measured / cost.took);
        }
        Ok(figures)
    }

    fn load(&self, session: &Session) -> Result<Load> {
        let Self { volume, repos, rate, deliveries } = self;
        let target = session.target();
        let size = volume.shape.size as usize;
        let payloads = Payloads::new(&target, session.webhook_secret()?, (*repos).into(), size)?;
        Ok(Load {
            target,
            payloads,
            concurrency: volume.concurrency.into(),
            warmup: if deliveries.is_some() { Duration::ZERO } else { volume.warmup() },
            limit: deliveries.map_or(Limit::Time(volume.measured()), Limit::Deliveries),
            rate: rate.map(f64::from),
            judge: |status| if status == 202 { Verdict::Accepted } else { Verdict::Wrong },
            reconnect: false,
            acked: None,
        })
    }
}
