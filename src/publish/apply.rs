//! Changes of state that are committed with the events of their unit.

use futures_util::future::BoxFuture;

use crate::store::{self, LockKey, Transaction};

/// A change of state that is committed with its events. It may run more than once (each time in a
/// new transaction, the earlier one rolled back), so it has no effect but in `tx`.
pub trait Apply: Send + Sync {
    /// The rows that it changes directly; the publisher locks them for it. A change that only adds
    /// to a [write buffer](crate::store::WriteBuffer) names none. Units of a transaction run in the
    /// order of their locks, and with the same locks in the order in which they came.
    fn locks(&self) -> Vec<LockKey> {
        Vec::new()
    }

    /// Changes rows. To refuse, answer [`Verdict::Refuse`] before anything was changed.
    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<Verdict>>;
}

/// What a change of state says about its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on: append the events.
    Proceed,
    /// The state does not allow it: append nothing.
    Refuse,
}
