//! `fanout`: what a delivery costs, and how many a second there can be. A closed loop: each
//! publisher publishes its next message when every subscriber has its last one. Invariant: every
//! subscriber sees the same messages in the same order, without gap or repeat.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mio::Token;

use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::process;
use crate::stats::Histogram;
use crate::ws::door::Door;
use crate::ws::ledger::Ledger;
use crate::ws::swarm::{FOREIGN, PATIENCE, Swarm};

/// What repeats would show up in, after the last message.
const QUIET: Duration = Duration::from_millis(200);

/// Publishes to many subscribers of one channel: CPU per delivery, latency, deliveries a second.
///
/// With one message under way (the default) the figure to look at is the server's CPU per delivery;
/// with --saturate it is deliveries a second, and the latency at that load. Latency is from before
/// the publish to the receipt by each subscriber.
///
/// Without --saturate the client looks for what came and never sleeps, if it has a core of its own:
/// to wake it would be the sender's work, a dear one on a virtual machine, and the more of it the
/// longer the client has slept. Clients elsewhere are not woken by the server.
#[derive(Debug, Args)]
pub struct Options {
    /// Subscribers of the one channel.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    subscribers: u32,
    /// Messages under way, each published over a connection of its own [default: 1, or 64 with
    /// --saturate].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: Option<u16>,
    /// Keep so many under way that the server is never idle.
    #[arg(long)]
    saturate: bool,
    /// Bytes of a message's data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    size: u32,
    /// Measured seconds of a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let load = Load {
        subscribers: options.subscribers as usize,
        in_flight: options.in_flight.unwrap_or(if options.saturate { 64 } else { 1 }).into(),
        size: options.size as usize,
        warmup: Duration::from_secs(options.warmup),
        measured: Duration::from_secs(options.seconds),
        spin: !options.saturate && options.servers.has_cores()?,
    };
    let title = format!(
        "fanout: {} subscribers, {} under way, {} bytes of data, {} s a round",
        load.subscribers, load.in_flight, load.size, options.seconds
    );
    let connections = load.subscribers;
    options.servers.run(&title, connections, move |session| load.measure(session)).await
}

struct Load {
    subscribers: usize,
    in_flight: usize,
    size: usize,
    warmup: Duration,
    measured: Duration,
    /// Look for what came without ever sleeping.
    spin: bool,
}

/// The state of one round.
struct Round {
    swarm: Swarm,
    publishers: Vec<Publisher>,
    ledger: Ledger,
    latencies: Histogram,
    spin: bool,
}

struct Publisher {
    door: Door,
    /// Every subscriber has its last message.
    delivered: bool,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut round = self.begin(session)?;
        round.drive(self.warmup, true)?;
        let cpu = || (session.cpu_time(), process::cpu_time("self"));
        let (server_before, own_before) = cpu();
        let published_before = round.ledger.published();
        round.latencies = Histogram::new();
        let began = Instant::now();
        round.drive(self.measured, true)?;
        let took = began.elapsed().as_secs_f64();
        let (server_after, own_after) = cpu();
        let latencies = std::mem::replace(&mut round.latencies, Histogram::new());
        let published = round.ledger.published() - published_before;
        round.finish()?;

        let deliveries = latencies.count() as f64;
        ensure!(deliveries > 0.0, "nothing was delivered within the measured time");
        let percentile = |percent| latencies.percentile(percent).context("nothing was delivered");
        let mut figures = vec![figure("deliveries/s", deliveries / took)];
        if let (Some(before), Some(after)) = (server_before, server_after) {
            let used = (after - before).as_secs_f64();
            figures.push(figure("server CPU per delivery, µs", used * 1e6 / deliveries));
            figures.push(aside("server CPU, %", used * 100.0 / took));
        }
        if let (false, Some(before), Some(after)) = (self.spin, own_before, own_after) {
            figures.push(aside("client CPU, %", (after - before).as_secs_f64() * 100.0 / took));
        }
        figures.push(figure("latency p50, ms", percentile(50)?));
        figures.push(figure("latency p99, ms", percentile(99)?));
        figures.push(aside("messages/s", published as f64 / took));
        Ok(figures)
    }

    fn begin(&self, session: &Session) -> Result<Round> {
        let mut swarm = Swarm::new(session.address, &session.host)?;
        swarm.open(session.first_frames(0..self.subscribers, 1), super::WINDOW)?;
        let publishing = session.publishing(self.size);
        let publisher = |index| {
            let door = Door::open(&publishing, swarm.registry(), Token(FOREIGN + index))?;
            Ok(Publisher { door, delivered: true })
        };
        let publishers = (0..self.in_flight).map(publisher).collect::<Result<_>>()?;
        let ledger = Ledger::new(self.subscribers, self.in_flight);
        Ok(Round { swarm, publishers, ledger, latencies: Histogram::new(), spin: self.spin })
    }
}

impl Round {
    /// Lets the load run for a while; without publishing, until nothing is owing.
    fn drive(&mut self, time: Duration, publishing: bool) -> Result<()> {
        let Self { swarm, publishers, ledger, latencies, spin } = self;
        let end = Instant::now() + time;
        let mut doors = Vec::new();
        let mut progress = (latencies.count(), Instant::now());
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            for (index, publisher) in publishers.iter_mut().enumerate() {
                if publishing && publisher.delivered && !publisher.door.is_busy() {
                    publisher.delivered = false;
                    publisher.door.publish(ledger.publish(index, Instant::now()))?;
                }
            }
            let mut hear = |subscriber: usize, number: u32, at: Instant| {
                let receipt = ledger.receive(subscriber, number, at)?;
                latencies.record(receipt.latency);
                if let Some(publisher) = receipt.completed {
                    publishers[publisher].delivered = true;
                }
                Ok(())
            };
            let patience = if *spin { Duration::ZERO } else { (end - now).min(Duration::from_secs(1)) };
            swarm.turn(patience, &mut hear, &mut doors)?;
            for Token(token) in doors.drain(..) {
                publishers[token - FOREIGN].door.hear()?;
            }

            let busy = ledger.owing() > 0 || publishers.iter().any(|publisher| publisher.door.is_busy());
            if !publishing && !busy {
                return Ok(());
            }
            if latencies.count() != progress.0 {
                progress = (latencies.count(), Instant::now());
            }
            ensure!(
                progress.1.elapsed() < PATIENCE,
                "{} deliveries are owing and do not come",
                ledger.owing()
            );
        }
    }

    /// Waits for what is under way, and a moment longer for what must not come.
    fn finish(mut self) -> Result<()> {
        self.drive(PATIENCE * 2, false)?;
        let owing = self.ledger.owing();
        ensure!(owing == 0, "{owing} deliveries never came");
        let end = Instant::now() + QUIET;
        let ledger = &mut self.ledger;
        while Instant::now() < end {
            let mut hear = |subscriber, number, at| ledger.receive(subscriber, number, at).map(drop);
            self.swarm.turn(QUIET / 4, &mut hear, &mut Vec::new())?;
        }
        Ok(())
    }
}
