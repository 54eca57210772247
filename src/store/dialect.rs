//! What Postgres and SQLite disagree on by nature. One thing: Postgres pays for every round trip,
//! so many rows go in one statement; on SQLite a statement costs little, there is one writer, and
//! Diesel keeps no upsert of several rows prepared for it, so each row goes by itself, or a fixed
//! number of them.

use std::marker::PhantomData;

use diesel::RunQueryDsl;
use diesel::backend::Backend;
use diesel::connection::{DefaultLoadingMode, LoadConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::Untyped;
use diesel::sqlite::Sqlite;

/// Runs a statement that writes `$rows` (a `Vec`) and answers all that it returns, as a `Vec<$T>`;
/// without a `$T` it returns nothing. `$statement` is written once, over `$values`: some rows on
/// Postgres, one on SQLite. Rows are written, and so locked, in their order.
macro_rules! write_rows {
    ($conn:expr, $rows:expr, |$values:ident| $statement:expr) => {{
        use $crate::store::dialect::{FEW_ROWS, Prepared, ROWS};
        let mut rows = $rows;
        match &mut *$conn {
            $crate::store::conn::Conn::Pg(conn) => {
                while !rows.is_empty() {
                    let rest = rows.split_off(rows.len().min(ROWS));
                    let few = rows.len() <= FEW_ROWS;
                    let $values = rows;
                    let statement = Prepared { query: $statement, keep: few };
                    diesel_async::RunQueryDsl::execute(statement, &mut **conn).await?;
                    rows = rest;
                }
            }
            $crate::store::conn::Conn::Sqlite { conn, .. } => {
                struct OneRow;
                for $values in rows {
                    $crate::store::dialect::run_fixed::<OneRow>(conn, $statement)?;
                }
            }
        }
    }};
    ($conn:expr, $rows:expr, $T:ty, |$values:ident| $statement:expr) => {{
        use $crate::store::dialect::{FEW_ROWS, Fixed, Prepared, ROWS};
        let mut rows = $rows;
        let mut returned: Vec<$T> = Vec::with_capacity(rows.len());
        match &mut *$conn {
            $crate::store::conn::Conn::Pg(conn) => {
                while !rows.is_empty() {
                    let rest = rows.split_off(rows.len().min(ROWS));
                    let few = rows.len() <= FEW_ROWS;
                    let $values = rows;
                    let statement = Prepared { query: $statement, keep: few };
                    returned.extend(diesel_async::RunQueryDsl::load::<$T>(statement, &mut **conn).await?);
                    rows = rest;
                }
            }
            conn => {
                struct OneRow;
                for $values in rows {
                    returned.extend(conn.load::<$T>(Fixed::new::<OneRow>($statement)).await?);
                }
            }
        }
        returned
    }};
}

/// The same for a plain insert, of which Diesel can make one statement for an array of rows on
/// SQLite too: there [`MANY_ROWS`] go together, and the rest one by one.
macro_rules! insert_rows {
    ($conn:expr, $rows:expr, |$values:ident| $statement:expr) => {{
        use $crate::store::dialect::MANY_ROWS;
        let mut rows = $rows.into_iter();
        if !$conn.is_postgres() {
            while rows.len() >= MANY_ROWS {
                let next = |_| rows.next().expect("there are as many");
                let $values: [_; MANY_ROWS] = std::array::from_fn(next);
                $conn.execute($statement).await?;
            }
        }
        let rows: Vec<_> = rows.collect();
        $crate::store::dialect::write_rows!($conn, rows, |$values| $statement);
    }};
}

pub(super) use {insert_rows, write_rows};

/// The columns of a row, whichever the backend is.
pub(super) fn columns<R: Selectable<Sqlite>>() -> R::SelectExpression {
    R::construct_selection()
}

/// Rows in one statement. Postgres binds at most 65,535 values, and no row here has more than 16.
pub(super) const ROWS: usize = 1000;
/// Rows in one statement on SQLite, which is kept prepared: it pays to save the statements between
/// them, and beyond that hardly any more.
pub(super) const MANY_ROWS: usize = 16;
/// Up to how many rows a statement is kept prepared: each number of rows is a text of its own.
pub(super) const FEW_ROWS: usize = 8;

/// A statement that a connection keeps prepared, although Diesel takes it for one of unboundedly
/// many and would have it parsed each time: an upsert, or one over a small number of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prepared<Q> {
    /// The statement. Its text depends on nothing but its type and the number of its rows.
    pub query: Q,
    /// Whether that number is small.
    pub keep: bool,
}

impl<DB: Backend, Q: QueryFragment<DB>> QueryFragment<DB> for Prepared<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.query.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, backend: &DB) -> QueryResult<bool> {
        if self.keep { Ok(true) } else { self.query.is_safe_to_cache_prepared(backend) }
    }
}

// Without an id of its own the statement is found again by its text.
impl<Q> QueryId for Prepared<Q> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q: Query> Query for Prepared<Q> {
    type SqlType = Q::SqlType;
}

impl<Q, Conn> RunQueryDsl<Conn> for Prepared<Q> {}

/// A statement of which there is one text alone, so that a connection finds it prepared without
/// writing that text anew: `Name` is a type that nothing else is called by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fixed<Q, Name>(Q, PhantomData<fn() -> Name>);

impl<Q> Fixed<Q, ()> {
    /// `query` is always the same but for what it binds.
    pub(super) fn new<Name>(query: Q) -> Fixed<Q, Name> {
        Fixed(query, PhantomData)
    }
}

impl<DB: Backend, Q: QueryFragment<DB>, Name> QueryFragment<DB> for Fixed<Q, Name> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, _: &DB) -> QueryResult<bool> {
        Ok(true)
    }
}

impl<Q, Name: 'static> QueryId for Fixed<Q, Name> {
    type QueryId = Name;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<Q: Query, Name> Query for Fixed<Q, Name> {
    type SqlType = Q::SqlType;
}

impl<Q, Name, Conn> RunQueryDsl<Conn> for Fixed<Q, Name> {}

/// Runs a [`Fixed`] statement that returns no rows, on SQLite. Diesel's `execute` passes a reference
/// on, which does not say that the statement may stay prepared.
pub(super) fn run_fixed<Name: 'static>(
    conn: &mut SqliteConnection,
    query: impl QueryFragment<Sqlite>,
) -> QueryResult<()> {
    let statement = NoRows(Fixed::new::<Name>(query));
    LoadConnection::<DefaultLoadingMode>::load(conn, statement)?.try_for_each(|row| row.map(drop))
}

struct NoRows<Q>(Q);

impl<Q: QueryFragment<Sqlite>> QueryFragment<Sqlite> for NoRows<Q> {
    fn walk_ast<'b>(&'b self, pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.0.walk_ast(pass)
    }

    fn is_safe_to_cache_prepared(&self, backend: &Sqlite) -> QueryResult<bool> {
        self.0.is_safe_to_cache_prepared(backend)
    }
}

impl<Q: QueryId> QueryId for NoRows<Q> {
    type QueryId = Q::QueryId;
    const HAS_STATIC_QUERY_ID: bool = Q::HAS_STATIC_QUERY_ID;
}

impl<Q> Query for NoRows<Q> {
    type SqlType = Untyped;
}
