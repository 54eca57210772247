//! The metrics of the store. Statements and commits are counted where Diesel itself reports them, so
//! that nothing that any part of the store does is left out.

use std::sync::Arc;

use diesel::connection::{Instrumentation, InstrumentationEvent};

use crate::telemetry::metrics::{Counter, Gauge, metrics};

metrics! {
    Metrics("store_") {
        /// Whether the store could keep something when it was last tried: 1 or 0.
        up: Gauge,
        /// Statements sent to the database, those that begin and end transactions included.
        statements: Counter,
        /// Transactions committed.
        commits: Counter,
    }
}

/// Counts what one connection sends.
pub(super) struct Meter(pub(super) Arc<Metrics>);

impl Instrumentation for Meter {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => drop(self.0.statements.inc()),
            InstrumentationEvent::CommitTransaction { .. } => drop(self.0.commits.inc()),
            _ => {}
        }
    }
}
