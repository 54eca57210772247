//! Behaviour of the whole, a file each. What concerns the store runs on SQLite and again on
//! Postgres, from one test body.

#![allow(clippy::large_futures, reason = "a test runs once, and its stack is its own")]

mod support;

mod builds;
mod crash;
mod deliveries;
mod faults;
mod follow;
mod history;
mod http;
mod log;
mod migrations;
mod publish;
mod rates;
mod repos;
mod runs;
mod schema;
mod sdk;
mod sync;
mod websocket;
mod writers;
