//! `fanout`: what a delivery costs, and how many a second there can be, in a closed loop or on a
//! schedule. Invariant: every subscriber receives the same messages in the same order, without gap or
//! repeat.

use anyhow::{Result, ensure};
use clap::Args;

use super::{Period, count, percentile};
use crate::clients::Limit;
use crate::clients::broadcast::{self, Broadcast};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::metrics::PerEvent;
use crate::report::table::{Figure, aside, figure};

/// Publishers at a fixed rate: enough that one late answer does not hold up what is due.
const PUBLISHERS_AT_A_RATE: usize = 16;

/// Publishes to many subscribers of one channel: CPU per delivery, latency, deliveries a second.
///
/// With one message under way (the default) the figure to look at is the server's CPU per delivery;
/// with --in-flight N it is the latency of a window; with --saturate deliveries a second, and the
/// latency at that load. Latency is from before the publish to the receipt by each subscriber. A
/// server that stalls makes such a loop wait, so that few messages see the stall: to see it as users
/// would, use a --rate below what the server can do. Messages are then due on a schedule, and latency
/// counts from when they were due.
///
/// Without --saturate the client never sleeps, if it has a core of its own: waking it would be the
/// sender's work, which is expensive on a virtual machine, and more so the longer the client has
/// slept. Clients on other machines are not woken by the server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest fanout --subscribers 1000
  loadtest fanout --saturate --html fanout.html
  loadtest fanout --rate 200 --subscribers 500 --json before.json
  loadtest fanout --saturate --against both --strict")]
#[group(skip)]
pub struct Options {
    /// Subscribers of the one channel.
    #[arg(long, default_value_t = 1000, value_parser = count(1..=60_000))]
    subscribers: usize,
    /// Messages under way, each published over a connection of its own [default: 1, 64 with
    /// --saturate, at most 16 with --rate].
    #[arg(long, value_parser = count(1..=1024))]
    in_flight: Option<usize>,
    /// Keep enough under way that the server is never idle.
    #[arg(long)]
    saturate: bool,
    /// Messages a second, due on a schedule, whatever has become of those before.
    #[arg(long, conflicts_with = "saturate", value_parser = count(1..=100_000))]
    rate: Option<usize>,
    /// Bytes of a message's data.
    #[arg(long, default_value_t = 128, value_parser = count(0..=60_000))]
    size: usize,
    /// Instead of --seconds and --warmup: this many messages, however long that takes. For checking
    /// rather than measuring.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    messages: Option<u64>,
    #[command(flatten)]
    period: Period,
}

impl Options {
    fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(match self.rate {
            Some(_) => PUBLISHERS_AT_A_RATE,
            None if self.saturate => 64,
            None => 1,
        })
    }
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { subscribers, rate, size, messages, period, .. } = self;
        let pace = match rate {
            Some(rate) => format!("{rate} messages/s, on schedule"),
            None => format!("{} under way", self.in_flight()),
        };
        let length =
            messages.map_or(format!("{} s", period.seconds), |messages| format!("{messages} messages"));
        format!("fanout: {subscribers} subscribers, {pace}, {size} bytes of data, {length} a round")
    }

    fn connections(&self) -> usize {
        self.subscribers
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let options = broadcast::Options {
            subscribers: self.subscribers,
            publishers: self.in_flight(),
            rate: self.rate.map(|rate| rate as f64),
            size: self.size,
            spin: !self.saturate && session.meter.spin_on_own_core(),
        };
        let limit = self.messages.map_or(Limit::Time(self.period.measured()), Limit::Count);
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..self.subscribers, 1), super::WINDOW)?;
        let mut broadcast = Broadcast::open(session, swarm, &options)?;
        if self.messages.is_none() {
            broadcast.run(Limit::Time(self.period.warmup()))?;
        }
        let published = broadcast.published();
        broadcast.take();
        let ((), cost, stored) = session.measure_stored(|| broadcast.run(limit))?;
        let published = (broadcast.published() - published) as f64;
        let measured = broadcast.take();
        session.meter.observe("delivery", &measured.latencies);
        session.meter.observe_over_time("deliveries", measured.timeline);
        broadcast.finish()?;

        let deliveries = measured.latencies.count() as f64;
        ensure!(deliveries > 0.0, "nothing was delivered within the measured time");
        let mut figures = vec![figure("deliveries/s", deliveries / cost.took)];
        figures.extend(session.cost_figures(&cost, "server CPU per delivery, µs", deliveries));
        // The figure to look at comes first.
        if !self.saturate && cost.server.is_some() {
            figures.swap(0, 1);
        }
        figures.push(figure("latency p50, ms", percentile(&measured.latencies, 50)?));
        figures.push(figure("latency p99, ms", percentile(&measured.latencies, 99)?));
        figures.push(aside("messages/s", published / cost.took));
        figures.extend(stored.iter().flat_map(PerEvent::figures));
        if let Some(rate) = options.rate {
            figures.push(aside("behind schedule p99, ms", measured.late.percentile(99).unwrap_or(0.0)));
            super::warn_if_missed(session, rate, published / cost.took);
        }
        Ok(figures)
    }
}
