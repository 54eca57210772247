//! The log: append, read, trim. Offsets are assigned here and nowhere else, under the lock of the
//! channel's row, which is held to the commit: they are contiguous, visible in order, and a
//! rollback gives them back. Only `publish` appends.
//!
//! Reads never write: a channel without a row answers the store's base epoch at offset 0, and
//! that is the epoch its first append creates the row with.

mod append;
mod change;
mod keys;
mod read;

use std::sync::Arc;

use diesel::prelude::*;

use super::read::ReadTx;
use super::schema::events;
use super::types::Id;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Epoch;

pub use append::{Append, Appended, Version, append};
pub use change::{clear, leave_epoch, renew_epoch, trim};
pub use keys::{IdempotencyKey, forget_keys, known_keys};
pub use read::{
    Bounds, Page, PageRequest, event_id_at, first_stored, last_stored, oldest_after, read_after,
    recent_channels,
};

/// A transaction that may change the log: what does so takes nothing else.
#[derive(derive_more::Deref, derive_more::DerefMut)]
pub struct LogTx<'c>(pub(super) ReadTx<'c>);

#[derive(Queryable, Selectable)]
#[diesel(table_name = events)]
pub(super) struct Row {
    offset: i64,
    event_id: Id,
    kind: String,
    data: String,
    tags: Option<String>,
    info: Option<String>,
}

/// A channel's own part is appended to the store's generation, so a new generation changes the
/// epochs of all channels without touching a row.
fn epoch(generation: &Epoch, part: &str) -> Epoch {
    if part.is_empty() {
        return generation.clone();
    }
    Epoch::parse(&format!("{generation}-{part}")).unwrap_or_else(|| generation.clone())
}

fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl From<Row> for Event {
    fn from(row: Row) -> Self {
        Self {
            offset: to_u64(row.offset),
            id: row.event_id.0,
            kind: row.kind.into(),
            data: row.data.into(),
            tags: row.tags.map(Arc::from),
            info: row.info.map(Arc::from),
            delta: Delta::No,
        }
    }
}
