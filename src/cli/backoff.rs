//! How long to wait before the next try.

use std::time::Duration;

/// The pause between connections: doubled with each consecutive failure, half of it random, so that many
/// readers do not reconnect at the same time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    first: Duration,
    failures: u32,
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(30);

    /// A backoff that starts with `first`.
    pub(super) fn starting_with(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    /// Begins anew, after a success.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause; `jitter` is from 0 to 1.
    pub(super) fn next(&mut self, jitter: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        doubled.min(Self::LONGEST).mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::starting_with(Duration::from_secs(1));
        let seconds: Vec<f64> = (0..7).map(|_| backoff.next(1.0).as_secs_f64()).collect();
        assert_eq!(seconds, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        backoff.failures = u32::MAX - 1;
        assert_eq!(backoff.next(0.0), Duration::from_secs(15));
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(500));
    }
}
