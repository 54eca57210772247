//! The transaction in which units of work change rows.

use std::any::Any;
use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use super::conn::Conn;
use super::error::Result;
use super::locks::{self, LockKey, Table};
use super::types::Ts;

/// A transaction with what its units have buffered.
pub struct Transaction<'c> {
    /// The connection, for changes of rows that the unit has locked.
    pub conn: &'c mut Conn,
    /// Its time, by the store's clock.
    pub now: Ts,
    buffers: BTreeMap<Table, Box<dyn WriteBuffer>>,
}

/// Changes of several units that are written at the end of the transaction, however many units it
/// has, with one statement a table. Rows that a buffer writes are changed by nothing else but this
/// buffer, and are written in a fixed order, so that they need no [`LockKey`].
pub trait WriteBuffer: Any + Send {
    /// Buffers are written in the order of their tables. Each table has one.
    fn table() -> Table
    where
        Self: Sized;

    /// Writes all that was buffered, by table and key.
    fn write<'a>(self: Box<Self>, conn: &'a mut Conn, now: Ts) -> BoxFuture<'a, Result<()>>;
}

impl<'c> Transaction<'c> {
    /// A transaction without buffered changes.
    pub fn new(conn: &'c mut Conn, now: Ts) -> Self {
        Self { conn, now, buffers: BTreeMap::new() }
    }

    /// Takes the locks of all units, before any of them changes a row.
    pub async fn lock(&mut self, all: Vec<LockKey>) -> Result<()> {
        locks::take(self.conn, all).await
    }

    /// The buffer of this type, which all units of the transaction share.
    pub fn buffer<B: WriteBuffer + Default>(&mut self) -> &mut B {
        let buffer = self.buffers.entry(B::table()).or_insert_with(|| Box::new(B::default()));
        let buffer: &mut dyn Any = &mut **buffer;
        buffer.downcast_mut().expect("a table has one buffer")
    }

    /// Writes everything that was buffered.
    pub async fn finish(self) -> Result<()> {
        for buffer in self.buffers.into_values() {
            buffer.write(self.conn, self.now).await?;
        }
        Ok(())
    }
}
