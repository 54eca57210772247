//! Sources: outside changes become facts (`domain::facts`), and facts become a unit of work for the
//! publisher. What a delivery means is a function of its input: no clock, no store, no network.

pub mod demo;
pub mod github;
