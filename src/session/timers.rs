//! Timers of a session: pings, pongs and expiry. The session reads no clock: the transport passes the
//! current time in, and asks when to do so again.

use std::time::{Duration, Instant};

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

/// Whether `expires` is longer ago than `delay`.
pub(super) fn is_late(expires: Option<Instant>, delay: Duration, now: Now) -> bool {
    expires.and_then(|expires| expires.checked_add(delay)).is_some_and(|end| end <= now.mono)
}
