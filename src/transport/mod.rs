//! What carries a stream of events to a client: one file each. A transport moves bytes and keeps
//! time; what the bytes are was decided before.

pub mod sse;
pub mod websocket;
