//! One client's session and subscriptions, whatever carries them: what its commands mean, and how
//! stored events and live ones become one stream without a gap or a repeat.

pub mod effect;
pub mod replay;
pub mod users;
