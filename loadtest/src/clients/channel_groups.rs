//! Groups of channels that the same connections follow, and publishers that serve one group at a time.
//! Groups take short turns, so that what the server's CPU spends on each is told apart while all of
//! them see the same machine. A gap or a repeat fails the run, channel by channel.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::compare::session::Session;
use crate::progress::Progress;
use crate::ws::delivery_log::{DeliveryLog, Layout};
use crate::ws::publisher::Publishers;
use crate::ws::swarm::{FirstFrame, Received, Swarm, expect_nothing};

/// Bytes of the data.
const SIZE: usize = 128;
/// One group's turn. The machine's speed changes from second to second, so turns are much shorter.
const TURN: Duration = Duration::from_millis(100);
/// The server goes to sleep in it. While a thread runs, its CPU clock lags behind by milliseconds, and
/// what shows late would be counted for the next group.
const SETTLING: Duration = Duration::from_millis(1);

/// What one group cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Point {
    pub events: f64,
    pub deliveries: f64,
    /// The server's CPU in microseconds.
    pub cost: f64,
}

pub struct ChannelGroups {
    swarm: Swarm,
    publishers: Publishers,
    /// By publisher: every subscriber has its last message.
    delivered: Vec<bool>,
    groups: Vec<Group>,
    /// Look for messages without ever sleeping: waking this side would be the server's work.
    spin: bool,
}

/// Channels with as many subscribers each. Messages of all groups are numbered together: the remainder
/// of a number is the group, the rest is the number in its log.
struct Group {
    names: Vec<String>,
    log: DeliveryLog,
    /// The channel that is next.
    next: usize,
}

impl ChannelGroups {
    /// Opens the connections, `window` at a time. One publisher publishes one message at a time, so
    /// there are `in_flight` of them.
    pub fn open(
        session: &Session,
        layouts: &[Layout],
        in_flight: usize,
        window: usize,
        spin: bool,
    ) -> Result<Self> {
        let mut swarm = session.swarm()?;
        let mut numbers = 0..;
        let group = |layout: &Layout| {
            let names = numbers.by_ref().take(layout.channels).map(|number| session.channel(number));
            Ok(Group { names: names.collect(), log: DeliveryLog::new(*layout, in_flight)?, next: 0 })
        };
        let groups: Vec<Group> = layouts.iter().map(group).collect::<Result<_>>()?;
        let mut wanted = vec![Vec::new(); layouts[0].connections];
        for (layout, Group { names, .. }) in layouts.iter().zip(&groups) {
            layout
                .subscriptions()
                .for_each(|(channel, connection)| wanted[connection].push(&*names[channel]));
        }
        let first = |(connection, channels): (usize, Vec<&str>)| {
            FirstFrame::subscribing(&session.token(connection, None), channels)
        };
        swarm.open(wanted.into_iter().enumerate().map(first).collect(), window)?;
        let publishers = Publishers::open(&session.publishing(SIZE), &swarm, in_flight)?;
        Ok(Self { swarm, publishers, delivered: vec![true; in_flight], groups, spin })
    }

    /// Nothing more may arrive.
    pub fn close(mut self) -> Result<()> {
        self.swarm.listen(Duration::from_millis(100), false)
    }

    /// Lets each group have turns for so long, and until each of its channels has had a message: a
    /// channel's first one costs more, and groups with fewer messages would pay for more of them.
    pub fn warm_up(&mut self, time: Duration) -> Result<()> {
        let turns = time.as_millis() / TURN.as_millis();
        for turn in 0.. {
            let mut warm = true;
            for group in 0..self.groups.len() {
                let Group { names, log, .. } = &self.groups[group];
                if turn < turns || log.published() < names.len() {
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
                let events = self.groups[group].log.published();
                let deliveries = self.publish(group, TURN)?;
                self.swarm.listen(SETTLING, self.spin)?;
                let used = session.cpu_time().context("the server is gone")? - cpu;
                point.events += (self.groups[group].log.published() - events) as f64;
                point.deliveries += deliveries as f64;
                point.cost += used.as_secs_f64() * 1e6;
            }
        }
        Ok(points)
    }

    /// Publishes to a group for a while, then waits until nothing is outstanding. Gives how many
    /// deliveries there were.
    pub fn publish(&mut self, group: usize, time: Duration) -> Result<u64> {
        let Self { swarm, publishers, delivered, groups, spin } = self;
        let timeout = if *spin { Duration::ZERO } else { Duration::from_secs(1) };
        let count = groups.len() as u32;
        let end = Instant::now() + time;
        let mut deliveries = 0;
        let mut progress = Progress::new(0);
        loop {
            let now = Instant::now();
            let Group { names, log, next } = &mut groups[group];
            let outstanding = log.outstanding();
            if now >= end && outstanding == 0 && publishers.outstanding() == 0 {
                return Ok(deliveries);
            }
            progress.check(deliveries, |_| format!("{outstanding} deliveries do not come"))?;
            for (index, publisher) in publishers.idle() {
                if now < end && std::mem::take(&mut delivered[index]) {
                    publisher.set_channel(&names[*next]);
                    let number = log.publish(*next, index, now);
                    publisher.publish(number * count + group as u32)?;
                    *next = (*next + 1) % names.len();
                }
            }
            let mut on_received = |connection: usize, received: Received<'_>, at: Instant| {
                let Received::Publication(number) = received else {
                    return expect_nothing(connection, received, at);
                };
                deliveries += 1;
                let log = &mut groups[(number % count) as usize].log;
                if let Some(publisher) = log.receive(connection, number / count, at)?.completed {
                    delivered[publisher] = true;
                }
                Ok(())
            };
            publishers.poll(swarm, timeout, &mut on_received)?;
        }
    }
}
