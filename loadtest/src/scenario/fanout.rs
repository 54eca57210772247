//! `fanout`: what a delivery costs, and how many a second there can be. A closed loop, in which each
//! publisher publishes its next message when every subscriber has its last one, or an open one, in
//! which messages are due on a schedule and late ones count from when they were due. Invariant: every
//! subscriber sees the same messages in the same order, without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mio::Token;

use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::metrics::PerEvent;
use crate::stats::{Histogram, Timeline};
use crate::ws::door::Door;
use crate::ws::ledger::Ledger;
use crate::ws::swarm::{FOREIGN, PATIENCE, Swarm};

/// What repeats would show up in, after the last message.
const QUIET: Duration = Duration::from_millis(200);

/// Publishers at a fixed rate: enough that one answer that is late does not hold up what is due.
const PUBLISHERS_AT_A_RATE: u16 = 16;

/// Publishes to many subscribers of one channel: CPU per delivery, latency, deliveries a second.
///
/// With one message under way (the default) the figure to look at is the server's CPU per delivery;
/// with --in-flight N it is the latency of a window; with --saturate deliveries a second, and the
/// latency at that load. Latency is from before the publish to the receipt by each subscriber. A
/// server that stalls makes such a loop wait, so that few messages see the stall: to see it as users
/// would, ask for a --rate below what the server can do. Messages are then due on a schedule, and
/// latency counts from when they were due.
///
/// Without --saturate the client looks for what came and never sleeps, if it has a core of its own:
/// to wake it would be the sender's work, a dear one on a virtual machine, and the more of it the
/// longer the client has slept. Clients elsewhere are not woken by the server.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest fanout --subscribers 1000
  loadtest fanout --saturate --html fanout.html
  loadtest fanout --rate 200 --subscribers 500 --json before.json
  loadtest fanout --saturate --against both --strict

Exit codes:
  0  measured, and every subscriber had every message, in order
  1  an invariant was broken, the run ended early, or --strict and a warning")]
#[group(skip)]
pub struct Options {
    /// Subscribers of the one channel.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    subscribers: u32,
    /// Messages under way, each published over a connection of its own [default: 1, 64 with
    /// --saturate, at most 16 with --rate].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: Option<u16>,
    /// Keep so many under way that the server is never idle.
    #[arg(long)]
    saturate: bool,
    /// Messages a second, due on a schedule, whatever has become of those before.
    #[arg(long, conflicts_with = "saturate", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Bytes of a message's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    size: u32,
    /// Measured seconds of a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    /// Instead of --seconds and --warmup: so many messages, however long that takes. For checking
    /// rather than measuring.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    messages: Option<u32>,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { subscribers, saturate, rate, size, seconds, messages, .. } = options;
    let in_flight = options.in_flight.unwrap_or(match rate {
        Some(_) => PUBLISHERS_AT_A_RATE,
        None if saturate => 64,
        None => 1,
    });
    let load = Load {
        subscribers: subscribers as usize,
        in_flight: in_flight.into(),
        rate: rate.map(f64::from),
        size: size as usize,
        warmup: Duration::from_secs(if messages.is_some() { 0 } else { options.warmup }),
        measured: messages.map_or(Limit::Time(Duration::from_secs(seconds)), Limit::Messages),
        saturate,
        spin: !saturate && options.servers.has_cores()?,
    };
    let pace = match rate {
        Some(rate) => format!("{rate} messages/s, on schedule"),
        None => format!("{in_flight} under way"),
    };
    let length = messages.map_or(format!("{seconds} s"), |messages| format!("{messages} messages"));
    let title = format!("fanout: {subscribers} subscribers, {pace}, {size} bytes of data, {length} a round");
    let connections = load.subscribers;
    options.servers.run_with_peer(&title, connections, move |session| load.measure(session)).await
}

struct Load {
    subscribers: usize,
    in_flight: usize,
    rate: Option<f64>,
    size: usize,
    warmup: Duration,
    measured: Limit,
    saturate: bool,
    /// Look for what came without ever sleeping.
    spin: bool,
}

/// When a stage is over.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Time(Duration),
    /// So many are published, and all of them delivered.
    Messages(u32),
    /// Nothing is published, and nothing owing.
    Quiet,
}

/// The state of one round.
struct Round<'a> {
    session: &'a Session,
    swarm: Swarm,
    publishers: Vec<Publisher>,
    ledger: Ledger,
    schedule: Option<Schedule>,
    latencies: Histogram,
    timeline: Timeline,
    spin: bool,
}

struct Publisher {
    door: Door,
    /// Every subscriber has its last message.
    delivered: bool,
}

/// When messages are due.
struct Schedule {
    start: Instant,
    every: f64,
    /// How many have been sent.
    sent: u32,
    /// How long after they were due.
    late: Histogram,
}

impl Schedule {
    fn next(&self) -> Instant {
        self.start + Duration::from_secs_f64(f64::from(self.sent) * self.every)
    }
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        if self.spin {
            session.spin();
        }
        session.stage("connecting", None);
        let mut round = self.begin(session)?;
        session.stage("warming up", Some(self.warmup));
        round.drive(Limit::Time(self.warmup))?;
        let published_before = round.ledger.published();
        let length = if let Limit::Time(time) = self.measured { Some(time) } else { None };
        session.stage("measuring", length);
        round.forget();
        // Of what is not a gateway nothing is known.
        let before = session.metrics().ok();
        let ((), cost) = session.measure(|| round.drive(self.measured))?;
        let stored = before.zip(session.metrics().ok());
        let published = (round.ledger.published() - published_before) as f64;
        let latencies = std::mem::take(&mut round.latencies);
        session.observe("delivery", &latencies);
        session.observe_over_time("deliveries", round.timeline.clone());
        let late = round.schedule.as_ref().map(|schedule| schedule.late.clone());
        session.stage("waiting for what must not come", None);
        round.finish()?;

        let deliveries = latencies.count() as f64;
        ensure!(deliveries > 0.0, "nothing was delivered within the measured time");
        let percentile = |percent| latencies.percentile(percent).context("nothing was delivered");
        let mut figures = vec![figure("deliveries/s", deliveries / cost.took)];
        if let Some(used) = cost.server {
            figures.push(figure("server CPU per delivery, µs", used * 1e6 / deliveries));
            // The figure to look at comes first.
            if !self.saturate {
                figures.swap(0, 1);
            }
            figures.push(aside("server CPU, %", used * 100.0 / cost.took));
        }
        if !self.spin {
            figures.push(aside("client CPU, %", cost.client_percent()));
        }
        figures.push(figure("latency p50, ms", percentile(50)?));
        figures.push(figure("latency p99, ms", percentile(99)?));
        figures.push(aside("messages/s", published / cost.took));
        if let Some(stored) = stored.and_then(|(before, after)| PerEvent::between(&before, &after)) {
            figures.push(aside("statements per event", stored.statements));
            figures.push(aside("commits per event", stored.commits));
        }
        if let (Some(late), Some(rate)) = (late, self.rate) {
            figures.push(aside("behind schedule p99, ms", late.percentile(99).unwrap_or(0.0)));
            super::warn_if_missed(session, rate, published / cost.took);
        }
        Ok(figures)
    }

    fn begin<'a>(&self, session: &'a Session) -> Result<Round<'a>> {
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..self.subscribers, 1), super::WINDOW)?;
        let publishing = session.publishing(self.size);
        let publisher = |index| {
            let door = Door::open(&publishing, swarm.registry(), Token(FOREIGN + index))?;
            Ok(Publisher { door, delivered: true })
        };
        let publishers = (0..self.in_flight).map(publisher).collect::<Result<_>>()?;
        let ledger = Ledger::new(self.subscribers, self.in_flight);
        let schedule = |rate: f64| Schedule {
            start: Instant::now(),
            every: rate.recip(),
            sent: 0,
            late: Histogram::new(),
        };
        Ok(Round {
            session,
            swarm,
            publishers,
            ledger,
            schedule: self.rate.map(schedule),
            latencies: Histogram::new(),
            timeline: Timeline::since(Instant::now()),
            spin: self.spin,
        })
    }
}

impl Round<'_> {
    /// What was measured so far does not count.
    fn forget(&mut self) {
        self.latencies = Histogram::new();
        self.timeline = Timeline::since(Instant::now());
        if let Some(schedule) = &mut self.schedule {
            schedule.late = Histogram::new();
        }
    }

    /// Lets the load run up to the limit.
    fn drive(&mut self, limit: Limit) -> Result<()> {
        let end = if let Limit::Time(time) = limit { Some(Instant::now() + time) } else { None };
        let before = self.ledger.published();
        let mut doors = Vec::new();
        let mut progress = (self.latencies.count(), Instant::now());
        loop {
            let now = Instant::now();
            let publishing = match limit {
                Limit::Time(_) if end.is_some_and(|end| now >= end) => return Ok(()),
                Limit::Time(_) => true,
                Limit::Messages(count) => self.ledger.published() - before < count as usize,
                Limit::Quiet => false,
            };
            if publishing {
                self.publish(now)?;
            }
            self.turn(self.patience(now, end), &mut doors)?;

            let owing = self.ledger.owing();
            let busy = owing > 0 || self.publishers.iter().any(|publisher| publisher.door.is_busy());
            if !publishing && !busy {
                return Ok(());
            }
            if self.latencies.count() != progress.0 {
                progress = (self.latencies.count(), Instant::now());
                self.session.count(progress.0);
            }
            // At a low rate nothing may be due for a long time.
            ensure!(
                owing == 0 || progress.1.elapsed() < PATIENCE,
                "{owing} deliveries are owing and do not come"
            );
        }
    }

    /// What can be published, or is due.
    fn publish(&mut self, now: Instant) -> Result<()> {
        for (index, publisher) in self.publishers.iter_mut().enumerate() {
            if publisher.door.is_busy() {
                continue;
            }
            let at = match &mut self.schedule {
                Some(schedule) => {
                    let due = schedule.next();
                    if due > now {
                        return Ok(());
                    }
                    schedule.sent += 1;
                    schedule.late.record(now - due);
                    due
                }
                None if publisher.delivered => Instant::now(),
                None => continue,
            };
            publisher.delivered = false;
            publisher.door.publish(self.ledger.publish(index, at))?;
        }
        Ok(())
    }

    /// How long to wait for something to come.
    fn patience(&self, now: Instant, end: Option<Instant>) -> Duration {
        let due = self.schedule.as_ref().map(Schedule::next);
        let until = [end, due].into_iter().flatten().map(|at| at.saturating_duration_since(now));
        let longest = Duration::from_secs(1);
        if self.spin { Duration::ZERO } else { until.fold(longest, Duration::min) }
    }

    /// Waits for what comes, and enters it into the books.
    fn turn(&mut self, patience: Duration, doors: &mut Vec<Token>) -> Result<()> {
        let Self { swarm, publishers, ledger, latencies, timeline, .. } = self;
        let before = latencies.count();
        let mut hear = |subscriber: usize, number: u32, at: Instant| {
            let receipt = ledger.receive(subscriber, number, at)?;
            latencies.record(receipt.latency);
            if let Some(publisher) = receipt.completed {
                publishers[publisher].delivered = true;
            }
            Ok(())
        };
        swarm.turn(patience, &mut hear, doors)?;
        for Token(token) in doors.drain(..) {
            publishers[token - FOREIGN].door.hear()?;
        }
        let received = latencies.count() - before;
        if received > 0 {
            timeline.count(Instant::now(), received);
        }
        Ok(())
    }

    /// Waits for what is under way, and a moment longer for what must not come.
    fn finish(mut self) -> Result<()> {
        self.schedule = None;
        self.drive(Limit::Quiet)?;
        let end = Instant::now() + QUIET;
        let ledger = &mut self.ledger;
        while Instant::now() < end {
            let mut hear = |subscriber, number, at| ledger.receive(subscriber, number, at).map(drop);
            self.swarm.turn(QUIET / 4, &mut hear, &mut Vec::new())?;
        }
        Ok(())
    }
}
