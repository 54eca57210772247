//! The generic cell rate algorithm (ITU-T I.371, also known as a leaky bucket as a meter): a limit
//! of so many a minute, in one number of state per key. Times are microseconds of any clock that
//! does not go back. Knows no clock and no store: the caller says what time it is, and may ask which
//! keys changed, to write them down.

use std::collections::HashMap;
use std::sync::Arc;

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
    /// How many are allowed at once.
    pub limit: u64,
    /// How many more are allowed at this instant.
    pub remaining: u64,
    /// Until the whole burst is there again.
    pub reset_us: u64,
    /// Until one more is allowed; 0 if it is now.
    pub retry_us: u64,
}

impl Decision {
    /// Whole seconds until one more is allowed.
    pub fn retry_secs(&self) -> u64 {
        self.retry_us.div_ceil(1_000_000)
    }
}

impl Rate {
    /// So many a minute.
    pub const fn per_minute(burst: u64) -> Self {
        Self { burst, period_us: 60_000_000 }
    }

    /// Judges a request at `now`. `arrival` is the key's state, 0 for a new one: the instant at
    /// which all that was used has been earned again. It moves only if the request is allowed.
    pub fn check(&self, arrival: &mut u64, now: u64) -> Decision {
        let base = (*arrival).max(now);
        let next = base + self.cost_us();
        let allowed = next <= now + self.period_us;
        if allowed {
            *arrival = next;
        }
        self.decision(allowed, (*arrival).saturating_sub(now))
    }

    /// What one request takes of the period.
    pub fn cost_us(&self) -> u64 {
        self.period_us / self.burst.max(1)
    }

    /// The decision of whoever keeps the state; `used` of the period is to be earned again.
    pub fn decision(&self, allowed: bool, used: u64) -> Decision {
        let cost = self.cost_us();
        let free = self.period_us.saturating_sub(used);
        Decision {
            allowed,
            limit: self.burst,
            remaining: free / cost.max(1),
            reset_us: used,
            retry_us: cost.saturating_sub(free),
        }
    }
}

/// Between two looks for keys at rest in a table that is full.
const SWEEP_US: u64 = 100_000;

/// A rate for each of many keys, in bounded memory: a table that is full forgets the keys that are
/// at rest, and while there are none, a new key is refused.
#[derive(Debug)]
pub struct Rates {
    rate: Rate,
    most: usize,
    keys: HashMap<Arc<str>, State>,
    /// Keys to be written down; each stands here once.
    changed: Vec<Arc<str>>,
    swept_at: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    arrival: u64,
    /// It is among `changed`.
    changed: bool,
}

impl Rates {
    /// No key has used anything; at most `most` are remembered at once.
    pub fn new(rate: Rate, most: usize) -> Self {
        Self { rate, most, keys: HashMap::new(), changed: Vec::new(), swept_at: 0 }
    }

    /// Counts one for `key`.
    pub fn check(&mut self, key: &str, now: u64) -> Decision {
        if !self.has_room_for(key, now) {
            // Judged as if it had just used its burst up.
            let Rate { burst, period_us } = self.rate;
            return Decision {
                allowed: false,
                limit: burst,
                remaining: 0,
                reset_us: period_us,
                retry_us: 1_000_000,
            };
        }
        if let Some(state) = self.keys.get_mut(key) {
            let decision = self.rate.check(&mut state.arrival, now);
            if decision.allowed && !std::mem::replace(&mut state.changed, true) {
                let key = self.keys.get_key_value(key).map(|(key, _)| key.clone());
                self.changed.extend(key);
            }
            return decision;
        }
        let mut state = State { arrival: 0, changed: true };
        let (key, decision) = (Arc::<str>::from(key), self.rate.check(&mut state.arrival, now));
        self.changed.push(key.clone());
        self.keys.insert(key, state);
        decision
    }

    fn has_room_for(&mut self, key: &str, now: u64) -> bool {
        if self.keys.len() < self.most || self.keys.contains_key(key) {
            return true;
        }
        if now >= self.swept_at + SWEEP_US {
            self.swept_at = now;
            self.keys.retain(|_, state| state.arrival > now);
            self.changed.retain(|key| self.keys.contains_key(key));
        }
        self.keys.len() < self.most
    }

    /// Takes up to `most` keys that changed since they were taken last, and gives those that need
    /// longer than `rest` to earn everything again, each with that time. `None`: none had changed.
    pub fn take_changed(&mut self, most: usize, rest: u64, now: u64) -> Option<Vec<(Arc<str>, u64)>> {
        if self.changed.is_empty() {
            return None;
        }
        let kept = self.changed.len().saturating_sub(most);
        let taken = self.changed.split_off(kept).into_iter();
        let left = taken.filter_map(|key| {
            let state = self.keys.get_mut(&key)?;
            state.changed = false;
            Some((key, state.arrival.saturating_sub(now)))
        });
        Some(left.filter(|(_, left)| *left > rest).collect())
    }

    /// What was taken could not be written down: it counts as changed again.
    pub fn put_back(&mut self, keys: impl IntoIterator<Item = Arc<str>>) {
        for key in keys {
            if let Some(state) = self.keys.get_mut(&key)
                && !std::mem::replace(&mut state.changed, true)
            {
                self.changed.push(key);
            }
        }
    }

    /// A key that has `left` to earn, as it was written down. No key has more than a period.
    pub fn restore(&mut self, key: &str, left: u64, now: u64) {
        if self.has_room_for(key, now) {
            let arrival = now + left.min(self.rate.period_us);
            self.keys.insert(key.into(), State { arrival, changed: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(taken: &Option<Vec<(Arc<str>, u64)>>) -> Vec<&str> {
        let mut names: Vec<&str> = taken.iter().flatten().map(|(key, _)| &**key).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_written_down_and_read_back_counts_on() {
        let rate = Rate { burst: 3, period_us: 3_000 };
        let mut rates = Rates::new(rate, 10);
        assert!((0..3).all(|_| rates.check("ana", 5_000).allowed));
        assert!(rates.check("ben", 5_500).allowed);
        let taken = rates.take_changed(10, 0, 6_000);
        assert_eq!(names(&taken), ["ana", "ben"]);
        let mut later = Rates::new(rate, 10);
        for (key, left) in taken.iter().flatten() {
            later.restore(key, *left, 100);
        }
        assert!(later.check("ana", 100).allowed, "the time in between was earned");
        assert!(!later.check("ana", 100).allowed);
        assert_eq!(later.check("ben", 100).remaining, 1);
        later.restore("eve", u64::MAX, 100);
        assert_eq!(later.check("eve", 100).retry_us, 1_000, "never more than a period");
    }

    #[test]
    fn only_what_changed_is_taken_and_only_once() {
        let mut rates = Rates::new(Rate { burst: 1, period_us: 1_000 }, 10);
        assert!(rates.check("ana", 1).allowed && !rates.check("ana", 1).allowed);
        assert!(rates.check("ben", 1).allowed);
        let first = rates.take_changed(1, 0, 2);
        let rest = [(); 2].map(|()| rates.take_changed(9, 0, 2));
        assert_eq!([names(&first).len(), names(&rest[0]).len()], [1, 1]);
        assert_eq!(rest[1], None);
        assert!(!rates.check("ana", 2).allowed);
        assert_eq!(rates.take_changed(9, 0, 2), None, "a refusal changes nothing");
        rates.put_back(first.into_iter().flatten().map(|(key, _)| key));
        assert_eq!(names(&rates.take_changed(9, 0, 2)).len(), 1);
        assert!(rates.check("ana", 5_000).allowed);
        assert_eq!(rates.take_changed(9, 0, 9_000), Some(vec![]), "it has earned everything meanwhile");
    }

    #[test]
    fn who_is_soon_at_rest_is_not_taken_before_counting_on() {
        let mut rates = Rates::new(Rate { burst: 3, period_us: 3_000 }, 10);
        assert!(rates.check("ana", 1).allowed && rates.check("ben", 1).allowed);
        assert!(rates.check("ben", 1).allowed);
        assert_eq!(names(&rates.take_changed(9, 1_000, 2)), ["ben"]);
        assert!(rates.check("ana", 500).allowed);
        assert_eq!(names(&rates.take_changed(9, 1_000, 501)), ["ana"]);
    }

    #[test]
    fn a_full_table_forgets_who_is_at_rest_and_refuses_strangers_otherwise() {
        let mut rates = Rates::new(Rate { burst: 1, period_us: 1_000_000 }, 2);
        assert!(rates.check("ana", 1).allowed && rates.check("ben", 900_000).allowed);
        assert!(!rates.check("eve", 900_001).allowed);
        assert!(!rates.check("ana", 900_002).allowed, "who is known is judged by the rate");
        assert!(rates.check("eve", 1_000_002).allowed, "ana is at rest");
        assert_eq!(names(&rates.take_changed(9, 0, 1_000_003)), ["ben", "eve"]);
    }

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
