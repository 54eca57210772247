//! Rate limits by key, which nodes count together where they can. The state of a node is saved with
//! write-behind ([`persistence`](super::persistence)); the store is never part of a decision.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::gcra::{Decision, Rate, Rates};
use super::persistence::PersistentRate;
use super::shared::SharedCounters;

/// Keys that are remembered at once.
const MAX_KEYS: usize = 100_000;

/// A rate for each of many keys. Cheap to clone: clones count together.
#[derive(Clone)]
pub struct RateLimit {
    name: &'static str,
    rate: Rate,
    start: Instant,
    rates: Arc<Mutex<Rates>>,
    counters: SharedCounters,
}

impl RateLimit {
    /// No key has used anything yet. Nodes that share `counters` count by `name` as one.
    pub fn new(name: &'static str, rate: Rate, counters: SharedCounters) -> Self {
        let rates = Arc::new(Mutex::new(Rates::new(rate, MAX_KEYS)));
        Self { name, rate, start: Instant::now(), rates, counters }
    }

    /// What the store knows it by.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Counts one for `key`. If this node alone has let through too many, the shared counter is not asked.
    pub async fn check(&self, key: &str) -> Decision {
        let own = self.rates().check(key, self.now());
        if !own.allowed {
            return own;
        }
        self.counters.check_rate(self.name, key, self.rate).await.map_or(own, |(decision, _)| decision)
    }

    /// Counts one for `key` if this node alone counts and lets it through. `None`: nothing was
    /// counted, and [`check`](Self::check) has to be asked.
    pub fn check_here(&self, key: &str) -> Option<Decision> {
        if self.counters.is_shared() {
            return None;
        }
        Some(self.rates().check(key, self.now())).filter(|decision| decision.allowed)
    }

    fn now(&self) -> u64 {
        micros(self.start.elapsed()).saturating_add(1)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().expect("the lock is not poisoned")
    }
}

impl PersistentRate for RateLimit {
    fn take_changed(&self, most: usize, rest: Duration) -> Option<Vec<(Arc<str>, Duration)>> {
        let taken = self.rates().take_changed(most, micros(rest), self.now())?;
        Some(taken.into_iter().map(|(key, left)| (key, Duration::from_micros(left))).collect())
    }

    fn put_back(&self, keys: Vec<Arc<str>>) {
        self.rates().put_back(keys);
    }

    fn restore(&self, key: &str, left: Duration) {
        self.rates().restore(key, micros(left), self.now());
    }
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}
