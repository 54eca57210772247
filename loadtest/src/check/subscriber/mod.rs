//! One subscriber: a user of its own with a cursor on one or two channels, who follows them over any
//! transport, leaves, and comes back over another one with the same cursor. It records and never
//! judges; what a signal left out it reads by cursor.

mod answer;
mod events;
mod poll;
mod socket;
mod talk;

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
use crate::http::Stream;
use crate::target::Target;

/// A connection on which nothing came for so long is given up; the gateway pings more often.
const SILENCE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long the goodbye may take.
const LEAVING: Duration = Duration::from_secs(5);
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
    /// The epoch of its positions, until it gets another one.
    pub epoch: String,
    /// Configured namespaces show their events in other words than built-in ones.
    pub built_in: bool,
}

/// Where a run is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Events are being published.
    Publishing,
    /// No more will come: these are the epochs and heads, by channel.
    Settling(Arc<Vec<(String, u32)>>),
    /// Nobody waits any longer.
    Over,
}

/// What subscribers have in common.
#[derive(Clone)]
pub struct Around {
    /// The way to the nodes.
    pub door: Target,
    /// All channels.
    pub channels: Arc<Vec<Channel>>,
    /// How they behave.
    pub scenario: Scenario,
    /// How many times longer than usual they stay.
    pub legs: u32,
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
    /// Of its position.
    epoch: String,
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
    Answer(Box<answer::Answer>),
    Events(events::EventStream),
}

impl Follow {
    /// At the beginning of a channel.
    pub fn new(index: usize, epoch: &str) -> Self {
        Self { index, epoch: epoch.to_owned(), at: 0, tag: None, owed: Vec::new(), history: Vec::new() }
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

    /// The channel has another history, of which nothing is known yet.
    fn turn(&mut self, epoch: &str) {
        self.history.push(Entry::Turned(Box::new(epoch.to_owned())));
        epoch.clone_into(&mut self.epoch);
        (self.at, self.tag) = (0, None);
        self.owed.clear();
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
            let until = Instant::now() + self.random.millis(LEG) * self.around.legs;
            // An error is a connection that broke: whoever it was, the next one goes on.
            let _ = match transport {
                Transport::Poll => self.poll(until).await,
                _ => self.hold(transport, until).await,
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
        let mut line = timeout(CONNECTING, self.open(transport)).await??;
        let mut phase = self.around.phase.clone();
        let stays = self.around.scenario == Scenario::Stay;
        loop {
            self.hear(&mut line)?;
            timeout(SILENCE, line.answer(&mut self.follows)).await??;
            if self.is_over() {
                return Ok(());
            }
            if self.is_at_head() {
                // A repeat that is on its way comes before the replies to a goodbye.
                return if line.speaks() { timeout(LEAVING, self.leave(line)).await? } else { Ok(()) };
            }
            tokio::select! {
                more = timeout(SILENCE, line.fill()) => more??,
                changed = phase.changed() => changed?,
                () = sleep_until(until), if !stays => return Ok(()),
            }
        }
    }

    async fn open(&mut self, transport: Transport) -> Result<Line> {
        Ok(match transport {
            Transport::WebSocket => Line::Socket(self.open_socket(false).await?),
            Transport::UniWebSocket => Line::Socket(self.open_socket(true).await?),
            Transport::Events => Line::Events(self.open_events().await?),
            _ => Line::Answer(Box::new(self.open_answer(transport).await?)),
        })
    }

    /// Records what has come.
    fn hear(&mut self, line: &mut Line) -> Result<()> {
        let entries = |follows: &[Follow]| follows.iter().map(|follow| follow.history.len()).sum::<usize>();
        let before = entries(&self.follows);
        let taken = line.take(&mut self.follows, &self.around);
        let came = entries(&self.follows) - before;
        self.around.counters.events.fetch_add(came as u64, Ordering::Relaxed);
        // Words that make no sense are a breach; an end is none.
        if let Some(nonsense) = taken.as_ref().err().filter(|error| !error.is::<Ended>()) {
            self.follows[0].broken(format!("{nonsense:#}"));
        }
        taken
    }

    /// Unsubscribes and hears what comes before the replies.
    async fn leave(&mut self, mut line: Line) -> Result<()> {
        while !line.can_speak() {
            line.fill().await?;
            self.hear(&mut line)?;
            line.answer(&mut self.follows).await?;
        }
        let words = self.unsubscribes();
        line.say(&words, &mut self.follows).await?;
        while !line.has_left() {
            line.fill().await?;
            self.hear(&mut line)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        matches!(*self.around.phase.borrow(), Phase::Over)
    }

    fn is_at_head(&self) -> bool {
        match &*self.around.phase.borrow() {
            Phase::Settling(heads) => self.follows.iter().all(|follow| {
                let (epoch, head) = &heads[follow.index];
                follow.epoch == *epoch && follow.at >= *head
            }),
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
            Self::Answer(answer) => answer.fill().await,
            Self::Events(events) => events.fill().await,
        }
    }

    fn take(&mut self, follows: &mut [Follow], around: &Around) -> Result<()> {
        match self {
            Self::Socket(socket) => socket.take(follows, around),
            Self::Answer(answer) => answer.take(follows, around),
            Self::Events(events) => events.take(follows, around),
        }
    }

    /// Answers what asks for an answer.
    async fn answer(&mut self, follows: &mut [Follow]) -> Result<()> {
        match self {
            Self::Socket(socket) => socket.answer().await,
            Self::Answer(answer) => answer.answer(follows).await,
            Self::Events(_) => Ok(()),
        }
    }

    async fn say(&mut self, words: &str, follows: &mut [Follow]) -> Result<()> {
        match self {
            Self::Socket(socket) => socket.say(words).await,
            Self::Answer(answer) => answer.say(words, follows).await,
            Self::Events(_) => Ok(()),
        }
    }

    fn talk(&self) -> Option<&talk::Talk> {
        match self {
            Self::Socket(socket) => Some(&socket.talk),
            Self::Answer(answer) => Some(&answer.talk),
            Self::Events(_) => None,
        }
    }

    fn speaks(&self) -> bool {
        self.talk().is_some_and(talk::Talk::speaks)
    }

    fn has_left(&self) -> bool {
        self.talk().is_none_or(talk::Talk::has_left)
    }

    fn can_speak(&self) -> bool {
        match self {
            Self::Answer(answer) => answer.can_speak(),
            Self::Socket(_) | Self::Events(_) => true,
        }
    }
}

/// The beginning of an answer that should have been a stream.
async fn words_of(stream: &mut Stream) -> Result<String> {
    let mut body = Vec::new();
    while body.len() < 500 && stream.next(&mut body).await? {}
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// As it may stand in a query.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
