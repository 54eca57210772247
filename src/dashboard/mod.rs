//! What the first screen shows: numbers of all repositories, and the newest events of everything that a
//! caller may see.

mod activity;
mod summary;

pub use activity::{Activity, activity};
pub use summary::{Summaries, Summary};
