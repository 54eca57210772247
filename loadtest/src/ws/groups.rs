//! Groups of channels that the same connections follow, and publishers that serve one group at a time.
//! Groups take short turns, so that what the server's CPU spends on each is told apart while all of
//! them see the same machine. A gap or a repeat fails the run, channel by channel.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::Token;

use super::books::{Books, Seating};
use super::door::Door;
use super::swarm::{FOREIGN, First, News, PATIENCE, Swarm, expect_nothing};
use crate::compare::session::Session;

/// Bytes of the data.
const SIZE: usize = 128;
/// One group's turn. The machine's speed changes from second to second, so turns are much shorter.
const TURN: Duration = Duration::from_millis(100);
/// The server goes to sleep in it. While a thread runs, its clock lags behind by milliseconds, and what
/// shows late would be counted for the next group.
const SETTLING: Duration = Duration::from_millis(1);

/// What one group cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Point {
    /// Messages.
    pub events: f64,
    /// Receipts of them.
    pub deliveries: f64,
    /// The server's CPU in microseconds.
    pub cost: f64,
}

/// All of them, and the connections.
pub struct Groups {
    swarm: Swarm,
    publishers: Vec<Publisher>,
    groups: Vec<Group>,
    /// Look for messages without ever sleeping: to wake this side would be the server's work.
    spin: bool,
}

/// Channels with as many subscribers each. The numbers that messages carry take turns between groups:
/// the remainder says which group, the rest is the number in its books.
struct Group {
    names: Vec<String>,
    books: Books,
    /// The channel that is next.
    next: usize,
}

struct Publisher {
    door: Door,
    /// Every subscriber has its last message.
    delivered: bool,
}

impl Groups {
    /// Opens the connections, `window` at a time. One publisher publishes one message at a time, so
    /// there are `in_flight` of them.
    pub fn open(
        session: &Session,
        groups: &[Seating],
        in_flight: usize,
        window: usize,
        spin: bool,
    ) -> Result<Self> {
        let mut swarm = Swarm::new(session.address, &session.host)?;
        let mut numbers = 0..;
        let group = |seating: &Seating| {
            let names = numbers.by_ref().take(seating.channels).map(|number| session.channel(number));
            Ok(Group { names: names.collect(), books: Books::new(*seating, in_flight)?, next: 0 })
        };
        let opened: Vec<Group> = groups.iter().map(group).collect::<Result<_>>()?;
        let mut wanted = vec![Vec::new(); groups[0].connections];
        for (seating, Group { names, .. }) in groups.iter().zip(&opened) {
            seating.seats().for_each(|(channel, connection)| wanted[connection].push(&*names[channel]));
        }
        let first = |(connection, channels): (usize, Vec<&str>)| {
            First::subscribing(&session.token(connection, None), channels)
        };
        let firsts: Vec<First> = wanted.into_iter().enumerate().map(first).collect();
        swarm.open(firsts, window)?;
        let publishing = session.publishing(SIZE);
        let publisher = |index| {
            let door = Door::open(&publishing, swarm.registry(), Token(FOREIGN + index))?;
            Ok(Publisher { door, delivered: true })
        };
        let publishers = (0..in_flight).map(publisher).collect::<Result<_>>()?;
        Ok(Self { swarm, publishers, groups: opened, spin })
    }

    /// Nothing more may come.
    pub fn close(mut self) -> Result<()> {
        self.swarm.listen(Duration::from_millis(100))
    }

    /// Lets each group have turns for so long, and until each of its channels has had a message: a
    /// channel's first one is dearer, and groups with fewer messages would pay for more of them.
    pub fn warm_up(&mut self, time: Duration) -> Result<()> {
        let turns = time.as_millis() / TURN.as_millis();
        for turn in 0.. {
            let mut warm = true;
            for group in 0..self.groups.len() {
                let Group { names, books, .. } = &self.groups[group];
                if turn < turns || books.published() < names.len() {
                    self.publish(group, TURN)?;
                    warm = false;
                }
            }
            if warm {
                break;
            }
        }
        Ok(())
    }

    /// Lets each group have so much time, in short turns, and says what each cost.
    pub fn take_turns(&mut self, session: &Session, time: Duration) -> Result<Vec<Point>> {
        let mut points = vec![Point::default(); self.groups.len()];
        for _ in 0..time.as_millis() / TURN.as_millis() {
            for (group, point) in points.iter_mut().enumerate() {
                let cpu = session.cpu_time().context("the server's CPU is not known: give its --pid")?;
                let events = self.groups[group].books.published();
                let deliveries = self.publish(group, TURN)?;
                if self.spin {
                    self.swarm.spin(SETTLING)?
                } else {
                    self.swarm.listen(SETTLING)?
                }
                let used = session.cpu_time().context("the server is gone")? - cpu;
                point.events += (self.groups[group].books.published() - events) as f64;
                point.deliveries += deliveries as f64;
                point.cost += used.as_secs_f64() * 1e6;
            }
        }
        Ok(points)
    }

    /// Publishes to a group for a while, then waits until nothing is owing. Says how many deliveries
    /// came.
    pub fn publish(&mut self, group: usize, time: Duration) -> Result<u64> {
        let Self { swarm, publishers, groups, spin } = self;
        let patience = if *spin { Duration::ZERO } else { Duration::from_secs(1) };
        let count = groups.len() as u32;
        let end = Instant::now() + time;
        let mut doors = Vec::new();
        let (mut received, mut heard) = (0, Instant::now());
        loop {
            let now = Instant::now();
            let Group { names, books, next } = &mut groups[group];
            let busy = books.owing() > 0 || publishers.iter().any(|publisher| publisher.door.is_busy());
            if now >= end && !busy {
                return Ok(received);
            }
            ensure!(heard.elapsed() < PATIENCE, "{} deliveries are owing and do not come", books.owing());
            for (index, publisher) in publishers.iter_mut().enumerate() {
                if now < end && publisher.delivered && !publisher.door.is_busy() {
                    publisher.delivered = false;
                    publisher.door.aim(&names[*next]);
                    let number = books.publish(*next, index, now);
                    publisher.door.publish(number * count + group as u32)?;
                    *next = (*next + 1) % names.len();
                }
            }
            let mut hear = |connection: usize, news: News<'_>, at: Instant| {
                let News::Publication(number) = news else { return expect_nothing(connection, news, at) };
                (received, heard) = (received + 1, at);
                let books = &mut groups[(number % count) as usize].books;
                if let Some(publisher) = books.receive(connection, number / count, at)?.completed {
                    publishers[publisher].delivered = true;
                }
                Ok(())
            };
            swarm.follow(patience, &mut hear, &mut doors)?;
            for Token(token) in doors.drain(..) {
                publishers[token - FOREIGN].door.hear()?;
            }
        }
    }
}
