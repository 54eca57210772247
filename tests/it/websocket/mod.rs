//! Clients over WebSocket: raw bytes, slow readers, every code, and the order of everything.

mod codes;
mod endings;
mod order;
mod raw;
mod refusals;
mod slow;
mod upgrade;
mod watcher;
