//! Limits of the endpoints: rates by key, which nodes count together where they can, and bytes in
//! flight of this process. What a node has counted of rates is written behind to the store
//! (`tasks::rates`), which is never part of a decision.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::ApiError;
use crate::limits::SharedCounters;
use crate::limits::gcra::{Decision, Rate, Rates};
use crate::tasks::rates::PersistentRate;

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

/// The header fields of draft-ietf-httpapi-ratelimit-headers, in seconds.
fn rate_headers(decision: &Decision) -> [(HeaderName, HeaderValue); 3] {
    [
        (HeaderName::from_static("ratelimit-limit"), decision.limit.into()),
        (HeaderName::from_static("ratelimit-remaining"), decision.remaining.into()),
        (HeaderName::from_static("ratelimit-reset"), decision.reset_us.div_ceil(1_000_000).into()),
    ]
}

/// Adds the state of the rate limit to a response.
pub fn add_rate(headers: &mut HeaderMap, decision: &Decision) {
    for (name, value) in rate_headers(decision) {
        headers.insert(name, value);
    }
}

/// Adds the state of the rate limit to an error.
pub fn with_rate(error: ApiError, decision: &Decision) -> ApiError {
    let headers = rate_headers(decision).into_iter();
    headers.fold(error, |error, (name, value)| error.header(name, value))
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

    /// How much is in use, and how much there is.
    pub fn level(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.limit)
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
