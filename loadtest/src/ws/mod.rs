//! The client's side of WebSocket connections: frames and messages, many connections on one epoll loop,
//! their publishers, and the check of what they receive. It must cost less than the server it measures,
//! so it parses no JSON on the way.

pub mod delivery_log;
pub mod frame;
pub mod message;
pub mod publisher;
pub mod sequence_check;
pub mod swarm;
