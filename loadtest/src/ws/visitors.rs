//! Clients that leave and come back with their position, on channels of the bench namespace. What was
//! published while one was away must come with its subscribe reply; a client that is told to start
//! anew fails the run, and so does a gap or a repeat.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::Token;

use super::books::{Books, Seating};
use super::door::Door;
use super::swarm::{FOREIGN, First, News, PATIENCE, Swarm, expect_nothing};
use crate::compare::session::Session;
use crate::stats::Histogram;

/// Messages under way at once.
const DOORS: usize = 32;
/// What repeats would show up in, after the last message.
const QUIET: Duration = Duration::from_millis(200);

/// All of them, each on one channel.
pub struct Visitors {
    swarm: Swarm,
    session: Session,
    books: Books,
    /// Subscribers of each channel.
    fan_out: usize,
    /// By connection: where it began.
    began: Vec<Option<Place>>,
    /// By connection: when it set out to come back.
    set_out: Vec<Option<Instant>>,
    doors: Vec<Door>,
    names: Vec<String>,
    /// The next channel's turn.
    next: usize,
    latencies: Histogram,
}

/// A position.
#[derive(Debug, Clone)]
struct Place {
    epoch: String,
    offset: u64,
}

impl Visitors {
    /// Connects `connections`, spread evenly over `channels`.
    pub fn open(
        session: &Session,
        connections: usize,
        channels: usize,
        window: usize,
        size: usize,
    ) -> Result<Self> {
        let fan_out = connections / channels;
        ensure!(
            fan_out * channels == connections,
            "{connections} connections do not fill {channels} channels"
        );
        let mut swarm = Swarm::new(session.address, &session.host)?;
        let mut began = vec![None; connections];
        let firsts = (0..connections).map(|connection| session.first_frame(connection, connection / fan_out));
        let mut hear = |connection: usize, news: News<'_>, at: Instant| {
            if let News::Subscribed(reply) = &news {
                let epoch = reply.epoch.clone().context("a channel without positions")?;
                began[connection] = Some(Place { epoch, offset: reply.offset });
            }
            expect_nothing(connection, news, at)
        };
        swarm.open_with(firsts.collect::<Vec<_>>(), window, &mut hear)?;
        let publishing = session.publishing(size);
        let door = |index| Door::open(&publishing, swarm.registry(), Token(FOREIGN + index));
        Ok(Self {
            doors: (0..DOORS).map(door).collect::<Result<_>>()?,
            books: Books::new(Seating { channels, fan_out, connections }, DOORS)?,
            fan_out,
            began,
            set_out: vec![None; connections],
            names: (0..channels).map(|channel| session.channel(channel)).collect(),
            session: session.clone(),
            swarm,
            next: 0,
            latencies: Histogram::new(),
        })
    }

    /// How many are connected.
    pub fn live(&self) -> usize {
        self.swarm.live()
    }

    /// How many messages have been published.
    pub fn published(&self) -> usize {
        self.books.published()
    }

    /// From setting out to being subscribed, of all that have come back since the last call.
    pub fn take_latencies(&mut self) -> Histogram {
        std::mem::take(&mut self.latencies)
    }

    /// Publishes so many, channel after channel, and waits for the answers, not for the receipts.
    pub fn publish(&mut self, count: usize) -> Result<()> {
        let mut left = count;
        while left > 0 || self.doors.iter().any(Door::is_busy) {
            for (index, door) in self.doors.iter_mut().enumerate() {
                if left > 0 && !door.is_busy() {
                    left -= 1;
                    door.aim(&self.names[self.next]);
                    door.publish(self.books.publish(self.next, index, Instant::now()))?;
                    self.next = (self.next + 1) % self.names.len();
                }
            }
            self.turn(PATIENCE)?;
        }
        Ok(())
    }

    /// Cuts them without a word.
    pub fn cut(&mut self, who: Range<usize>) -> Result<()> {
        who.into_iter().try_for_each(|connection| self.swarm.cut(connection))
    }

    /// What those who were cut will say when they come back.
    pub fn returns(&self, who: Range<usize>) -> Result<Vec<(usize, First)>> {
        let first = |connection: usize| {
            let channel = connection / self.fan_out;
            let place = self.began[connection].as_ref().context("it never was there")?;
            let offset = place.offset + self.books.received(connection, channel)?;
            let token = self.session.token(connection, None);
            let first = First::recovering(&token, &self.names[channel], &place.epoch, offset);
            Ok((connection, first))
        };
        who.map(first).collect()
    }

    /// Lets them come back, `window` at a time, until all are live and have received everything.
    pub fn come_back(&mut self, returns: Vec<(usize, First)>, window: usize) -> Result<Duration> {
        let goal = self.swarm.live() + self.swarm.coming() + returns.len();
        let mut returns = returns.into_iter();
        let began = Instant::now();
        let mut progress = (self.swarm.live(), self.books.owing(), began);
        while self.swarm.live() < goal || self.books.owing() > 0 {
            while self.swarm.coming() < window
                && let Some((connection, first)) = returns.next()
            {
                self.set_out[connection] = Some(Instant::now());
                self.swarm.replace(connection, first)?;
            }
            self.turn(Duration::from_secs(1))?;
            let now = (self.swarm.live(), self.books.owing());
            if now != (progress.0, progress.1) {
                progress = (now.0, now.1, Instant::now());
            }
            let (live, owing, at) = progress;
            ensure!(at.elapsed() < PATIENCE, "{live} of {goal} are live, {owing} deliveries are owing");
        }
        Ok(began.elapsed())
    }

    /// A moment for what must not come.
    pub fn finish(&mut self) -> Result<()> {
        self.come_back(Vec::new(), 1)?;
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            self.turn(QUIET / 4)?;
        }
        Ok(())
    }

    /// Handles what comes, at most for `patience`.
    fn turn(&mut self, patience: Duration) -> Result<()> {
        let Self { swarm, books, set_out, latencies, doors, .. } = self;
        let mut hear = |connection: usize, news: News<'_>, at: Instant| match news {
            News::Publication(number) => books.receive(connection, number, at).map(drop),
            News::Subscribed(reply) if reply.recovered => {
                let set_out = set_out[connection].take().context("subscribed out of the blue")?;
                latencies.record(at - set_out);
                Ok(())
            }
            News::Subscribed(_) => bail!("it came back with its position and was told to start anew"),
            news => expect_nothing(connection, news, at),
        };
        let mut said = Vec::new();
        swarm.follow(patience, &mut hear, &mut said)?;
        said.into_iter().try_for_each(|Token(token)| doors[token - FOREIGN].hear())
    }
}
