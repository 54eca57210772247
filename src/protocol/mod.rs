//! The client protocol: what clients may send, and how events and errors are encoded for them. Nothing
//! here decides, reads or stores.

pub mod code;
pub mod command;
pub mod delta;
pub mod encoding;
pub mod filter;
pub mod form;
pub mod frames;
pub(crate) mod json;
pub mod polled;
pub mod presence;
pub mod push;
pub mod reply;
pub mod sse;
pub mod websocket;
