//! What tests share: databases, stores, nodes and processes of their own, and clients to talk to them.

pub mod app;
pub mod certificates;
pub mod change;
pub mod client;
pub mod database;
pub mod issuer;
pub mod process;
pub mod script;
pub mod sse;
pub mod store;
pub mod stream_client;
pub mod websocket;
