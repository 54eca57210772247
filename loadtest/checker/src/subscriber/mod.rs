//! One subscriber: a user of its own with a cursor on one or two channels, who follows them over any
//! transport, leaves, and comes back over another one with the same cursor. It records and never
//! judges; what a signal left out it reads by cursor.

mod connection;
mod events;
mod poll;
mod protocol;
pub mod subscription;

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use testkit::random::Random;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::history::{Entry, Transport};
use crate::plan::Scenario;
use connection::Connection;
use subscription::{Context, Ended, Phase, Subscription};

/// A connection on which nothing came for so long is given up; the gateway pings more often.
const SILENCE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long unsubscribing at the end may take.
const LEAVING: Duration = Duration::from_secs(5);
/// Milliseconds before a new attempt.
const PAUSE: std::ops::Range<u64> = 5..120;
/// Milliseconds of one connection while subscribers churn.
const STAY: std::ops::Range<u64> = 100..2500;
/// Milliseconds that one stays away who wants to miss a lot.
const ABSENCE: std::ops::Range<u64> = 200..2500;

pub struct Subscriber {
    pub number: usize,
    /// What it follows: one channel, or a built-in and a configured one.
    pub subscriptions: Vec<Subscription>,
    token: String,
    random: Random,
    context: Context,
}

impl Subscriber {
    pub fn new(
        number: usize,
        subscriptions: Vec<Subscription>,
        token: String,
        random: Random,
        context: Context,
    ) -> Self {
        Self { number, subscriptions, token, random, context }
    }

    /// Follows until everything is there, or until nobody waits any longer.
    pub async fn run(mut self) -> Self {
        while !self.is_over() && !self.is_complete() {
            let transport = self.random.pick(&self.context.transports);
            self.context.counters.connections.fetch_add(1, Ordering::Relaxed);
            for subscription in &mut self.subscriptions {
                subscription.history.push(Entry::Connected(transport));
            }
            let until = Instant::now() + self.random.millis(STAY) * self.context.patience;
            // An error is a connection that broke, whatever broke it: the next one goes on.
            let _ = match transport {
                Transport::Poll => self.poll(until).await,
                _ => self.hold(transport, until).await,
            };
            let _ = self.read_unread().await;
            let settling = matches!(*self.context.phase.borrow(), Phase::Settling(_));
            let away = self.context.scenario == Scenario::Signals && !settling && self.random.once_in(3);
            let pause = self.random.millis(if away { ABSENCE } else { PAUSE });
            if !self.is_complete() {
                self.pause(pause).await;
            }
        }
        self
    }

    /// Follows over one connection.
    async fn hold(&mut self, transport: Transport, until: Instant) -> Result<()> {
        let opening = Connection::open(
            transport,
            &self.token,
            &mut self.subscriptions,
            &self.context,
            &mut self.random,
        );
        let mut connection = timeout(CONNECTING, opening).await??;
        let mut phase = self.context.phase.clone();
        let stays = self.context.scenario == Scenario::Stay;
        loop {
            self.take(&mut connection)?;
            timeout(SILENCE, connection.answer(&mut self.subscriptions)).await??;
            if self.is_over() {
                return Ok(());
            }
            if self.is_at_head() {
                // A repeat that is on its way comes before the replies to unsubscribes.
                return if connection.speaks() {
                    timeout(LEAVING, self.leave(connection)).await?
                } else {
                    Ok(())
                };
            }
            tokio::select! {
                more = timeout(SILENCE, connection.receive()) => more??,
                changed = phase.changed() => changed?,
                () = sleep_until(until), if !stays => return Ok(()),
            }
        }
    }

    /// Records what has come.
    fn take(&mut self, connection: &mut Connection) -> Result<()> {
        let entries =
            |subscriptions: &[Subscription]| subscriptions.iter().map(|s| s.history.len()).sum::<usize>();
        let before = entries(&self.subscriptions);
        let taken = connection.take(&mut self.subscriptions, &self.context);
        let came = entries(&self.subscriptions) - before;
        self.context.counters.events.fetch_add(came as u64, Ordering::Relaxed);
        // What makes no sense is a violation; the end of a connection is none.
        if let Some(nonsense) = taken.as_ref().err().filter(|error| !error.is::<Ended>()) {
            self.subscriptions[0].unexpected(format!("{nonsense:#}"));
        }
        taken
    }

    /// Unsubscribes and records what comes before the replies.
    async fn leave(&mut self, mut connection: Connection) -> Result<()> {
        while !connection.can_speak() {
            connection.receive().await?;
            self.take(&mut connection)?;
            connection.answer(&mut self.subscriptions).await?;
        }
        connection.unsubscribe(&mut self.subscriptions, &self.context).await?;
        while !connection.has_left() {
            connection.receive().await?;
            self.take(&mut connection)?;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        matches!(*self.context.phase.borrow(), Phase::Over)
    }

    fn is_at_head(&self) -> bool {
        match &*self.context.phase.borrow() {
            Phase::Settling(heads) => self.subscriptions.iter().all(|subscription| {
                let (epoch, head) = &heads[subscription.channel];
                subscription.epoch == *epoch && subscription.offset >= *head
            }),
            Phase::Publishing | Phase::Over => false,
        }
    }

    fn is_complete(&self) -> bool {
        self.is_at_head() && self.subscriptions.iter().all(|subscription| subscription.unread.is_empty())
    }

    async fn pause(&self, time: Duration) {
        let mut phase = self.context.phase.clone();
        tokio::select! {
            () = sleep(time) => {}
            _ = phase.wait_for(|phase| matches!(phase, Phase::Over)) => {}
        }
    }
}
