//! `mixed`: an ordinary day, compressed: dashboards that follow repositories, and bursts of signed
//! webhooks. Invariant: every webhook is answered 202, and its event comes to every dashboard that
//! follows its repository, in the same order for all, no gap, no repeat.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::{Period, Shape, count, percentile};
use crate::clients::Turns;
use crate::clients::dashboards::{Dashboards, Measured};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::stats::Histogram;
use crate::ws::delivery_log::Layout;

/// Dashboards that follow repositories, and bursts of signed webhooks: latency to each receipt.
///
/// All webhooks of a burst are due at once; latency counts from that moment to the receipt of the
/// event by each dashboard, and to the 202. A dashboard follows several repositories, so that each
/// event goes to some of them.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Dashboards, each with a connection.
    #[arg(long, default_value_t = 500, value_parser = count(1..=10_000))]
    dashboards: usize,
    /// Repositories.
    #[arg(long, default_value_t = 200, value_parser = count(1..=10_000))]
    repos: usize,
    /// Repositories that each dashboard follows, approximately.
    #[arg(long, default_value_t = 8, value_parser = count(1..=128))]
    follows: usize,
    /// Webhooks of a burst.
    #[arg(long, default_value_t = 50, value_parser = count(1..=10_000))]
    burst: usize,
    /// Milliseconds from one burst to the next.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    every: u64,
    /// Connections that post.
    #[arg(long, default_value_t = 64, value_parser = count(1..=1024))]
    connections: usize,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    shape: Shape,
}

pub fn layout(dashboards: usize, repos: usize, follows: usize) -> Layout {
    let fan_out = (dashboards * follows / repos).clamp(1, dashboards);
    Layout { channels: repos, fan_out, connections: dashboards }
}

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        let Self { dashboards, repos, follows, burst, every, shape, .. } = self;
        format!(
            "mixed: {dashboards} dashboards on {follows} of {repos} repositories each; {burst} webhooks of {} \
             bytes every {every} ms",
            shape.size
        )
    }

    fn connections(&self) -> usize {
        self.dashboards + self.connections
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let layout = layout(self.dashboards, self.repos, self.follows);
        let mut dashboards =
            Dashboards::open(session, layout, super::WINDOW, self.connections, self.shape.size)?;
        self.bursts(&mut dashboards, self.period.warmup())?;
        dashboards.settle()?;
        dashboards.take();
        let posted = dashboards.posted();
        let ((), cost) = session.measure(|| self.bursts(&mut dashboards, self.period.measured()))?;
        let posted = (dashboards.posted() - posted) as f64;
        dashboards.settle()?;

        let Measured { receipts, answers, .. } = dashboards.take();
        let received = receipts.count() as f64;
        ensure!(received > 0.0, "nothing was received within the measured time");
        session.meter.observe("POST to receipt", &receipts);
        session.meter.observe("POST to 202", &answers);
        let mut figures = latencies(&receipts)?;
        figures.push(figure("POST to 202 p99, ms", percentile(&answers, 99)?));
        figures.push(aside("webhooks/s", posted / cost.took));
        figures.push(aside("receipts/s", received / cost.took));
        figures.extend(cost.server_percent().map(|percent| aside("server CPU, %", percent)));
        Ok(figures)
    }
}

impl Options {
    /// Posts bursts on a schedule for a while; at least one.
    fn bursts(&self, dashboards: &mut Dashboards, time: Duration) -> Result<()> {
        let began = Instant::now();
        let mut due = began;
        while due < began + time {
            dashboards.burst(self.burst, due);
            due += Duration::from_millis(self.every);
            dashboards.run_for(due.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }
}

/// From due to receipt, as figures.
pub fn latencies(receipts: &Histogram) -> Result<Vec<Figure>> {
    Ok(vec![
        figure("POST to receipt p50, ms", percentile(receipts, 50)?),
        figure("POST to receipt p99, ms", percentile(receipts, 99)?),
        figure("POST to receipt longest, ms", percentile(receipts, 100)?),
    ])
}
