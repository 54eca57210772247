//! Behaviour of the whole, a file each. What concerns the store runs on SQLite and again on
//! Postgres, from one test body.

#![allow(clippy::large_futures, reason = "a test runs once, and its stack is its own")]

mod support;

mod access;
mod backup;
mod browser;
mod builds;
mod cent;
mod channels;
mod cluster;
mod counts;
mod crash;
mod deliveries;
mod deploy;
mod faults;
mod follow;
mod history;
mod http;
mod jwks;
mod leases;
mod log;
mod migrations;
mod notices;
mod protocol;
mod publish;
mod rates;
mod reload;
mod repos;
mod runs;
mod schema;
mod sdk;
mod sessions;
mod sync;
mod tls;
mod tokens;
mod transports;
mod websocket;
mod writers;
