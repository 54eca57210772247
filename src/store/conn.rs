//! One connection for two backends. A Diesel query is a plain value: it is written once, and the
//! two traits below make the compiler check it against Postgres and SQLite. What differs by
//! nature is a named function in `dialect`.
//!
//! On Postgres the methods wait for the server. On SQLite they run at once: such a connection
//! lives on a thread of its own (`sqlite`), and its futures are always ready.

use std::sync::Arc;

use diesel::prelude::*;
use diesel::query_dsl::methods as sync_dsl;
use diesel::sql_query;
use diesel_async::methods as async_dsl;
use futures_util::future::BoxFuture;

use super::dialect::run_fixed;
use super::error::Result;
use super::known_heads::KnownHeads;
use super::metrics::{Meter, Metrics};
use super::postgres::{PgConnection, PooledConn};

/// A connection for one piece of work.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each thread or pooled connection, and never in a collection"
)]
pub enum Conn {
    /// From the pool of Postgres connections.
    Pg(PooledConn),
    /// On one of SQLite's threads.
    Sqlite {
        conn: SqliteConnection,
        /// The heads that this connection has moved.
        heads: KnownHeads,
        /// A transaction is open.
        in_transaction: bool,
        metrics: Arc<Metrics>,
    },
}

/// A query whose rows both backends can load into `T`.
#[diagnostic::on_unimplemented(
    message = "this query cannot run on both backends, or does not load into `{T}`"
)]
pub trait Rows<'q, T>:
    async_dsl::LoadQuery<'q, PgConnection, T> + sync_dsl::LoadQuery<'q, SqliteConnection, T> + Send + 'q
{
}

impl<'q, T, Q> Rows<'q, T> for Q where
    Q: async_dsl::LoadQuery<'q, PgConnection, T> + sync_dsl::LoadQuery<'q, SqliteConnection, T> + Send + 'q
{
}

/// A statement that both backends can run.
#[diagnostic::on_unimplemented(message = "this statement cannot run on both backends")]
pub trait Statement:
    async_dsl::ExecuteDsl<PgConnection> + sync_dsl::ExecuteDsl<SqliteConnection> + Send
{
}

impl<Q> Statement for Q where
    Q: async_dsl::ExecuteDsl<PgConnection> + sync_dsl::ExecuteDsl<SqliteConnection> + Send
{
}

// The futures are boxed so that a caller's future does not carry the query's type: the compiler
// cannot show that such a future is `Send` when the query borrows what it binds.
impl Conn {
    pub(super) fn sqlite(mut conn: SqliteConnection, metrics: Arc<Metrics>) -> Self {
        conn.set_instrumentation(Meter(metrics.clone()));
        Self::Sqlite { conn, heads: KnownHeads::default(), in_transaction: false, metrics }
    }

    /// Heads may no longer be where this connection moved them.
    pub(super) fn forget_heads(&mut self) {
        if let Self::Sqlite { heads, .. } = self {
            heads.clear();
        }
    }

    /// Whether statements go to a server.
    pub(super) fn is_postgres(&self) -> bool {
        matches!(self, Self::Pg(_))
    }

    pub fn load<'s, 'q: 's, T: Send + 'q>(
        &'s mut self,
        query: impl Rows<'q, T>,
    ) -> BoxFuture<'s, Result<Vec<T>>> {
        match self {
            Self::Pg(conn) => {
                Box::pin(async move { Ok(diesel_async::RunQueryDsl::load(query, &mut **conn).await?) })
            }
            Self::Sqlite { conn, .. } => at_once(diesel::RunQueryDsl::load(query, conn)),
        }
    }

    /// The first row, if there is one. It adds no LIMIT.
    pub fn maybe<'s, 'q: 's, T: Send + 'q>(
        &'s mut self,
        query: impl Rows<'q, T>,
    ) -> BoxFuture<'s, Result<Option<T>>> {
        match self {
            Self::Pg(conn) => Box::pin(async move {
                Ok(diesel_async::RunQueryDsl::get_result(query, &mut **conn).await.optional()?)
            }),
            Self::Sqlite { conn, .. } => at_once(diesel::RunQueryDsl::get_result(query, conn).optional()),
        }
    }

    /// The first row; none is an error.
    pub fn one<'s, 'q: 's, T: Send + 'q>(&'s mut self, query: impl Rows<'q, T>) -> BoxFuture<'s, Result<T>> {
        let row = self.maybe(query);
        Box::pin(async move { row.await?.ok_or_else(|| diesel::result::Error::NotFound.into()) })
    }

    /// Runs a statement and says how many rows it touched.
    pub fn execute<'s, 'q: 's>(&'s mut self, statement: impl Statement + 'q) -> BoxFuture<'s, Result<usize>> {
        match self {
            Self::Pg(conn) => {
                Box::pin(async move { Ok(diesel_async::RunQueryDsl::execute(statement, &mut **conn).await?) })
            }
            Self::Sqlite { conn, .. } => at_once(sync_dsl::ExecuteDsl::execute(statement, conn)),
        }
    }

    /// Opens a transaction. On SQLite it takes the write lock at once, so that no statement in it
    /// can find the database busy; what opens and ends one there stays prepared, unlike with Diesel.
    pub(super) async fn begin(&mut self) -> Result<()> {
        match self {
            Self::Pg(conn) => conn.begin().await?,
            Self::Sqlite { conn, in_transaction, .. } => {
                struct Begin;
                run_fixed::<Begin>(conn, sql_query("BEGIN IMMEDIATE"))?;
                *in_transaction = true;
            }
        }
        Ok(())
    }

    pub(super) async fn commit(&mut self) -> Result<()> {
        match self {
            Self::Pg(conn) => conn.commit().await?,
            Self::Sqlite { conn, in_transaction, metrics, .. } => {
                struct Commit;
                run_fixed::<Commit>(conn, sql_query("COMMIT"))?;
                *in_transaction = false;
                metrics.commits.inc();
            }
        }
        Ok(())
    }

    /// Whether no transaction is open. A connection of SQLite that was left in one cannot go on.
    pub(super) fn is_idle(&self) -> bool {
        !matches!(self, Self::Sqlite { in_transaction: true, .. })
    }

    /// Rolls back. Only logs when that fails: the connection is then thrown away.
    pub(super) async fn rollback(&mut self) -> bool {
        let done = match self {
            Self::Pg(conn) => conn.rollback().await,
            Self::Sqlite { conn, in_transaction, .. } => {
                struct Rollback;
                let done = run_fixed::<Rollback>(conn, sql_query("ROLLBACK"));
                *in_transaction = done.is_err();
                done
            }
        };
        if let Err(error) = &done {
            tracing::debug!(%error, "rollback failed");
        }
        done.is_ok()
    }
}

fn at_once<'s, T: Send + 's>(done: QueryResult<T>) -> BoxFuture<'s, Result<T>> {
    Box::pin(std::future::ready(done.map_err(Into::into)))
}
