//! Limits at the doors, counted in this process: rates by key, and bytes in flight.
//! Each is bounded itself: a table that is full forgets the keys that are at rest first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::domain::gcra::{Decision, Rate};

/// Keys that are remembered at once.
const MAX_KEYS: usize = 100_000;

/// A rate for each of many keys.
pub struct RateLimit {
    rate: Rate,
    start: Instant,
    arrivals: Mutex<HashMap<String, u64>>,
}

impl RateLimit {
    /// No key has used anything yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, start: Instant::now(), arrivals: Mutex::default() }
    }

    /// The burst.
    pub fn limit(&self) -> u64 {
        self.rate.burst
    }

    /// Counts one for `key`.
    pub fn check(&self, key: &str) -> Decision {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX) + 1;
        let mut arrivals = self.arrivals.lock().expect("nobody panics while counting");
        if arrivals.len() >= MAX_KEYS && !arrivals.contains_key(key) {
            arrivals.retain(|_, arrival| *arrival > now);
            if arrivals.len() >= MAX_KEYS {
                // Every key is active: a new one is judged as if it had just used its burst up.
                return Decision {
                    allowed: false,
                    remaining: 0,
                    reset_us: self.rate.period_us,
                    retry_us: 1_000_000,
                };
            }
        }
        match arrivals.get_mut(key) {
            Some(arrival) => self.rate.check(arrival, now),
            None => {
                let mut arrival = 0;
                let decision = self.rate.check(&mut arrival, now);
                arrivals.insert(key.to_owned(), arrival);
                decision
            }
        }
    }
}

/// A bounded number of bytes (or of anything) that may be in use at once.
#[derive(Clone)]
pub struct Budget {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// A part of a [`Budget`]; given back when dropped.
pub struct Reserved {
    budget: Budget,
    amount: u64,
}

impl Budget {
    /// Nothing is used yet.
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit }
    }

    /// An empty reservation, to grow as things come in.
    pub fn reserve(&self) -> Reserved {
        Reserved { budget: self.clone(), amount: 0 }
    }
}

impl Reserved {
    /// Takes `more`; `false` when the budget does not have it.
    pub fn grow(&mut self, more: u64) -> bool {
        let before = self.budget.used.fetch_add(more, Ordering::Relaxed);
        if before + more > self.budget.limit {
            self.budget.used.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.amount += more;
        true
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}
