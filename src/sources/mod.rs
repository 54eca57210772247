//! Sources: they turn external events into state changes and event drafts (`domain::workflow`), and
//! those into a unit of work for the publisher. Interpreting a delivery is a function of its input: no
//! clock, no store, no network.

pub mod github;
