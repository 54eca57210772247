//! Campanile: a self-hosted realtime gateway. Everything here serves one line, the path of an event:
//!
//! > a **source** hears of a change → the **publisher** appends it to the **log** → the **bus**
//! > announces it → on each **node** the **channel actor** puts it in order and finds the
//! > **subscriptions** → each **connection** pushes it, or replays what it missed.
//!
//! The log is the truth; the bus only says "look". Losing an announcement costs latency, never an
//! event. A module may use the modules of the groups above its own, and none below; within its group only
//! what the code map of docs/ARCHITECTURE.md lists before it.

pub mod domain;

pub mod auth;
pub mod protocol;
pub mod supervision;
pub mod telemetry;

pub mod net;

pub mod config;
pub mod demo;
pub mod jobs;
pub mod limits;
pub mod store;

pub mod bus;

pub mod hub;
pub mod publish;

pub mod clients;
pub mod session;
pub mod sources;

pub mod builds;
pub mod dashboard;
pub mod deliveries;
pub mod history;
pub mod repos;
pub mod resources;
pub mod sign_in;

pub mod recovery;

pub mod cluster;

pub mod tasks;
pub mod transport;

pub mod http;

pub mod app;

pub mod cli;

#[cfg(test)]
mod layers;
