//! Periodic work: one file each. A task does its round, says what it did in metrics, and sleeps.

pub mod janitor;
pub mod jwks;
pub mod leases;
pub mod metrics;
pub mod monitor;
pub mod revocations;

pub use metrics::Metrics;
