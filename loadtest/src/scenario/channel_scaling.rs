//! `channel-scaling`: what it costs that events are spread over many channels. For each number of channels,
//! cost = a × events + b × deliveries is fitted to groups of channels with different numbers of
//! subscribers, which take turns so that all of them see the same machine.
//! Invariant: every subscriber of a channel sees its messages in the same order, no gap, no repeat.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::count;
use crate::clients::channel_groups::{ChannelGroups, Point};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::metrics::PerEvent;
use crate::report::table::{Figure, aside, figure};
use crate::ws::delivery_log::Layout;

/// A number of channels, and what its figures are called.
macro_rules! scale {
    ($count:literal, $name:literal) => {
        (
            $count,
            [
                concat!("b over ", $name, ", µs a delivery"),
                concat!("a over ", $name, ", µs an event"),
                concat!("fit over ", $name, ", ±%"),
            ],
        )
    };
}

const SCALES: [(usize, [&str; 3]); 5] = [
    scale!(1, "1 channel"),
    scale!(10, "10 channels"),
    scale!(100, "100 channels"),
    scale!(1000, "1,000 channels"),
    scale!(10_000, "10,000 channels"),
];
/// Messages under way where commits are counted: a commit is shared by those that wait together.
const TOGETHER: usize = 64;

/// Publishes to 1, 10, … 10,000 channels: what an event costs (a), and what a delivery costs (b).
///
/// One message is under way at a time, channel after channel, so that nothing is merged and each
/// delivery is a write of its own. For each number of channels there are three groups of that many, whose
/// channels have 1, half and all of --subscribers. The same connections follow all of them, and the
/// groups take turns of 100 ms. The client never sleeps, if it has a core of its own. The server's CPU for
/// each group is fitted by least squares to a × events + b × deliveries. The figure to look at is how much
/// more a delivery costs over the most channels than over one, and that beside the floor. For it the groups
/// of both take turns with each other, because a machine has seconds in which all that is sent costs a
/// third more. One channel has --subscribers sockets, many have all, and what the kernel takes for a socket
/// that it has not seen for long is not ours. With few connections that follow very many channels the
/// sockets are the same ones; the gateway needs other limits then, see the examples. Statements and commits
/// an event are counted by the gateway, also with 64 under way, over the most channels with one subscriber
/// each and no others.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest channel-scaling
  loadtest channel-scaling --database postgres
  loadtest channel-scaling --connections 25 --follow 12400 --set CAMPANILE_CLIENT__CHANNEL_LIMIT=12400 \\
    --set CAMPANILE_WEBSOCKET__MESSAGE_SIZE_LIMIT=4MiB --set CAMPANILE_CLIENT__QUEUE_MAX_SIZE=16MiB")]
#[group(skip)]
pub struct Options {
    /// The most channels of a group: 1, 10, 100, 1000 or 10000.
    #[arg(long, default_value_t = 10_000, value_parser = count(1..=10_000))]
    channels: usize,
    /// The most subscribers of each channel.
    #[arg(long, default_value_t = 20, value_parser = count(2..=1000))]
    subscribers: usize,
    /// Connections that share the subscriptions of all groups.
    #[arg(long, default_value_t = 2500, value_parser = count(10..=10_000))]
    connections: usize,
    /// The most channels that one of them may follow, as in the gateway's client.channel_limit.
    #[arg(long, default_value_t = 128, value_parser = count(1..=20_000))]
    follow: usize,
    /// Measured seconds of a group; there are three for each number of channels.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Seconds before them that are checked but not counted; longer if a channel had no message yet.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
}

/// cost = a × events + b × deliveries, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    a: f64,
    b: f64,
    /// The largest relative error at any point.
    error: f64,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { channels, subscribers, connections, seconds, .. } = self;
        format!(
            "channel-scaling: 1 to {channels} channels with 1 to {subscribers} subscribers each, over \
             {connections} connections; one under way, {seconds} s a group"
        )
    }

    fn connections(&self) -> usize {
        self.connections
    }

    fn check(&self) -> Result<()> {
        let Self { subscribers, connections, follow, .. } = self;
        let most = SCALES.iter().map(|(count, _)| *count).filter(|count| *count <= self.channels).max();
        let together = [self.groups(most.unwrap_or(1)), self.groups(1)].concat();
        let follows = together.iter().map(Layout::most_subscriptions).sum::<usize>();
        ensure!(
            subscribers <= connections,
            "{connections} connections are too few for {subscribers} subscribers of one channel"
        );
        ensure!(
            follows <= *follow,
            "{connections} connections are too few: one would follow {follows} channels, and {follow} are the most"
        );
        Ok(())
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        let scales: Vec<_> = SCALES.into_iter().filter(|(count, _)| *count <= self.channels).collect();
        let most = scales.last().context("no points")?.0;
        for (channels, [b, a, error]) in scales {
            let counts = if channels == most { &[channels, 1][..] } else { &[channels] };
            let fits = self.fit(session, counts).with_context(|| format!("{channels} channels"))?;
            let fit = fits[0];
            figures.push(figure(b, fit.b));
            figures.push(figure(a, fit.a));
            figures.push(aside(error, fit.error * 100.0));
            if let [fit, one] = fits[..] {
                figures.push(figure("b over the most channels, of b over 1", fit.b / one.b));
                figures.push(figure("a over the most channels, of a over 1", fit.a / one.a));
            }
        }
        for ([statements, commits], in_flight) in [
            (["statements per event", "commits per event"], 1),
            (["statements per event, 64 under way", "commits per event, 64 under way"], TOGETHER),
        ] {
            let before = session.metrics()?;
            let mut group = self.open(session, &[self.layout(most, 1)], in_flight)?;
            group.publish(0, Duration::from_secs(self.warmup + self.seconds))?;
            group.close()?;
            // The floor keeps none.
            if let Some(cost) = PerEvent::between(&before, &session.metrics()?) {
                figures.push(aside(statements, cost.statements));
                figures.push(aside(commits, cost.commits));
            }
        }
        Ok(figures)
    }
}

impl Options {
    fn layout(&self, channels: usize, fan_out: usize) -> Layout {
        Layout { channels, fan_out, connections: self.connections }
    }

    /// A group for each point of a fit.
    fn groups(&self, channels: usize) -> [Layout; 3] {
        [1, self.subscribers.div_ceil(2), self.subscribers].map(|fan_out| self.layout(channels, fan_out))
    }

    fn open(&self, session: &Session, groups: &[Layout], in_flight: usize) -> Result<ChannelGroups> {
        let spin = session.meter.spin_on_own_core();
        ChannelGroups::open(session, groups, in_flight, super::WINDOW, spin)
    }

    /// A fit for each number of channels, over connections that are opened for it and closed behind it.
    fn fit(&self, session: &Session, counts: &[usize]) -> Result<Vec<Fit>> {
        let seatings: Vec<Layout> = counts.iter().flat_map(|channels| self.groups(*channels)).collect();
        let mut groups = self.open(session, &seatings, 1)?;
        groups.warm_up(Duration::from_secs(self.warmup))?;
        let points = groups.take_turns(session, Duration::from_secs(self.seconds))?;
        groups.close()?;
        points.chunks(seatings.len() / counts.len()).map(Fit::of).collect()
    }
}

impl Fit {
    /// Least squares of the relative errors, so that a point with little work counts as much as one
    /// with a lot.
    fn of(points: &[Point]) -> Result<Self> {
        ensure!(points.len() >= 2, "two points at least make a fit");
        let (mut ee, mut ed, mut dd, mut e1, mut d1) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for Point { events, deliveries, cost } in points {
            ensure!(*cost > 0.0, "a point without a cost: measure longer");
            let (e, d) = (events / cost, deliveries / cost);
            ee += e * e;
            ed += e * d;
            dd += d * d;
            e1 += e;
            d1 += d;
        }
        let determinant = ee * dd - ed * ed;
        ensure!(determinant > 1e-9 * ee * dd, "points that are too much alike make no fit");
        let a = (e1 * dd - d1 * ed) / determinant;
        let b = (d1 * ee - e1 * ed) / determinant;
        let error = |point: &Point| ((a * point.events + b * point.deliveries) / point.cost - 1.0).abs();
        Ok(Self { a, b, error: points.iter().map(error).fold(0.0, f64::max) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_what_events_and_deliveries_cost() {
        let point = |events: f64, fan_out: f64| Point {
            events,
            deliveries: events * fan_out,
            cost: 40.0 * events + 5.0 * events * fan_out,
        };
        let fit = Fit::of(&[point(1000.0, 1.0), point(500.0, 4.0), point(90.0, 10.0)]).unwrap();
        assert!((fit.a - 40.0).abs() < 1e-6 && (fit.b - 5.0).abs() < 1e-6 && fit.error < 1e-9, "{fit:?}");
        assert!(Fit::of(&[point(1.0, 4.0), point(2.0, 4.0)]).is_err(), "one fan-out says nothing");
    }
}
