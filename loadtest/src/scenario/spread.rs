//! `spread`: what it costs that events are spread over many channels. Points with different numbers of
//! channels and subscribers are measured, and cost = a × events + b × deliveries is fitted to them.
//! Invariant: every subscriber of a channel sees its messages in the same order, no gap, no repeat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mio::Token;

use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::metrics::PerEvent;
use crate::ws::books::{Books, Seating};
use crate::ws::door::Door;
use crate::ws::swarm::{FOREIGN, First, News, PATIENCE, Swarm, expect_nothing};

/// Numbers of channels, and what their figures are called.
const SPREADS: [(usize, [&str; 3]); 5] = [
    (1, ["b over 1 channel, µs a delivery", "a over 1 channel, µs an event", "fit over 1 channel, ±%"]),
    (
        10,
        ["b over 10 channels, µs a delivery", "a over 10 channels, µs an event", "fit over 10 channels, ±%"],
    ),
    (
        100,
        [
            "b over 100 channels, µs a delivery",
            "a over 100 channels, µs an event",
            "fit over 100 channels, ±%",
        ],
    ),
    (
        1000,
        [
            "b over 1,000 channels, µs a delivery",
            "a over 1,000 channels, µs an event",
            "fit over 1,000 channels, ±%",
        ],
    ),
    (
        10_000,
        [
            "b over 10,000 channels, µs a delivery",
            "a over 10,000 channels, µs an event",
            "fit over 10,000 channels, ±%",
        ],
    ),
];
/// Messages under way where commits are counted: a commit is shared by those that wait together.
const TOGETHER: usize = 64;
/// What one connection may follow.
const MOST_CHANNELS: usize = 128;
/// Bytes of the data.
const SIZE: usize = 128;

/// Publishes to 1, 10, … 10,000 channels: what an event costs (a), and what a delivery costs (b).
///
/// One message is under way at a time, channel after channel, so that nothing is merged and each
/// delivery is a write of its own. For each number of channels, points with 1, half and all of
/// --subscribers are measured, and the server's CPU is fitted by least squares to
/// a × events + b × deliveries. The figure to look at is how much dearer a delivery is over the most
/// channels than over one, and that beside the floor: one channel has --subscribers sockets, many
/// have all, and what the kernel takes for a socket that it has not seen for long is not ours.
/// Statements and commits an event are counted by the gateway, also with 64 under way.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// The most channels: 1, 10, 100, 1000 or 10000.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    channels: u32,
    /// The most subscribers of each channel.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=1000))]
    subscribers: u16,
    /// Connections that share the subscriptions; each follows 128 channels at most.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    connections: u16,
    /// Measured seconds of a point; there are three for each number of channels.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { channels, subscribers, connections, seconds, warmup, servers } = options;
    let title = format!(
        "spread: 1 to {channels} channels with 1 to {subscribers} subscribers each, over {connections} \
         connections; one under way, {seconds} s a point"
    );
    let load = Load {
        channels: channels as usize,
        subscribers: subscribers.into(),
        connections: connections.into(),
        warmup: Duration::from_secs(warmup),
        measured: Duration::from_secs(seconds),
    };
    let most = SPREADS.iter().map(|(count, _)| *count).filter(|count| *count <= load.channels).max();
    let most = most.unwrap_or(1) * load.subscribers;
    ensure!(
        load.subscribers <= load.connections && most <= load.connections * MOST_CHANNELS,
        "{most} subscriptions are too many for {connections} connections: ask for more of these"
    );
    servers.run(&title, load.connections, move |session| load.measure(session)).await
}

struct Load {
    channels: usize,
    subscribers: usize,
    connections: usize,
    warmup: Duration,
    measured: Duration,
}

/// What one point cost.
#[derive(Debug, Clone, Copy)]
struct Point {
    events: f64,
    deliveries: f64,
    /// In microseconds.
    cost: f64,
}

/// cost = a × events + b × deliveries, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    a: f64,
    b: f64,
    /// The largest relative error at any point.
    error: f64,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        let mut fits = Vec::new();
        let mut most = 1;
        let fan_outs = [1, self.subscribers.div_ceil(2), self.subscribers];
        for (channels, [b, a, error]) in SPREADS.into_iter().filter(|(count, _)| *count <= self.channels) {
            let point = |fan_out| {
                let seating = Seating { channels, fan_out, connections: self.connections };
                let point = self.point(session, seating, 1);
                point.with_context(|| format!("{channels} channels × {fan_out}"))
            };
            let points: Vec<Point> = fan_outs.into_iter().map(point).collect::<Result<_>>()?;
            let fit = Fit::of(&points)?;
            figures.push(figure(b, fit.b));
            figures.push(figure(a, fit.a));
            figures.push(aside(error, fit.error * 100.0));
            fits.push(fit);
            most = channels;
        }
        let (first, last) = (fits.first().context("no points")?, fits.last().context("no points")?);
        figures.push(figure("b over the most channels, of b over 1", last.b / first.b));
        figures.push(figure("a over the most channels, of a over 1", last.a / first.a));
        let seating = Seating { channels: most, fan_out: 1, connections: self.connections };
        for ([statements, commits], in_flight) in [
            (["statements per event", "commits per event"], 1),
            (["statements per event, 64 under way", "commits per event, 64 under way"], TOGETHER),
        ] {
            let before = session.metrics()?;
            self.point(session, seating, in_flight)?;
            // The floor keeps none.
            if let Some(cost) = PerEvent::between(&before, &session.metrics()?) {
                figures.push(aside(statements, cost.statements));
                figures.push(aside(commits, cost.commits));
            }
        }
        Ok(figures)
    }

    /// Opens connections of its own, and closes them behind it.
    fn point(&self, session: &Session, seating: Seating, in_flight: usize) -> Result<Point> {
        let mut swarm = Swarm::new(session.address, &session.host)?;
        let names: Vec<String> = (0..seating.channels).map(|channel| session.channel(channel)).collect();
        let mut wanted = vec![Vec::new(); seating.connections];
        seating.seats().for_each(|(channel, connection)| wanted[connection].push(&*names[channel]));
        let first = |(connection, channels): (usize, Vec<&str>)| {
            First::subscribing(&session.token(connection, None), channels)
        };
        let firsts: Vec<First> = wanted.into_iter().enumerate().map(first).collect();
        swarm.open(firsts, super::WINDOW)?;
        let publishing = session.publishing(SIZE);
        let publisher = |index| {
            let door = Door::open(&publishing, swarm.registry(), Token(FOREIGN + index))?;
            Ok(Publisher { door, delivered: true })
        };
        let publishers = (0..in_flight).map(publisher).collect::<Result<_>>()?;
        let books = Books::new(seating, in_flight)?;
        let mut round = Round { swarm, publishers, books, names: &names, next: 0, received: 0 };

        round.drive(self.warmup, true)?;
        let (events, deliveries) = (round.books.published(), round.received);
        let cpu = session.cpu_time().context("the server's CPU is not known: give its --pid")?;
        round.drive(self.measured, true)?;
        let used = session.cpu_time().context("the server is gone")? - cpu;
        let point = Point {
            events: (round.books.published() - events) as f64,
            deliveries: (round.received - deliveries) as f64,
            cost: used.as_secs_f64() * 1e6,
        };
        round.drive(PATIENCE * 2, false)?;
        ensure!(round.books.owing() == 0, "{} deliveries never came", round.books.owing());
        round.swarm.listen(Duration::from_millis(100))?;
        ensure!(point.deliveries > 0.0, "nothing was delivered within the measured time");
        Ok(point)
    }
}

/// The state of one point.
struct Round<'a> {
    swarm: Swarm,
    publishers: Vec<Publisher>,
    books: Books,
    names: &'a [String],
    /// The next channel's turn.
    next: usize,
    received: u64,
}

struct Publisher {
    door: Door,
    /// Every subscriber has its last message.
    delivered: bool,
}

impl Round<'_> {
    /// Lets the load run for a while; without publishing, until nothing is owing.
    fn drive(&mut self, time: Duration, publishing: bool) -> Result<()> {
        let Self { swarm, publishers, books, names, next, received } = self;
        let end = Instant::now() + time;
        let mut doors = Vec::new();
        let mut progress = (*received, Instant::now());
        loop {
            let now = Instant::now();
            let busy = books.owing() > 0 || publishers.iter().any(|publisher| publisher.door.is_busy());
            if now >= end || (!publishing && !busy) {
                return Ok(());
            }
            for (index, publisher) in publishers.iter_mut().enumerate() {
                if publishing && publisher.delivered && !publisher.door.is_busy() {
                    publisher.delivered = false;
                    publisher.door.aim(&names[*next]);
                    publisher.door.publish(books.publish(*next, index, now))?;
                    *next = (*next + 1) % names.len();
                }
            }
            let mut hear = |connection: usize, news: News<'_>, at: Instant| {
                let News::Publication(number) = news else { return expect_nothing(connection, news, at) };
                *received += 1;
                if let Some(publisher) = books.receive(connection, number, at)?.completed {
                    publishers[publisher].delivered = true;
                }
                Ok(())
            };
            swarm.follow((end - now).min(Duration::from_secs(1)), &mut hear, &mut doors)?;
            for Token(token) in doors.drain(..) {
                publishers[token - FOREIGN].door.hear()?;
            }
            if *received != progress.0 {
                progress = (*received, Instant::now());
            }
            ensure!(
                progress.1.elapsed() < PATIENCE,
                "{} deliveries are owing and do not come",
                books.owing()
            );
        }
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
