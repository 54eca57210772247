//! Live traffic beside something else: messages due on a schedule, published to one channel, received
//! by the first connections of a swarm and entered in a ledger. Latency counts from when a message
//! was due, so a server that stands still cannot hide it by holding up the publisher too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mio::Token;

use super::door::Door;
use super::ledger::Ledger;
use super::swarm::{FOREIGN, News, PATIENCE, Swarm, expect_nothing};
use crate::compare::session::Session;
use crate::stats::Histogram;

/// Messages under way at once; the next one waits, and its clock runs.
const DOORS: usize = 8;
/// What repeats would show up in, after the last message.
const QUIET: Duration = Duration::from_millis(200);

/// The publishers, their schedule and the books.
pub struct Traffic {
    doors: Vec<Door>,
    ledger: Ledger,
    subscribers: usize,
    every: Duration,
    due: Option<Instant>,
    latencies: Histogram,
    /// Tokens of the doors that have something to say.
    said: Vec<Token>,
}

impl Traffic {
    /// Messages of `size` bytes, `rate` a second, to channel 0, which connections 0 to
    /// `subscribers` - 1 of the swarm have subscribed to.
    pub fn open(
        session: &Session,
        swarm: &Swarm,
        subscribers: usize,
        rate: u32,
        size: usize,
    ) -> Result<Self> {
        let publishing = session.publishing(size);
        let door = |index| Door::open(&publishing, swarm.registry(), Token(FOREIGN + index));
        Ok(Self {
            doors: (0..DOORS).map(door).collect::<Result<_>>()?,
            ledger: Ledger::new(subscribers, DOORS),
            subscribers,
            every: Duration::from_secs(1) / rate,
            due: None,
            latencies: Histogram::new(),
            said: Vec::new(),
        })
    }

    /// The latencies since the last call.
    pub fn take_latencies(&mut self) -> Histogram {
        std::mem::take(&mut self.latencies)
    }

    /// Publishes what is due, and handles what comes until then, at most for `patience`. News of other
    /// connections goes to `others`.
    pub fn turn(
        &mut self,
        swarm: &mut Swarm,
        patience: Duration,
        others: &mut impl FnMut(usize, News<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        let now = Instant::now();
        let mut due = self.due.unwrap_or(now);
        for (index, door) in self.doors.iter_mut().enumerate() {
            if due <= now && !door.is_busy() {
                door.publish(self.ledger.publish(index, due))?;
                due += self.every;
            }
        }
        self.due = Some(due);
        self.listen(swarm, patience.min(due.saturating_duration_since(now)), others)
    }

    /// Lets it run for a while beside nothing else.
    pub fn run(&mut self, swarm: &mut Swarm, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.turn(swarm, end.saturating_duration_since(Instant::now()), &mut expect_nothing)?;
        }
        Ok(())
    }

    /// Waits for what is under way, and a moment longer for what must not come.
    pub fn finish(&mut self, swarm: &mut Swarm) -> Result<()> {
        let began = Instant::now();
        while self.ledger.owing() > 0 || self.doors.iter().any(Door::is_busy) {
            ensure!(began.elapsed() < PATIENCE, "{} deliveries never came", self.ledger.owing());
            self.listen(swarm, Duration::from_secs(1), &mut expect_nothing)?;
        }
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            self.listen(swarm, QUIET / 4, &mut expect_nothing)?;
        }
        self.due = None;
        Ok(())
    }

    fn listen(
        &mut self,
        swarm: &mut Swarm,
        patience: Duration,
        others: &mut impl FnMut(usize, News<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        let Self { doors, ledger, subscribers, latencies, said, .. } = self;
        let mut hear = |index: usize, news: News<'_>, at: Instant| match news {
            News::Publication(number) if index < *subscribers => {
                latencies.record(ledger.receive(index, number, at)?.latency);
                Ok(())
            }
            news => others(index, news, at),
        };
        swarm.follow(patience, &mut hear, said)?;
        for Token(token) in said.drain(..) {
            doors[token - FOREIGN].hear()?;
        }
        Ok(())
    }
}
