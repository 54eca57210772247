//! The client's side of many WebSocket connections, on one thread: an epoll loop that reads, counts
//! and checks. It must cost less than the server it measures, so it parses no JSON on the way.

pub mod books;
pub mod dashboards;
pub mod dialect;
pub mod door;
pub mod frame;
pub mod groups;
pub mod ledger;
pub mod line;
pub mod swarm;
pub mod traffic;
pub mod visitors;
pub mod wire;
