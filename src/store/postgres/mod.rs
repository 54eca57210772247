//! Postgres: a connection that runs Diesel's queries, and the pool that it comes from.

mod connect;
pub(super) mod connection;
mod pool;
mod row;

pub(super) use connect::{connect, connect_as};
pub(super) use connection::{PgConnection, Statements};
pub use pool::PooledConn;
pub(super) use pool::{OnConnect, Pool};
