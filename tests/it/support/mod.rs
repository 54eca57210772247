//! What tests share: databases, stores, nodes and processes of their own, and words to tell a
//! story with.

pub mod app;
pub mod certificates;
pub mod client;
pub mod database;
pub mod issuer;
pub mod lines;
pub mod process;
pub mod proxy;
pub mod script;
pub mod server;
pub mod sse;
pub mod store;
pub mod websocket;
pub mod wire;
