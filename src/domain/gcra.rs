//! The generic cell rate algorithm (ITU-T I.371, also known as a leaky bucket as a meter): a limit
//! of so many a minute, in one number of state per key. Times are microseconds of any clock that
//! does not go back.

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many at once, and how many in `period_us`.
    pub burst: u64,
    /// The time in which the whole burst is earned again.
    pub period_us: u64,
}

/// What a rate says about one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is within the rate.
    pub allowed: bool,
    /// How many more are allowed at this instant.
    pub remaining: u64,
    /// Until the whole burst is there again.
    pub reset_us: u64,
    /// Until one more is allowed; 0 if it is now.
    pub retry_us: u64,
}

impl Rate {
    /// So many a minute.
    pub const fn per_minute(burst: u64) -> Self {
        Self { burst, period_us: 60_000_000 }
    }

    /// Judges a request at `now`. `arrival` is the key's state, 0 for a new one: the instant at
    /// which all that was used has been earned again. It moves only if the request is allowed.
    pub fn check(&self, arrival: &mut u64, now: u64) -> Decision {
        let cost = self.period_us / self.burst.max(1);
        let base = (*arrival).max(now);
        let next = base + cost;
        let allowed = next <= now + self.period_us;
        if allowed {
            *arrival = next;
        }
        let used = (*arrival).saturating_sub(now);
        let free = self.period_us.saturating_sub(used);
        Decision {
            allowed,
            remaining: free / cost.max(1),
            reset_us: used,
            retry_us: cost.saturating_sub(free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_at_once_and_then_one_by_one() {
        let rate = Rate::per_minute(60);
        let mut state = 0;
        let start = 1_000_000_000;
        for left in (0..60).rev() {
            let decision = rate.check(&mut state, start);
            assert!(decision.allowed);
            assert_eq!(decision.remaining, left);
        }
        let refused = rate.check(&mut state, start);
        assert!(!refused.allowed);
        assert_eq!((refused.remaining, refused.retry_us, refused.reset_us), (0, 1_000_000, 60_000_000));
        assert!(rate.check(&mut state, start + 1_000_000).allowed);
        assert!(!rate.check(&mut state, start + 1_000_000).allowed);
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let rate = Rate::per_minute(2);
        let mut state = 0;
        assert!(rate.check(&mut state, 0).allowed);
        let much_later = 3_600_000_000;
        assert_eq!((0..5).filter(|_| rate.check(&mut state, much_later).allowed).count(), 2);
    }

    #[test]
    fn over_any_time_no_more_than_the_rate_gets_through() {
        let rate = Rate::per_minute(7);
        let mut state = 0;
        let through = (0..6_000u64).filter(|tick| rate.check(&mut state, tick * 100_000).allowed).count();
        assert!((70..=77).contains(&through), "{through} in ten minutes");
    }
}
