//! GitHub as a source: is a delivery genuine ([`signature`]), is it JSON ([`body_text`]), which
//! repositories count ([`RepoMap`]), what does it mean ([`interpret`](interpret())), and what is
//! to be committed for it ([`unit_of`]).
//! In this order: nothing is interpreted before its signature was found right.

mod body;
mod clean;
mod installations;
mod interpret;
mod payload;
mod repo_map;
mod runs;
pub mod signature;
mod unit;

#[cfg(test)]
mod tests;

pub use body::{BadBody, body_text};
pub use interpret::{Interpretation, Outcome, interpret};
pub use payload::Uninterpretable;
pub use repo_map::{BadRepoMap, RepoMap, RepoRule};
pub use unit::{Received, unit_again, unit_of};
