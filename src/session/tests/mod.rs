//! Frames, outcomes and time in, effects out. `Client` is one connection with a faked clock; what
//! it is expected to say is compared as JSON.

mod any;
mod commands;
mod connecting;
mod interleavings;
mod items;
mod order;
mod refreshing;
mod server_commands;
mod subscribing;
mod support;
mod time;
mod unidirectional;
