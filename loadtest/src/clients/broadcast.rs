//! Messages to all subscribers of one channel, which are the first connections of a swarm. In a closed
//! loop each publisher publishes its next message when every subscriber has its last one; otherwise
//! messages are due on a schedule, and latency counts from when they were due, so that a server that
//! stalls cannot hide it by holding up the publishers too.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Limit, Turns};
use crate::compare::session::Session;
use crate::progress::Progress;
use crate::stats::{Histogram, Timeline};
use crate::ws::publisher::Publishers;
use crate::ws::sequence_check::SequenceCheck;
use crate::ws::swarm::{Received, Swarm, expect_nothing};

pub struct Broadcast {
    /// All connections, subscribers first.
    pub swarm: Swarm,
    publishers: Publishers,
    check: SequenceCheck,
    subscribers: usize,
    /// The latencies of those before are not measured.
    pub first_measured: usize,
    schedule: Option<Schedule>,
    /// By publisher: every subscriber has its last message.
    delivered: Vec<bool>,
    stopped: bool,
    spin: bool,
    measured: Measured,
}

/// What was measured since it was last taken.
pub struct Measured {
    /// Of deliveries.
    pub latencies: Histogram,
    /// Deliveries over time.
    pub timeline: Timeline,
    /// How long after they were due messages were published.
    pub late: Histogram,
}

struct Schedule {
    every: Duration,
    due: Instant,
}

pub struct Options {
    /// The first connections of the swarm, which follow channel 0.
    pub subscribers: usize,
    /// How many messages may be under way at once.
    pub publishers: usize,
    /// Messages a second on a schedule; a closed loop without it.
    pub rate: Option<f64>,
    /// Bytes of a message's data.
    pub size: usize,
    /// Look for what arrives without ever sleeping.
    pub spin: bool,
}

impl Broadcast {
    pub fn open(session: &Session, swarm: Swarm, options: &Options) -> Result<Self> {
        let Options { subscribers, publishers, rate, size, spin } = *options;
        let schedule =
            rate.map(|rate| Schedule { every: Duration::from_secs_f64(rate.recip()), due: Instant::now() });
        Ok(Self {
            publishers: Publishers::open(&session.publishing(size), &swarm, publishers)?,
            swarm,
            check: SequenceCheck::new(subscribers, publishers),
            subscribers,
            first_measured: 0,
            schedule,
            delivered: vec![true; publishers],
            stopped: false,
            spin,
            measured: Measured::new(),
        })
    }

    /// What was measured since the last call.
    pub fn take(&mut self) -> Measured {
        std::mem::replace(&mut self.measured, Measured::new())
    }

    pub fn published(&self) -> usize {
        self.check.published()
    }

    pub fn received(&self, subscriber: usize) -> u64 {
        self.check.received(subscriber)
    }

    pub fn run(&mut self, limit: Limit) -> Result<()> {
        let end = limit.time().map(|time| Instant::now() + time);
        let before = self.check.published();
        let mut waiting = Progress::new((0, true));
        loop {
            let now = Instant::now();
            if end.is_some_and(|end| now >= end) {
                return Ok(());
            }
            self.stopped = matches!(limit, Limit::Count(count)
                if self.check.published() - before >= count as usize);
            if self.stopped && self.outstanding() == 0 {
                self.stopped = false;
                return Ok(());
            }
            let left = end.map_or(Duration::from_secs(1), |end| end - now);
            self.turn(left.min(Duration::from_secs(1)))?;
            let (count, outstanding) = (self.measured.latencies.count(), self.check.outstanding());
            // At a low rate nothing may be due for a long time.
            let stuck = |_: &_| format!("{outstanding} deliveries are outstanding and do not come");
            waiting.check((count, outstanding == 0), stuck)?;
        }
    }

    /// Like [`Turns::turn`], with what arrives for other connections, or is no publication.
    pub fn turn_with(
        &mut self,
        timeout: Duration,
        others: &mut impl FnMut(usize, Received<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        self.publish()?;
        let now = Instant::now();
        let due = self.schedule.as_ref().filter(|_| !self.stopped).map(|schedule| schedule.due);
        let until_due = due.map_or(timeout, |due| due.saturating_duration_since(now));
        let timeout = if self.spin { Duration::ZERO } else { timeout.min(until_due) };
        let Self { swarm, publishers, check, subscribers, first_measured, delivered, measured, .. } = self;
        let before = measured.latencies.count();
        let mut on_received = |connection: usize, received: Received<'_>, at: Instant| match received {
            Received::Publication(number) if connection < *subscribers => {
                let receipt = check.receive(connection, number, at)?;
                if connection >= *first_measured {
                    measured.latencies.record(receipt.latency);
                }
                if let Some(publisher) = receipt.completed {
                    delivered[publisher] = true;
                }
                Ok(())
            }
            received => others(connection, received, at),
        };
        publishers.poll(swarm, timeout, &mut on_received)?;
        let count = measured.latencies.count() - before;
        if count > 0 {
            measured.timeline.count(Instant::now(), count);
        }
        Ok(())
    }

    /// What can be published, or is due.
    fn publish(&mut self) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        for (index, publisher) in self.publishers.idle() {
            let now = Instant::now();
            let at = match &mut self.schedule {
                Some(schedule) if schedule.due > now => return Ok(()),
                Some(Schedule { every, due }) => {
                    let at = *due;
                    *due += *every;
                    self.measured.late.record(now - at);
                    at
                }
                None if self.delivered[index] => now,
                None => continue,
            };
            self.delivered[index] = false;
            publisher.publish(self.check.publish(index, at))?;
        }
        Ok(())
    }

    /// Without publishing, until nothing is outstanding, and a moment longer for what must not arrive. A
    /// schedule begins anew afterwards.
    pub fn finish(&mut self) -> Result<()> {
        self.stopped = true;
        self.settle()?;
        self.resume();
        Ok(())
    }

    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Publishes again; a schedule begins anew.
    pub fn resume(&mut self) {
        self.stopped = false;
        if let Some(schedule) = &mut self.schedule {
            schedule.due = Instant::now();
        }
    }
}

impl Turns for Broadcast {
    fn swarm(&mut self) -> &mut Swarm {
        &mut self.swarm
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        self.turn_with(timeout, &mut expect_nothing)
    }

    fn outstanding(&self) -> u64 {
        self.check.outstanding() + self.publishers.outstanding() as u64
    }
}

impl Measured {
    fn new() -> Self {
        Self {
            latencies: Histogram::new(),
            timeline: Timeline::since(Instant::now()),
            late: Histogram::new(),
        }
    }
}
