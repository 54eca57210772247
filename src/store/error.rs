//! What can go wrong with the store, as far as a caller acts on it.

use std::error::Error;
use std::fmt::Write as _;

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};
use tokio_postgres::error::SqlState;

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
        match error {
            DieselError::QueryBuilderError(error) => match error.downcast::<tokio_postgres::Error>() {
                Ok(error) => postgres(&error),
                Err(error) => Self::Failed(error),
            },
            DieselError::DatabaseError(kind, info) => sqlite(kind, info),
            error => Self::Failed(Box::new(error)),
        }
    }
}

/// By the SQLSTATE: the words are in the language of the server.
fn postgres(error: &tokio_postgres::Error) -> StoreError {
    // Without a code it is the driver that speaks: nothing more is to be had on this connection.
    let Some(state) = error.code() else { return StoreError::Unavailable(with_reasons(error)) };
    match *state {
        // Every insert of ours says what to do about a row that is there. But of a table with two
        // unique indexes ON CONFLICT watches one, and two transactions that insert the same new row
        // at once can meet on the other. The next try finds the row.
        SqlState::UNIQUE_VIOLATION => StoreError::Contended,
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => StoreError::Contended,
        // What was prepared is in another session.
        SqlState::INVALID_SQL_STATEMENT_NAME | SqlState::DUPLICATE_PSTATEMENT => {
            StoreError::Unavailable(format!(
                "{}. If a pooler such as PgBouncer is in between, name the server itself by DATABASE_URL_DIRECT",
                with_reasons(error)
            ))
        }
        _ if is_outage(state) => StoreError::Unavailable(with_reasons(error)),
        _ => StoreError::Failed(with_reasons(error).into()),
    }
}

/// Whether the same statement may work on a new connection, or when the server is well again.
fn is_outage(state: &SqlState) -> bool {
    // The connection, resources (a full disk), an operator (shutdown, a statement's time), the system.
    const CLASSES: [&str; 4] = ["08", "53", "57", "58"];
    const STATES: [SqlState; 5] = [
        // Somebody has taken rights away that were there at the start.
        SqlState::INSUFFICIENT_PRIVILEGE,
        // A standby, or a server or database that was made read-only.
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    ];
    CLASSES.contains(&&state.code()[..2]) || STATES.contains(state)
}

fn sqlite(kind: DatabaseErrorKind, info: Box<dyn DatabaseErrorInformation + Send + Sync>) -> StoreError {
    // Diesel keeps no result code, but SQLite's words for one are always the same.
    const OUTAGES: [&str; 6] = [
        "database is locked",                   // SQLITE_BUSY
        "attempt to write a readonly database", // SQLITE_READONLY
        "disk I/O error",                       // SQLITE_IOERR
        "database or disk is full",             // SQLITE_FULL
        "unable to open database file",         // SQLITE_CANTOPEN
        "file is not a database",               // SQLITE_NOTADB
    ];
    match kind {
        DatabaseErrorKind::UniqueViolation => StoreError::Contended,
        _ if OUTAGES.contains(&info.message()) => StoreError::Unavailable(info.message().to_owned()),
        _ => StoreError::Failed(Box::new(DieselError::DatabaseError(kind, info))),
    }
}

/// The driver's words are short; the reason is behind them.
pub(super) fn with_reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut reason = error.source();
    while let Some(error) = reason {
        let _ = write!(text, ": {error}");
        reason = error.source();
    }
    text
}
