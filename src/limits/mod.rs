//! Limits: rates by key, budgets of this node, and the connections of each user. Every node counts for
//! itself; with Redis the nodes count together ([`shared`]), except while Redis is down or slow.

pub mod address_budget;
pub mod budget;
pub mod connections;
pub mod gcra;
mod metrics;
pub mod persistence;
pub mod rate_limit;
pub mod replies;
pub mod room;
pub mod shared;
pub mod user_connections;

pub use metrics::Metrics;
