//! The session of a client and its subscriptions, independent of the transport: a state machine that
//! handles commands and requests effects. It performs no I/O.

mod commands;
mod connect;
mod connection;
mod context;
pub mod effect;
mod keep_alive;
pub mod metrics;
mod mode;
mod pending;
mod refresh;
mod server_commands;
mod state;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;
mod timers;

pub use connection::Connection;
pub use context::{ConnectionOptions, Personal, SessionContext};
pub use metrics::Metrics;
pub use state::SessionMode;
pub use timers::Now;
