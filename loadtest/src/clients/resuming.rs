//! Clients that leave and come back with their position, on channels of the bench namespace. What was
//! published while one was away must come with its subscribe reply; a client whose position is not
//! recovered fails the run, and so does a gap or a repeat.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Turns;
use crate::compare::session::Session;
use crate::progress::Progress;
use crate::stats::Histogram;
use crate::ws::delivery_log::{DeliveryLog, Layout};
use crate::ws::publisher::Publishers;
use crate::ws::swarm::{FirstFrame, Received, Swarm, expect_nothing};

/// Messages under way at once.
const PUBLISHERS: usize = 32;

pub struct ResumingClients {
    swarm: Swarm,
    session: Session,
    log: DeliveryLog,
    /// Subscribers of each channel.
    fan_out: usize,
    /// By connection: epoch and offset of its first subscription.
    began: Vec<Option<(String, u64)>>,
    publishers: Publishers,
    names: Vec<String>,
    /// The channel that is next.
    next: usize,
    latencies: Histogram,
}

impl ResumingClients {
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
        let mut swarm = session.swarm()?;
        let mut began = vec![None; connections];
        let firsts = (0..connections).map(|connection| session.first_frame(connection, connection / fan_out));
        let mut on_received = |connection: usize, received: Received<'_>, at: Instant| {
            if let Received::Subscribed(reply, _) = &received {
                let epoch = reply.epoch.clone().context("a channel without positions")?;
                began[connection] = Some((epoch, reply.offset));
            }
            expect_nothing(connection, received, at)
        };
        swarm.open_with(firsts.collect(), window, &mut on_received)?;
        Ok(Self {
            publishers: Publishers::open(&session.publishing(size), &swarm, PUBLISHERS)?,
            log: DeliveryLog::new(Layout { channels, fan_out, connections }, PUBLISHERS)?,
            fan_out,
            began,
            names: (0..channels).map(|channel| session.channel(channel)).collect(),
            session: session.clone(),
            swarm,
            next: 0,
            latencies: Histogram::new(),
        })
    }

    pub fn live(&self) -> usize {
        self.swarm.live()
    }

    pub fn published(&self) -> usize {
        self.log.published()
    }

    /// From the first step to being subscribed, of all that came back since the last call.
    pub fn take_latencies(&mut self) -> Histogram {
        std::mem::take(&mut self.latencies)
    }

    /// Publishes this many, channel after channel, and waits for the answers, not for the deliveries.
    pub fn publish(&mut self, count: usize) -> Result<()> {
        let mut left = count;
        while left > 0 || self.publishers.outstanding() > 0 {
            for (index, publisher) in self.publishers.idle().take(left) {
                left -= 1;
                publisher.set_channel(&self.names[self.next]);
                publisher.publish(self.log.publish(self.next, index, Instant::now()))?;
                self.next = (self.next + 1) % self.names.len();
            }
            self.turn(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Disconnects them without a Close frame.
    pub fn disconnect(&mut self, mut connections: Range<usize>) -> Result<()> {
        connections.try_for_each(|connection| self.swarm.disconnect(connection))
    }

    /// The first frames of those who were disconnected, for when they come back.
    pub fn resume_frames(&self, connections: Range<usize>) -> Result<Vec<(usize, FirstFrame)>> {
        let frame = |connection: usize| {
            let channel = connection / self.fan_out;
            let (epoch, offset) = self.began[connection].as_ref().context("it never subscribed")?;
            let offset = offset + self.log.received(connection, channel)?;
            let token = self.session.token(connection, None);
            Ok((connection, FirstFrame::recovering(&token, &self.names[channel], epoch, offset)))
        };
        connections.map(frame).collect()
    }

    /// Lets them come back, `window` at a time, until all are live and have received everything.
    pub fn resume(&mut self, frames: Vec<(usize, FirstFrame)>, window: usize) -> Result<Duration> {
        let began = Instant::now();
        self.connect(frames, window)?;
        let mut progress = Progress::new(self.outstanding());
        while self.outstanding() > 0 {
            self.turn(Duration::from_secs(1))?;
            progress.check(self.outstanding(), |count| format!("{count} deliveries never came"))?;
        }
        Ok(began.elapsed())
    }
}

impl Turns for ResumingClients {
    fn swarm(&mut self) -> &mut Swarm {
        &mut self.swarm
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let Self { swarm, log, latencies, publishers, .. } = self;
        let mut on_received = |connection: usize, received: Received<'_>, at: Instant| match received {
            Received::Publication(number) => log.receive(connection, number, at).map(drop),
            Received::Subscribed(reply, took) if reply.is_recovered => {
                latencies.record(took);
                Ok(())
            }
            Received::Subscribed(..) => bail!("it came back with its position, which was not recovered"),
            received => expect_nothing(connection, received, at),
        };
        publishers.poll(swarm, timeout, &mut on_received)
    }

    fn outstanding(&self) -> u64 {
        self.log.outstanding()
    }
}
