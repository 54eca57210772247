//! One subscriber: a user of its own with a cursor on one or two channels, who follows them over
//! WebSocket, server-sent events or polling, leaves, and comes back over another transport with the
//! same cursor. It records and never judges; what a signal left out it reads by cursor.

mod poll;
mod socket;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::history::{Entry, Said, Transport};
use super::plan::Scenario;
use super::random::Random;
use crate::target::Target;

/// A connection on which nothing came for so long is given up; the gateway pings more often.
const SILENCE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(10);
/// Milliseconds before a new attempt.
const PAUSE: std::ops::Range<u64> = 5..120;
/// Milliseconds of one connection while subscribers churn.
const LEG: std::ops::Range<u64> = 100..2500;
/// Milliseconds that one stays away who wants to miss a lot.
const ABSENCE: std::ops::Range<u64> = 200..2500;

/// A channel, and where it begins.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// The epoch of all its positions.
    pub epoch: String,
    /// Configured namespaces show their events in other words than built-in ones.
    pub built_in: bool,
}

/// Where a run is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Events are being published.
    Publishing,
    /// No more will come: these are the heads, by channel.
    Settling(Arc<Vec<u32>>),
    /// Nobody waits any longer.
    Over,
}

/// What subscribers have in common.
#[derive(Clone)]
pub struct Around {
    /// The ways to the nodes.
    pub doors: Vec<Target>,
    /// All channels.
    pub channels: Arc<Vec<Channel>>,
    /// How they behave.
    pub scenario: Scenario,
    /// What they may use.
    pub transports: Vec<Transport>,
    /// Where the run is.
    pub phase: watch::Receiver<Phase>,
    /// What they went through.
    pub counters: Arc<Counters>,
}

/// What subscribers went through, over all of them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections and polls that began.
    pub connections: AtomicU64,
    /// Events that came.
    pub events: AtomicU64,
    /// Connections that were closed as slow (3008).
    pub slow: AtomicU64,
}

/// A cursor on one channel, and what it has passed.
#[derive(Debug)]
pub struct Follow {
    /// Which of the channels.
    pub index: usize,
    /// The last offset seen.
    at: u32,
    /// `ETag` of the last page.
    tag: Option<String>,
    /// Left out by a signal and not read yet: the offset before, and the last.
    owed: Vec<(u32, u32)>,
    /// What it saw.
    pub history: Vec<Entry>,
}

/// The subscriber.
pub struct Subscriber {
    /// Which one.
    pub number: usize,
    /// What it follows: one channel, or a built-in and a configured one.
    pub follows: Vec<Follow>,
    token: String,
    random: Random,
    around: Around,
}

/// Why a connection is over, without a breach or with one that is in the history already.
#[derive(Debug)]
struct Ended(&'static str);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Ended {}

enum Line {
    Socket(socket::Socket),
    Stream(stream::EventStream),
}

impl Follow {
    /// At the beginning of a channel.
    pub fn new(index: usize) -> Self {
        Self { index, at: 0, tag: None, owed: Vec::new(), history: Vec::new() }
    }

    fn event(&mut self, offset: u32, data: &str) {
        self.history.push(Entry::Event { offset, said: Said::of(data) });
        self.at = self.at.max(offset);
    }

    fn signal(&mut self, head: u32) {
        self.history.push(Entry::Signal { head });
        if head > self.at {
            self.owed.push((self.at, head));
        }
        self.at = head;
    }

    fn broken(&mut self, words: impl Into<String>) {
        self.history.push(Entry::Broken(Box::new(words.into())));
    }
}

impl Subscriber {
    /// One that has seen nothing.
    pub fn new(number: usize, follows: Vec<Follow>, token: String, random: Random, around: Around) -> Self {
        Self { number, follows, token, random, around }
    }

    /// Follows until everything is there, or until nobody waits any longer.
    pub async fn run(mut self) -> Self {
        while !self.is_over() && !self.is_complete() {
            let transport = self.random.pick(&self.around.transports);
            self.around.counters.connections.fetch_add(1, Ordering::Relaxed);
            for follow in &mut self.follows {
                follow.history.push(Entry::Opened(transport));
            }
            let until = Instant::now() + self.random.millis(LEG);
            // An error is a connection that broke: whoever it was, the next one goes on.
            let _ = match transport {
                Transport::Poll => self.poll(until).await,
                Transport::WebSocket | Transport::Sse => self.hold(transport, until).await,
            };
            let _ = self.read_owed().await;
            let settling = matches!(*self.around.phase.borrow(), Phase::Settling(_));
            let away = self.around.scenario == Scenario::Signals && !settling && self.random.once_in(3);
            let pause = self.random.millis(if away { ABSENCE } else { PAUSE });
            if !self.is_complete() {
                self.pause(pause).await;
            }
        }
        self
    }

    /// Follows over one connection.
    async fn hold(&mut self, transport: Transport, until: Instant) -> Result<()> {
        let opened = async {
            Ok::<_, anyhow::Error>(match transport {
                Transport::WebSocket => Line::Socket(self.open_socket().await?),
                _ => Line::Stream(self.open_stream().await?),
            })
        };
        let mut line = timeout(CONNECTING, opened).await??;
        let mut phase = self.around.phase.clone();
        let stays = self.around.scenario == Scenario::Stay;
        loop {
            let before: usize = self.follows.iter().map(|follow| follow.history.len()).sum();
            let answers = match &mut line {
                Line::Socket(socket) => socket.take(&mut self.follows, &self.around),
                Line::Stream(stream) => stream.take(&mut self.follows, &self.around),
            };
            let after: usize = self.follows.iter().map(|follow| follow.history.len()).sum();
            self.around.counters.events.fetch_add((after - before) as u64, Ordering::Relaxed);
            // Words that make no sense are a breach; an end is none.
            if let Some(nonsense) = answers.as_ref().err().filter(|error| !error.is::<Ended>()) {
                let words = format!("{nonsense:#}");
                self.follows[0].broken(words);
            }
            if let (Line::Socket(socket), true) = (&mut line, answers?) {
                socket.answer().await?;
            }
            if self.is_over() {
                return Ok(());
            }
            if self.is_at_head() {
                return match line {
                    // A repeat that is on its way comes before these replies.
                    Line::Socket(socket) => self.leave(socket).await,
                    Line::Stream(_) => Ok(()),
                };
            }
            tokio::select! {
                more = timeout(SILENCE, line.fill()) => more??,
                changed = phase.changed() => changed?,
                () = sleep_until(until), if !stays => return Ok(()),
            }
        }
    }

    /// Where this subscriber goes next.
    fn door(&mut self) -> Target {
        let door = self.random.within(0..self.around.doors.len() as u64) as usize;
        self.around.doors[door].clone()
    }

    fn is_over(&self) -> bool {
        matches!(*self.around.phase.borrow(), Phase::Over)
    }

    fn is_at_head(&self) -> bool {
        match &*self.around.phase.borrow() {
            Phase::Settling(heads) => self.follows.iter().all(|follow| follow.at >= heads[follow.index]),
            Phase::Publishing | Phase::Over => false,
        }
    }

    fn is_complete(&self) -> bool {
        self.is_at_head() && self.follows.iter().all(|follow| follow.owed.is_empty())
    }

    async fn pause(&self, time: Duration) {
        let mut phase = self.around.phase.clone();
        tokio::select! {
            () = sleep(time) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Over)) => {}
        }
    }
}

impl Line {
    /// Waits for more bytes; may be dropped meanwhile without losing any.
    async fn fill(&mut self) -> Result<()> {
        match self {
            Self::Socket(socket) => socket.fill().await,
            Self::Stream(stream) => stream.fill().await,
        }
    }
}
