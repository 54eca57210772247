//! Budgets: what may be in use at once, such as the bytes of bodies that are being received.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

    /// A reservation of `amount`, which others are about to give back.
    pub fn reserve_beyond(&self, amount: u64) -> Reserved {
        self.used.fetch_add(amount, Ordering::Relaxed);
        Reserved { budget: self.clone(), amount }
    }

    /// What is in use, where somebody else counts it.
    pub fn set(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    /// An empty reservation, to grow as things come in.
    pub fn reserve(&self) -> Reserved {
        Reserved { budget: self.clone(), amount: 0 }
    }
}

impl Reserved {
    pub fn amount(&self) -> u64 {
        self.amount
    }

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
