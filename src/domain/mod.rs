//! Values and decisions: what a channel, a position, an event and a right are.
//! No I/O, no async, no framework and no clock, so every rule here is tested by calling it.

pub mod access;
pub mod channel;
pub mod cursor;
pub mod delivery;
pub mod directive;
pub mod event;
pub mod facts;
pub mod frozen;
pub mod gcra;
pub mod options;
pub mod pattern;
pub mod position;
pub mod principal;
pub mod shared_text;
pub mod units;

#[cfg(test)]
mod tests;
