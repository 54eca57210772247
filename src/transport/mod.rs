//! What carries a stream of events to a client: one file each. A transport moves bytes and keeps
//! time; what the bytes are was decided before.
//! `carrier` is what the connection actors have in common, `work` what they wait for, `gathered` how
//! those who wait for the same are answered together.

mod body;
mod carrier;
pub mod emulation;
mod gathered;
pub mod sse;
pub mod stream;
pub mod websocket;
mod work;
