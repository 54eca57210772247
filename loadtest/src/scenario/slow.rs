//! `slow`: some readers stop reading. Invariant: the others receive every message in order, the memory
//! that the stopped ones cost is bounded, each of them is closed with 3008, and resumes with its position
//! to exactly what it missed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::{MEBI, count, percentile};
use crate::clients::Turns;
use crate::clients::broadcast::{self, Broadcast};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::progress::Progress;
use crate::report::table::{Figure, aside, figure};
use crate::ws::swarm::{FirstFrame, Received, Swarm, expect_nothing};

/// The close code of a reader that is too slow.
const SLOW: u16 = 3008;
/// The metric that counts them.
const CLOSED: &str = "campanile_slow_disconnects_total";
/// What may wait for one connection in a gateway with its defaults (client.queue_max_size).
const QUEUE: u64 = 1024 * 1024;
/// What else a gateway may grow by meanwhile.
const SLACK: u64 = 32 * 1024 * 1024;
/// After this many bytes the gateway is asked how many it has closed: whoever is closed misses what is
/// published until it is back, and a gateway recovers 4 MiB at most.
const CHECK_EVERY: usize = 512 * 1024;
/// The last one must be closed after this time.
const LONGEST: Duration = Duration::from_secs(120);
/// Live traffic to everybody after they have come back.
const AFTER: Duration = Duration::from_millis(500);
/// Messages under way at once.
const PUBLISHERS: usize = 8;

/// Lets a share of the readers stop reading: what the others notice, and what becomes of those.
///
/// Messages go to all subscribers of one channel on a schedule; latency counts from when each was due.
/// The kernel takes some megabytes for a reader that has stopped before the gateway's own queue fills,
/// so messages are large here. The gateway's metrics show when the stopped ones are closed; then they
/// read on, must find close code 3008, and resume with their positions.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Subscribers of the one channel.
    #[arg(long, default_value_t = 100, value_parser = count(2..=10_000))]
    subscribers: usize,
    /// Percent of them that stop reading.
    #[arg(long, default_value_t = 10, value_parser = count(1..=90))]
    percent: usize,
    /// Messages a second.
    #[arg(long, default_value_t = 50, value_parser = count(1..=1000))]
    rate: usize,
    /// Bytes of a message's data.
    #[arg(long, default_value_t = 32_000, value_parser = count(1000..=60_000))]
    size: usize,
    /// Seconds that are measured before anybody stops, to compare with.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    before: u64,
}

/// The state of one round. The readers that stop are the first ones.
struct Round<'a> {
    session: &'a Session,
    broadcast: Broadcast,
    /// The codes with which stopped readers were closed, by connection.
    closed: Vec<Option<u16>>,
    /// The position before the first message.
    epoch: String,
    offset: u64,
}

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        let Self { subscribers, rate, size, .. } = self;
        format!(
            "slow: {} of {subscribers} readers stop; {rate} messages/s of {size} bytes of data",
            self.stopped()
        )
    }

    fn connections(&self) -> usize {
        self.subscribers
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let (stopped, before) = (self.stopped(), Duration::from_secs(self.before));
        let mut round = self.begin(session)?;
        round.broadcast.run_for(before / 2)?;
        round.broadcast.take();
        round.broadcast.run_for(before)?;
        let before = round.broadcast.take().latencies;
        let resident = session.memory()?;

        let began = Instant::now();
        round.set_paused(true)?;
        let peak = round.until_closed(began, self.size)?;
        let closed_after = began.elapsed();
        let beside = round.broadcast.take().latencies;
        round.broadcast.stop();
        round.set_paused(false)?;
        round.until_close_frames()?;
        round.resume()?;
        round.broadcast.resume();
        round.run_for(AFTER)?;
        round.broadcast.finish()?;

        let grown = peak.saturating_sub(resident);
        let bound = SLACK + 2 * QUEUE * stopped as u64;
        ensure!(
            grown <= bound,
            "memory grew by {grown} bytes, more than the {bound} that are to be expected"
        );
        session.meter.observe("others before", &before);
        session.meter.observe("others beside slow readers", &beside);
        let (before_p99, beside_p99) = (percentile(&before, 99)?, percentile(&beside, 99)?);
        Ok(vec![
            figure("others p99 before, ms", before_p99),
            figure("others p99 beside slow readers, ms", beside_p99),
            aside("of the p99 before", beside_p99 / before_p99),
            aside("others longest before, ms", percentile(&before, 100)?),
            aside("others longest beside slow readers, ms", percentile(&beside, 100)?),
            aside("closed with 3008", stopped as f64),
            aside("all closed after, s", closed_after.as_secs_f64()),
            figure("resident per slow reader at most, KiB", grown as f64 / 1024.0 / stopped as f64),
            aside("resident before, MiB", resident as f64 / MEBI),
        ])
    }
}

impl Options {
    fn stopped(&self) -> usize {
        (self.subscribers * self.percent / 100).max(1)
    }

    fn begin<'a>(&self, session: &'a Session) -> Result<Round<'a>> {
        let mut swarm = session.swarm()?;
        let mut position = None;
        let mut on_received = |connection: usize, received: Received<'_>, at: Instant| {
            if let Received::Subscribed(reply, _) = &received {
                position = Some((reply.epoch.clone().context("a channel without positions")?, reply.offset));
            }
            expect_nothing(connection, received, at)
        };
        let frames = session.first_frames(0..self.subscribers, 1);
        swarm.open_with(frames, super::WINDOW, &mut on_received)?;
        let (epoch, offset) = position.context("nobody subscribed")?;
        let options = broadcast::Options {
            subscribers: self.subscribers,
            publishers: PUBLISHERS,
            rate: Some(self.rate as f64),
            size: self.size,
            spin: false,
        };
        let mut broadcast = Broadcast::open(session, swarm, &options)?;
        broadcast.first_measured = self.stopped();
        Ok(Round { session, broadcast, closed: vec![None; self.stopped()], epoch, offset })
    }
}

impl Round<'_> {
    fn set_paused(&mut self, paused: bool) -> Result<()> {
        (0..self.closed.len()).try_for_each(|reader| self.broadcast.swarm.set_paused(reader, paused))
    }

    /// Until the gateway has closed those that stopped; gives the most memory it had meanwhile.
    fn until_closed(&mut self, began: Instant, size: usize) -> Result<u64> {
        let closed = |session: &Session| Ok::<_, anyhow::Error>(session.metrics()?.sum(CLOSED) as usize);
        let (before, stopped) = (closed(self.session)?, self.closed.len());
        let (mut peak, step) = (0, (CHECK_EVERY / size).max(1));
        loop {
            let goal = self.broadcast.published() + step;
            while self.broadcast.published() < goal {
                self.turn(Duration::from_secs(1))?;
            }
            peak = peak.max(self.session.memory()?);
            let closed = closed(self.session)? - before;
            if closed >= stopped {
                return Ok(peak);
            }
            ensure!(began.elapsed() < LONGEST, "{closed} of {stopped} slow readers are closed, then no more");
        }
    }

    /// Until each of them has read what is left, and the Close frame.
    fn until_close_frames(&mut self) -> Result<()> {
        let mut progress = Progress::new(0);
        while self.closed.iter().any(Option::is_none) {
            self.turn(Duration::from_secs(1))?;
            let count = self.closed.iter().flatten().count();
            progress.check(count, |count| format!("{count} slow readers were closed, then no more"))?;
        }
        match self.closed.iter().flatten().find(|code| **code != SLOW) {
            Some(0) => bail!("a slow reader was closed without a Close frame instead of with {SLOW}"),
            Some(code) => bail!("a slow reader was closed with {code} instead of {SLOW}"),
            None => Ok(()),
        }
    }

    /// With their positions. Nothing is published meanwhile: the messages are large, and a gateway
    /// recovers 4 MiB at most.
    fn resume(&mut self) -> Result<()> {
        let channel = self.session.channel(0);
        let frame = |reader: usize| {
            let offset = self.offset + self.broadcast.received(reader);
            let token = self.session.token(reader, None);
            (reader, FirstFrame::recovering(&token, &channel, &self.epoch, offset))
        };
        let frames = (0..self.closed.len()).map(frame).collect();
        self.connect(frames, super::WINDOW).map(drop)
    }
}

impl Turns for Round<'_> {
    fn swarm(&mut self) -> &mut Swarm {
        &mut self.broadcast.swarm
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let closed = &mut self.closed;
        self.broadcast.turn_with(timeout, &mut |reader, received, at| match received {
            Received::Closed(code) if reader < closed.len() => {
                closed[reader] = Some(code);
                Ok(())
            }
            Received::Subscribed(reply, _) if reply.is_recovered => Ok(()),
            Received::Subscribed(..) => bail!("it came back with its position, which was not recovered"),
            received => expect_nothing(reader, received, at),
        })
    }

    fn outstanding(&self) -> u64 {
        self.broadcast.outstanding()
    }
}
