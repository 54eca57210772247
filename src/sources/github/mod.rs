//! GitHub as a source: is a delivery genuine ([`signature`]), is it JSON ([`body_text`]), which
//! repositories count ([`RepoMap`]), how is it interpreted ([`interpret`](interpret())), and which unit
//! of work is committed for it ([`unit_of`]). In this order: nothing is interpreted before its
//! signature was found right.

mod body;
mod half_characters;
mod installations;
mod interpret;
mod interpretation;
mod moves;
mod payload;
mod repo_map;
mod rows;
mod runs;
mod sanitize;
pub mod signature;
mod unit;

#[cfg(test)]
mod tests;

pub use body::{BadBody, body_text};
pub use interpret::{About, about, interpret, interpret_with, is_about_an_account};
pub use interpretation::{Interpretation, Outcome};
pub use payload::PayloadError;
pub use repo_map::{BadRepoMap, RepoMap, RepoMapEntry};
pub use rows::WorkflowRows;
pub use unit::{Received, reprocessing_unit, unit_of};
