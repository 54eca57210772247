//! What an event costs the database, as the gateway's metrics count it.

use testkit::metrics::Metrics;

use crate::report::table::{Figure, aside};

/// What an event that was appended between two scrapes cost the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerEvent {
    /// Of all connections, for reading as well.
    pub statements: f64,
    /// Of the publisher.
    pub commits: f64,
}

impl PerEvent {
    /// `None` if nothing was appended.
    pub fn between(before: &Metrics, after: &Metrics) -> Option<Self> {
        let grown = |name| after.sum(name) - before.sum(name);
        let events = grown("campanile_events_total");
        (events > 0.0).then(|| Self {
            statements: grown("campanile_store_statements_total") / events,
            commits: grown("campanile_commit_seconds_count") / events,
        })
    }

    pub fn figures(&self) -> [Figure; 2] {
        [aside("statements per event", self.statements), aside("commits per event", self.commits)]
    }
}
