//! Timers of a session: pings, pongs and expiry. The session reads no clock: the transport passes the
//! current time in, and asks when to do so again.
//! Invariant: a pong that is queued behind an unfinished command does not count as missing.

use std::time::{Duration, Instant};

use super::connection::Connection;
use super::effect::Effect;
use super::state::Phase;
use crate::domain::event::Time;
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::reply::PING;

/// The current time on two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The wall clock, which tokens are checked against.
    pub wall: Time,
    /// The monotonic clock, which delays are measured with.
    pub mono: Instant,
}

impl Now {
    /// The monotonic time of `wall`; now if that is past, `None` if it cannot be represented.
    pub(super) fn until(self, wall: Time) -> Option<Instant> {
        let left = (wall - self.wall).to_std().unwrap_or_default();
        self.mono.checked_add(left)
    }

    /// Whole seconds until `end`, rounded down so that a client that waits this long is not late. At
    /// least 1, because 0 means that there is no expiry.
    pub(super) fn ttl(self, end: Instant) -> u32 {
        let left = end.saturating_duration_since(self.mono).as_secs();
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Timers {
    /// The client must have connected by then.
    pub(super) stale: Instant,
    /// When its token expires, without the grace period.
    pub(super) expires: Option<Instant>,
    /// When the next ping is due.
    pub(super) ping: Option<Instant>,
    /// The last ping must be answered by then.
    pub(super) pong: Option<Instant>,
    /// Places the first ping in the second half of the interval, so that clients which connected
    /// together are not pinged together.
    jitter: f64,
}

impl Timers {
    pub(super) fn new(now: Instant, stale: Duration, jitter: f64) -> Self {
        let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
        Self { stale: now + stale, expires: None, ping: None, pong: None, jitter }
    }

    /// The connection is open: pings begin.
    pub(super) fn start_pings(&mut self, now: Instant, interval: Duration) {
        if !interval.is_zero() {
            self.ping = Some(now + interval.mul_f64(0.5 + 0.5 * self.jitter));
        }
    }
}

impl Connection {
    /// When [`Connection::on_time`] must be called next.
    pub fn deadline(&self) -> Option<Instant> {
        let options = &self.context.options;
        match self.phase {
            Phase::New | Phase::Refused => self.pending.is_none().then_some(self.timers.stale),
            Phase::Closed => None,
            Phase::Open => {
                let late = |expires: Option<Instant>, delay| expires?.checked_add(delay);
                let connection = late(self.timers.expires, options.expired_close_delay);
                let subscription = late(self.subscriptions.first_expiry(), options.expired_sub_close_delay);
                [connection, subscription, self.timers.ping, self.timers.pong].into_iter().flatten().min()
            }
        }
    }

    /// Time has passed. To be called at or after [`Connection::deadline`]; earlier calls do nothing.
    pub fn on_time(&mut self, now: Now, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::New | Phase::Refused => {
                if self.pending.is_none() && self.timers.stale <= now.mono {
                    self.close(DisconnectCode::Stale, effects);
                }
            }
            Phase::Closed => {}
            Phase::Open => {
                if is_late(self.timers.expires, self.context.options.expired_close_delay, now) {
                    return self.close(DisconnectCode::Expired, effects);
                }
                self.end_expired_subscriptions(now, effects);
                self.keep_alive(now, effects);
            }
        }
    }

    fn end_expired_subscriptions(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let delay = self.context.options.expired_sub_close_delay;
        if !is_late(self.subscriptions.first_expiry(), delay, now) {
            return;
        }
        let expired = self.subscriptions.iter().filter(|(_, sub)| is_late(sub.expires, delay, now));
        let expired: Vec<_> = expired.map(|(channel, sub)| (channel.clone(), sub.server_side)).collect();
        if expired.iter().any(|(_, server_side)| *server_side) {
            return self.close(DisconnectCode::SubscriptionExpired, effects);
        }
        for (channel, _) in expired {
            self.end_subscription(&channel, UnsubscribeCode::Expired, effects);
        }
    }

    fn keep_alive(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Closed {
            return;
        }
        let options = &self.context.options;
        if self.timers.pong.is_some_and(|pong| pong <= now.mono) {
            if self.pending.is_none() {
                return self.close(DisconnectCode::NoPong, effects);
            }
            // The pong may be queued behind the unfinished command.
            self.timers.pong = Some(now.mono + options.pong_timeout);
        }
        if let Some(ping) = self.timers.ping.filter(|ping| *ping <= now.mono) {
            let next = ping + options.ping_interval;
            // If several pings are overdue, one is sent.
            self.timers.ping = Some(if next > now.mono { next } else { now.mono + options.ping_interval });
            if !self.is_uni() {
                self.timers.pong.get_or_insert(now.mono + options.pong_timeout);
            }
            effects.push(Effect::Send(PING.to_owned()));
        }
    }
}

fn is_late(expires: Option<Instant>, delay: Duration, now: Now) -> bool {
    expires.and_then(|expires| expires.checked_add(delay)).is_some_and(|end| end <= now.mono)
}
