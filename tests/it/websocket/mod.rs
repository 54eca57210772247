//! Clients over WebSocket: raw bytes, slow readers, every code, and the order of everything.

mod door;
mod raw;
mod slow;
