//! What reads get: a connection, and what has to be the same for all that one read answers.

use std::ops::{Deref, DerefMut};

use super::conn::Conn;
use super::types::Ts;
use crate::domain::position::Epoch;

/// A connection to read from. The log is read by its methods (see [`super::log`]).
pub struct ReadTx<'c> {
    pub conn: &'c mut Conn,
    /// The base of all epochs.
    pub generation: Epoch,
    /// The time by the store's clock.
    pub now: Ts,
}

impl Deref for ReadTx<'_> {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        self.conn
    }
}

impl DerefMut for ReadTx<'_> {
    fn deref_mut(&mut self) -> &mut Conn {
        self.conn
    }
}
