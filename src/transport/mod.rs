//! The transports that carry events to clients, one file each. A transport moves bytes and runs
//! timers; what is sent is decided elsewhere. `connection_actor` is what the connection actors have in
//! common, `effects` performs the asynchronous effects of sessions, and `single_flight` merges
//! identical concurrent reads.

mod body;
mod connection_actor;
mod effects;
pub mod emulation;
pub mod event_stream;
pub mod http_stream;
pub mod metrics;
mod single_flight;
pub mod websocket;

pub use metrics::Metrics;
