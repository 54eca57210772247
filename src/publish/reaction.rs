//! What follows from an event: rows that are committed with it (a transactional outbox), such as a job
//! to run or a call to make. Whoever works on the rows later cannot miss the event.

use futures_util::future::BoxFuture;

use crate::domain::event::NewEvent;
use crate::store::{self, Transaction};

/// Decides which rows follow from an event. It depends on nothing but the event and what it was made
/// with: it runs before the transaction, and once for each event, also if that turns out to be a
/// repetition; then its rows are dropped with the event.
pub trait Reaction: Send + Sync {
    fn react(&self, event: &NewEvent) -> Vec<Box<dyn NewRow>>;
}

/// A row that is inserted after the events of its unit, if the unit takes place. When it cannot be,
/// its unit fails. It may be inserted more than once, as [`super::Apply`].
pub trait NewRow: Send + Sync {
    /// Inserts it, or adds it to a [write buffer](store::WriteBuffer).
    fn insert<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, store::Result<()>>;
}
