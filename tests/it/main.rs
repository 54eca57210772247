//! Behaviour of the whole, a file each. What concerns the store runs on SQLite and again on
//! Postgres, from one test body.

#![allow(clippy::large_futures, reason = "a test runs once, and its stack is its own")]

mod support;

mod access;
mod crash;
mod deliveries;
mod faults;
mod follow;
mod history;
mod http;
mod jwks;
mod log;
mod migrations;
mod publish;
mod reload;
mod repos;
mod runs;
mod sdk;
mod sync;
mod tokens;
mod websocket;
mod writers;
