//! What can go wrong with the store, as far as a caller acts on it.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// A failed store call.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, or did not answer within the deadline. A write may have been
    /// committed all the same: a retry with the same key is safe.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Two transactions were in each other's way (deadlock, serialization): nothing was changed,
    /// and the same work may succeed now.
    #[error("the transaction conflicted with another one")]
    Contended,
    /// More work is waiting than the queue holds. Nothing was changed.
    #[error("the store's queue is full")]
    Busy,
    /// Anything else: a broken constraint, a row that cannot be read. Nothing was changed.
    #[error(transparent)]
    Failed(#[from] Box<dyn std::error::Error + Send + Sync>),
}

/// The result of a store call.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

impl From<DieselError> for StoreError {
    fn from(error: DieselError) -> Self {
        match &error {
            DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _) => Self::Contended,
            // Every insert of ours says what to do about a row that is there. But of a table with two
            // unique indexes ON CONFLICT watches one, and two transactions that insert the same new row
            // at once can meet on the other. The next try finds the row.
            DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => Self::Contended,
            // Diesel keeps no SQLSTATE, so a deadlock (40P01) shows by its message only. Where the
            // server speaks another language it is an ordinary failure, and the publisher's retry
            // one by one resolves it as well.
            DieselError::DatabaseError(_, info) if info.message().contains("deadlock detected") => {
                Self::Contended
            }
            DieselError::DatabaseError(DatabaseErrorKind::ClosedConnection, info) => {
                Self::Unavailable(info.message().to_owned())
            }
            DieselError::DatabaseError(_, info) if is_outage(info.message()) => {
                Self::Unavailable(info.message().to_owned())
            }
            DieselError::BrokenTransactionManager => Self::Unavailable("the connection broke".into()),
            _ => Self::Failed(Box::new(error)),
        }
    }
}

/// Errors after which the same statement may work on a new connection, or when the disk has room.
fn is_outage(message: &str) -> bool {
    const SIGNS: [&str; 10] = [
        "connection closed",
        "error communicating with the server",
        "terminating connection",
        "shutting down",
        "starting up",
        "in recovery mode",
        "statement timeout",
        "database or disk is full",
        "disk I/O error",
        "database is locked",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}
