//! Timers of a session: pings, pongs and expiry. The session reads no clock: the transport passes the
//! current time in, and asks when to do so again. What expires does so by the wall clock, because the
//! monotonic one stands still while the machine sleeps: the next ping finds it.

use std::time::{Duration, Instant};

use chrono::TimeDelta;

use crate::domain::event::Time;

/// The current time on two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The wall clock, which tokens are checked against.
    pub wall: Time,
    /// The monotonic clock, which delays are measured with.
    pub mono: Instant,
}

impl Now {
    /// When `delay` after `end` will be on the monotonic clock; now if that is past, `None` if it cannot
    /// be represented.
    pub(super) fn after(self, end: Time, delay: Duration) -> Option<Instant> {
        let left = (end - self.wall).checked_add(&TimeDelta::from_std(delay).ok()?)?;
        self.mono.checked_add(left.to_std().unwrap_or_default())
    }

    /// Whole seconds until `end`, rounded down so that a client that waits this long is not late. At
    /// least 1, because 0 means that there is no expiry.
    pub(super) fn ttl(self, end: Time) -> u32 {
        let left = (end - self.wall).to_std().unwrap_or_default().as_secs();
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Timers {
    /// The client must have connected by then.
    pub(super) stale: Instant,
    /// When its token expires, without the grace period.
    pub(super) expires: Option<Time>,
    pub(super) ping: Option<Instant>,
    /// The last ping must be answered by then.
    pub(super) pong: Option<Instant>,
    /// Half of that time is over.
    pub(super) pong_is_late: bool,
    /// Places the first ping in the second half of the interval, so that clients which connected
    /// together are not pinged together.
    jitter: f64,
}

impl Timers {
    pub(super) fn new(now: Instant, stale: Duration, jitter: f64) -> Self {
        let jitter = if jitter.is_nan() { 0.0 } else { jitter.clamp(0.0, 1.0) };
        Self { stale: now + stale, expires: None, ping: None, pong: None, pong_is_late: false, jitter }
    }

    /// The connection is open: pings begin.
    pub(super) fn start_pings(&mut self, now: Instant, interval: Duration) {
        if !interval.is_zero() {
            self.ping = Some(now + interval.mul_f64(0.5 + 0.5 * self.jitter));
        }
    }
}

/// Whether `expires` is longer ago than `delay`.
pub(super) fn is_late(expires: Option<Time>, delay: Duration, now: Now) -> bool {
    expires.and_then(|end| now.after(end, delay)).is_some_and(|end| end <= now.mono)
}
