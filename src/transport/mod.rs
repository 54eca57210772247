//! The transports that carry events to clients, one file each. A transport moves bytes and runs
//! timers; what is sent is decided elsewhere. `worker` is what all connections of
//! a worker thread share, `connection_actor` what the connection actors have in common; `effects`
//! performs the asynchronous effects of sessions, `single_flight` merges identical concurrent reads,
//! and `timer_queue` holds the timers of the sockets.

mod body;
mod connection_actor;
mod effects;
pub mod emulation;
pub mod event_stream;
pub mod http_stream;
pub mod metrics;
mod single_flight;
mod timer_queue;
pub mod websocket;
pub mod worker;

pub use metrics::Metrics;
