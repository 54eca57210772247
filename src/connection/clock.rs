//! What happens to a connection by time alone: pings, silence, expiry. Reads no clock: whoever
//! carries the connection says what time it is, and asks when to say so again.
//! Must hold: a pong that waits behind a command of ours is no missing pong.

use std::time::{Duration, Instant};

use super::effect::Effect;
use super::session::Connection;
use super::state::Phase;
use crate::domain::event::Time;
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::reply::PING;

/// One moment on two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// What the calendar says; tokens go by it.
    pub wall: Time,
    /// What the clock says that never goes back; delays go by it.
    pub mono: Instant,
}

impl Moment {
    /// When it will be `wall`; at once if that has been, `None` if no clock gets there.
    pub(super) fn until(self, wall: Time) -> Option<Instant> {
        let left = (wall - self.wall).to_std().unwrap_or_default();
        self.mono.checked_add(left)
    }

    /// Whole seconds until `end`, so that nobody who waits as long is late. At least 1, for 0
    /// would say that there is no end.
    pub(super) fn ttl(self, end: Instant) -> u32 {
        let left = end.saturating_duration_since(self.mono).as_secs();
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }
}

/// The times of one connection.
#[derive(Debug)]
pub(super) struct Clock {
    /// Until then it must have connected.
    pub(super) stale: Instant,
    /// When its token expires; the delay for late clients comes on top.
    pub(super) expires: Option<Instant>,
    /// When the next ping is due.
    pub(super) ping: Option<Instant>,
    /// Until then the last ping must be answered.
    pub(super) pong: Option<Instant>,
    /// Where in the second half of the interval the first ping lies, so that not all clients that
    /// came together are pinged together.
    jitter: f64,
}

impl Clock {
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
    /// The next moment at which [`Connection::on_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let options = &self.rules.options;
        match self.phase {
            Phase::New | Phase::Refused => self.pending.is_none().then_some(self.clock.stale),
            Phase::Over => None,
            Phase::Open => {
                let late = |expires: Option<Instant>, delay| expires?.checked_add(delay);
                let connection = late(self.clock.expires, options.expired_close_delay);
                let subscription = late(self.subscriptions.first_expiry(), options.expired_sub_close_delay);
                [connection, subscription, self.clock.ping, self.clock.pong].into_iter().flatten().min()
            }
        }
    }

    /// Time has passed. To be called at or after [`Connection::deadline`]; earlier calls do nothing.
    pub fn on_time(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::New | Phase::Refused => {
                if self.pending.is_none() && self.clock.stale <= now.mono {
                    self.close(DisconnectCode::Stale, effects);
                }
            }
            Phase::Over => {}
            Phase::Open => {
                if is_late(self.clock.expires, self.rules.options.expired_close_delay, now) {
                    return self.close(DisconnectCode::Expired, effects);
                }
                self.end_expired_subscriptions(now, effects);
                self.keep_alive(now, effects);
            }
        }
    }

    fn end_expired_subscriptions(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let delay = self.rules.options.expired_sub_close_delay;
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

    fn keep_alive(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Over {
            return;
        }
        let options = &self.rules.options;
        if self.clock.pong.is_some_and(|pong| pong <= now.mono) {
            if self.pending.is_none() {
                return self.close(DisconnectCode::NoPong, effects);
            }
            // The answer may wait behind the command that is under way.
            self.clock.pong = Some(now.mono + options.pong_timeout);
        }
        if let Some(ping) = self.clock.ping.filter(|ping| *ping <= now.mono) {
            let next = ping + options.ping_interval;
            // Whoever slept through several pings sends one.
            self.clock.ping = Some(if next > now.mono { next } else { now.mono + options.ping_interval });
            if !self.is_uni() {
                self.clock.pong.get_or_insert(now.mono + options.pong_timeout);
            }
            effects.push(Effect::Say(PING.to_owned()));
        }
    }
}

fn is_late(expires: Option<Instant>, delay: Duration, now: Moment) -> bool {
    expires.and_then(|expires| expires.checked_add(delay)).is_some_and(|end| end <= now.mono)
}
