//! The HTTP surface. Handlers take what they need, call one operation and shape the answer; who
//! may do what is decided by the extractors and the access rule.

pub mod access;
pub mod auth;
mod body;
pub mod builds;
pub mod client_streams;
pub mod dashboard;
pub mod deliveries;
pub mod error;
pub mod event_stream;
pub mod health;
pub mod metrics;
pub mod openapi;
pub mod origin;
pub mod page;
pub mod poll;
mod rate_headers;
pub mod repos;
pub mod routes;
pub mod server_api;
pub mod summary;
pub mod tcp;
pub mod webhooks;
pub mod websocket;

use error::ApiError;
pub use metrics::Metrics;

/// A `limit` in a query: a number from 1 to `max`, `default` if absent.
fn parse_limit(limit: Option<&str>, default: u32, max: u32) -> Result<u32, ApiError> {
    let Some(limit) = limit else { return Ok(default) };
    limit.parse().ok().filter(|limit| (1..=max).contains(limit)).ok_or_else(|| {
        ApiError::bad_request("bad_limit", format!("`limit` must be a number from 1 to {max}"))
    })
}
