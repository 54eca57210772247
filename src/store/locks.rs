//! Locks on rows that units of work change. A publisher takes those of all units of a transaction at
//! once and in one order, before any of them changes a row, so that two publishers never wait for
//! each other, whatever tables their units touch and in whatever order.

use diesel::sql_types::{Array, BigInt};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::conn::Conn;
use super::dialect::Prepared;
use super::error::Result;

/// The tables whose rows are locked by [`LockKey`], or written by a [`super::WriteBuffer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Builds,
    Deliveries,
    Repos,
}

/// One row. A row that does not exist yet can be locked as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockKey {
    pub table: Table,
    /// The row's primary key, or a digest of it.
    pub key: [u8; 16],
}

impl LockKey {
    /// The row of `table` with this id.
    pub fn of(table: Table, id: Uuid) -> Self {
        Self { table, key: id.into_bytes() }
    }

    /// Its number among the advisory locks of Postgres. Two rows may share one: then they are
    /// locked together.
    fn number(&self) -> i64 {
        let digest = Sha256::new().chain_update([self.table as u8]).chain_update(self.key).finalize();
        i64::from_be_bytes(std::array::from_fn(|i| digest[i]))
    }
}

/// Takes `locks` until the end of the transaction. SQLite has one writer, and a single row needs no
/// lock before it is changed: whoever waits for it has nothing yet that others wait for.
pub(super) async fn take(conn: &mut Conn, locks: Vec<LockKey>) -> Result<()> {
    let Conn::Pg(conn) = conn else { return Ok(()) };
    let mut numbers: Vec<i64> = locks.iter().map(LockKey::number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.len() > 1 {
        // Rows of a function come in its order, and so the locks.
        let query = diesel::sql_query("SELECT pg_advisory_xact_lock(n) FROM unnest($1) AS n")
            .bind::<Array<BigInt>, _>(numbers);
        diesel_async::RunQueryDsl::execute(Prepared { query, keep: true }, &mut **conn).await?;
    }
    Ok(())
}
