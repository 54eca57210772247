//! Counts what connections send to their database, where Diesel itself hears of it: nothing that any
//! part of the store does is left out.

use diesel::connection::{Instrumentation, InstrumentationEvent};

use crate::telemetry::Traffic;

/// Listens to one connection.
pub(super) struct Meter(pub(super) Traffic);

impl Instrumentation for Meter {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => drop(self.0.statements.inc()),
            InstrumentationEvent::CommitTransaction { .. } => drop(self.0.commits.inc()),
            _ => {}
        }
    }
}
