//! `slow`: some readers stop reading. Invariant: the others see every message in order, the memory
//! that the stopped ones cost is bounded, each of them is closed with 3008, and comes back with its
//! position to exactly what it missed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mio::Token;

use super::percentile;
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::stats::Histogram;
use crate::ws::door::Door;
use crate::ws::ledger::Ledger;
use crate::ws::swarm::{FOREIGN, First, News, PATIENCE, Swarm, expect_nothing};

/// The close code of a reader that is too slow.
const SLOW: u16 = 3008;
/// What the gateway counts them by.
const CLOSED: &str = "campanile_slow_disconnects_total";
/// What may wait for one connection in a gateway with its defaults (client.queue_max_size).
const QUEUE: u64 = 1024 * 1024;
/// What else a gateway may grow by meanwhile.
const SLACK: u64 = 32 * 1024 * 1024;
/// How often the gateway is asked how many it has closed.
const ASKING: Duration = Duration::from_millis(100);
/// At most so long until the last one is closed.
const LONGEST: Duration = Duration::from_secs(120);
/// Live traffic to everybody after they have come back.
const AFTER: Duration = Duration::from_millis(500);
/// Messages under way at once.
const DOORS: usize = 8;
const MEBI: f64 = 1024.0 * 1024.0;

/// Lets a share of the readers stop reading: what the others notice, and what becomes of those.
///
/// Messages go to all subscribers of one channel on a schedule; latency counts from when each was due.
/// The kernel takes some megabytes for a reader that has stopped before the gateway's own queue fills,
/// so messages are large here. The gateway's metrics say when the stopped ones are closed; then they
/// read on, must find close code 3008, and come back with their positions.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Subscribers of the one channel.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=10_000))]
    subscribers: u16,
    /// Percent of them that stop reading.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=90))]
    percent: u8,
    /// Messages a second.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Bytes of a message's data.
    #[arg(long, default_value_t = 32_000, value_parser = clap::value_parser!(u32).range(1000..=60_000))]
    size: u32,
    /// Seconds that are measured before anybody stops, to compare with.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    before: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { subscribers, percent, rate, size, before, servers } = options;
    let (subscribers, percent) = (usize::from(subscribers), usize::from(percent));
    let stopped = (subscribers * percent / 100).max(1);
    let title =
        format!("slow: {stopped} of {subscribers} readers stop; {rate} messages/s of {size} bytes of data");
    let load = Load { subscribers, stopped, rate, size: size as usize, before: Duration::from_secs(before) };
    servers.gateway_alone()?.run(&title, subscribers, move |session| load.measure(session)).await
}

struct Load {
    subscribers: usize,
    stopped: usize,
    rate: u32,
    size: usize,
    before: Duration,
}

/// The state of one round. Those that stop are the first ones.
struct Round<'a> {
    session: &'a Session,
    swarm: Swarm,
    doors: Vec<Door>,
    ledger: Ledger,
    stopped: usize,
    every: Duration,
    due: Instant,
    /// Of those that never stop.
    latencies: Histogram,
    /// The codes with which stopped ones were closed, by connection.
    closed: Vec<Option<u16>>,
    /// The position before the first message.
    epoch: String,
    offset: u64,
    said: Vec<Token>,
}

impl Load {
    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let mut round = self.begin(session)?;
        round.run(self.before / 2)?;
        round.take_latencies();
        round.run(self.before)?;
        let calm = round.take_latencies();
        let resident_before =
            session.resident().context("the server's memory is not known: give its --pid")?;

        let began = Instant::now();
        for reader in 0..self.stopped {
            round.swarm.set_deaf(reader, true)?;
        }
        let peak = round.until_closed(began)?;
        let closed_after = began.elapsed();
        let beside = round.take_latencies();
        for reader in 0..self.stopped {
            round.swarm.set_deaf(reader, false)?;
        }
        round.until_told()?;
        round.come_back()?;
        round.due = Instant::now();
        round.run(AFTER)?;
        round.finish()?;

        let grown = peak.saturating_sub(resident_before);
        let bound = SLACK + 2 * QUEUE * self.stopped as u64;
        ensure!(
            grown <= bound,
            "memory grew by {grown} bytes, more than the {bound} that are to be expected"
        );
        session.observe("others before", &calm);
        session.observe("others beside slow readers", &beside);
        let (calm_p99, beside_p99) = (percentile(&calm, 99)?, percentile(&beside, 99)?);
        Ok(vec![
            figure("others p99 before, ms", calm_p99),
            figure("others p99 beside slow readers, ms", beside_p99),
            aside("of the p99 before", beside_p99 / calm_p99),
            aside("others longest before, ms", percentile(&calm, 100)?),
            aside("others longest beside slow readers, ms", percentile(&beside, 100)?),
            aside("closed with 3008", self.stopped as f64),
            aside("all closed after, s", closed_after.as_secs_f64()),
            figure("resident per slow reader at most, KiB", grown as f64 / 1024.0 / self.stopped as f64),
            aside("resident before, MiB", resident_before as f64 / MEBI),
        ])
    }

    fn begin<'a>(&self, session: &'a Session) -> Result<Round<'a>> {
        let mut swarm = Swarm::new(session.address, &session.host)?;
        let mut place = None;
        let mut hear = |connection: usize, news: News<'_>, at: Instant| {
            if let News::Subscribed(reply) = &news {
                place = Some((reply.epoch.clone().context("a channel without positions")?, reply.offset));
            }
            expect_nothing(connection, news, at)
        };
        swarm.open_with(session.first_frames(0..self.subscribers, 1), super::WINDOW, &mut hear)?;
        let (epoch, offset) = place.context("nobody subscribed")?;
        let publishing = session.publishing(self.size);
        let door = |index| Door::open(&publishing, swarm.registry(), Token(FOREIGN + index));
        Ok(Round {
            doors: (0..DOORS).map(door).collect::<Result<_>>()?,
            ledger: Ledger::new(self.subscribers, DOORS),
            session,
            swarm,
            stopped: self.stopped,
            every: Duration::from_secs(1) / self.rate,
            due: Instant::now(),
            latencies: Histogram::new(),
            closed: vec![None; self.stopped],
            epoch,
            offset,
            said: Vec::new(),
        })
    }
}

impl Round<'_> {
    fn take_latencies(&mut self) -> Histogram {
        std::mem::take(&mut self.latencies)
    }

    fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(end.saturating_duration_since(Instant::now()), true)?;
        }
        Ok(())
    }

    /// Until the gateway has closed those that stopped; gives the most memory it had meanwhile.
    fn until_closed(&mut self, began: Instant) -> Result<u64> {
        let count = |round: &Self| Ok::<_, anyhow::Error>(round.session.metrics()?.sum(CLOSED) as usize);
        let before = count(self)?;
        let mut peak = 0;
        loop {
            self.run(ASKING)?;
            peak = peak.max(self.session.resident().context("the server is gone")?);
            let closed = count(self)? - before;
            if closed >= self.stopped {
                return Ok(peak);
            }
            let stopped = self.stopped;
            ensure!(began.elapsed() < LONGEST, "{closed} of {stopped} slow readers are closed, then no more");
        }
    }

    /// Until each of them has read what is left, and the close frame.
    fn until_told(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.closed.iter().any(Option::is_none) {
            self.turn(Duration::from_secs(1), false)?;
            ensure!(began.elapsed() < PATIENCE, "a slow reader is not told that it is closed");
        }
        match self.closed.iter().flatten().find(|code| **code != SLOW) {
            Some(0) => bail!("a slow reader was closed without a word instead of with {SLOW}"),
            Some(code) => bail!("a slow reader was closed with {code} instead of {SLOW}"),
            None => Ok(()),
        }
    }

    /// With their positions. Nothing is published meanwhile: the messages are large, and a gateway
    /// recovers 4 MiB at most.
    fn come_back(&mut self) -> Result<()> {
        let goal = self.swarm.live() + self.stopped;
        for reader in 0..self.stopped {
            let offset = self.offset + self.ledger.received(reader);
            let token = self.session.token(reader, None);
            let first = First::recovering(&token, &self.session.channel(0), &self.epoch, offset);
            self.swarm.replace(reader, first)?;
        }
        let began = Instant::now();
        while self.swarm.live() < goal {
            self.turn(Duration::from_secs(1), false)?;
            ensure!(began.elapsed() < PATIENCE, "slow readers do not come back");
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.ledger.owing() > 0 || self.doors.iter().any(Door::is_busy) {
            self.turn(Duration::from_secs(1), false)?;
            ensure!(began.elapsed() < PATIENCE, "{} deliveries never came", self.ledger.owing());
        }
        Ok(())
    }

    fn turn(&mut self, patience: Duration, publishing: bool) -> Result<()> {
        let Self { swarm, doors, ledger, stopped, every, due, latencies, closed, said, .. } = self;
        let now = Instant::now();
        for (index, door) in doors.iter_mut().enumerate() {
            if publishing && *due <= now && !door.is_busy() {
                door.publish(ledger.publish(index, *due))?;
                *due += *every;
            }
        }
        let mut hear = |reader: usize, news: News<'_>, at: Instant| match news {
            News::Publication(number) => {
                let latency = ledger.receive(reader, number, at)?.latency;
                if reader >= *stopped {
                    latencies.record(latency);
                }
                Ok(())
            }
            News::Closed(code) if reader < *stopped => {
                closed[reader] = Some(code);
                Ok(())
            }
            News::Subscribed(reply) if reply.recovered => Ok(()),
            News::Subscribed(_) => bail!("it came back with its position and was told to start anew"),
            news => expect_nothing(reader, news, at),
        };
        let patience = if publishing { patience.min(due.saturating_duration_since(now)) } else { patience };
        swarm.follow(patience, &mut hear, said)?;
        said.drain(..).try_for_each(|Token(token)| doors[token - FOREIGN].hear())
    }
}
