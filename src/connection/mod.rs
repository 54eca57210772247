//! One client's session and subscriptions, whatever carries them: what its commands mean, and how
//! stored events and live ones become one stream without a gap or a repeat.

pub mod clients;
mod clock;
mod commands;
mod connect;
mod directed;
pub mod effect;
mod manner;
mod refresh;
pub mod replay;
mod rules;
mod session;
mod state;
mod subscribe;
mod subscriptions;
#[cfg(test)]
mod tests;
pub mod users;

pub use clock::Moment;
pub use manner::Manner;
pub use rules::{ConnectionOptions, Personal, Rules};
pub use session::Connection;
