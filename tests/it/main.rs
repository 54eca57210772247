//! Behaviour of the whole, a file each. What concerns the store runs on SQLite and again on
//! Postgres, from one test body.

#![allow(clippy::large_futures, reason = "a test runs once, and its stack is its own")]

mod support;

mod access;
mod backup;
mod browser;
mod cent;
mod channels;
mod cluster;
mod crash;
mod deploy;
mod faults;
mod files;
mod follow;
mod http;
mod jwks;
mod migrations;
mod new_channels;
mod pooler;
mod presence_rates;
mod protocol;
mod publish;
mod reload;
mod reload_under_traffic;
mod replies;
mod retention;
mod schema;
mod sdk;
mod shared_limits;
/// The store on SQLite and PostgreSQL, without a node around it.
mod store {
    mod builds;
    mod deliveries;
    mod history;
    mod leases;
    mod listen_notify;
    mod log;
    mod moved_heads;
    mod rates;
    mod repos;
    mod runs;
    mod sessions;
    mod writers;
}
mod sync;
mod tls;
mod tokens;
mod transports;
mod unwritable;
mod websocket;
