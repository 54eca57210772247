//! What carries a stream of events to a client: one file each. A transport moves bytes and keeps
//! time; what the bytes are was decided before.

mod body;
pub mod emulation;
pub mod sse;
pub mod stream;
pub mod websocket;
