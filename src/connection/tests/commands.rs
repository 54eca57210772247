//! Commands that are answered once.
