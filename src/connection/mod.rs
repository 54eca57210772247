//! One client's subscriptions, whatever carries them: how stored events and live ones become one
//! stream without a gap or a repeat.

pub mod replay;
