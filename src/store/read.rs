//! What reads get: a connection, and what has to be the same for all that one read answers.

use super::conn::Conn;
use super::types::Ts;
use crate::domain::position::Epoch;

/// A connection to read from. The log is read by its methods (see [`super::log`]).
#[derive(derive_more::Deref, derive_more::DerefMut)]
pub struct ReadTx<'c> {
    #[deref(forward)]
    #[deref_mut(forward)]
    pub conn: &'c mut Conn,
    /// The base of all epochs.
    pub generation: Epoch,
    /// The time by the store's clock.
    pub now: Ts,
}
