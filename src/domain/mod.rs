//! Values and decisions: what a channel, a position, an event and a right are.
//! No I/O, no async, no framework and no clock, so every rule here is tested by calling it.

pub mod access;
pub mod channel;
pub mod cursor;
pub mod delivery;
pub mod event;
pub mod options;
pub mod pattern;
pub mod position;
pub mod presence;
pub mod principal;
pub mod serde_arc_str;
pub mod server_command;
pub mod sorted_set;
pub mod units;
pub mod workflow;

#[cfg(test)]
mod tests;
