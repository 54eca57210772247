//! What Postgres and SQLite disagree on by nature. One thing: Postgres pays for every round trip,
//! so many rows go in one statement; on SQLite a statement costs none, there is one writer, and
//! Diesel has no upsert of several rows for it, so each row goes by itself.

/// Runs a statement that writes `$rows` (a `Vec`) and answers all that it returns, as a `Vec<$T>`.
/// `$statement` is written once, over `$values`: some rows on Postgres, one on SQLite. Rows are
/// written, and so locked, in their order.
macro_rules! write_rows {
    ($conn:expr, $rows:expr, $T:ty, |$values:ident| $statement:expr) => {{
        let mut rows = $rows;
        let mut returned: Vec<$T> = Vec::with_capacity(rows.len());
        match $conn {
            $crate::store::conn::Conn::Pg(conn) => {
                // A statement binds at most 65,535 values; no row here has more than 16.
                while !rows.is_empty() {
                    let rest = rows.split_off(rows.len().min(1000));
                    let $values = rows;
                    returned.extend(diesel_async::RunQueryDsl::load::<$T>($statement, &mut **conn).await?);
                    rows = rest;
                }
            }
            conn => {
                for $values in rows {
                    returned.extend(conn.load::<$T>($statement).await?);
                }
            }
        }
        returned
    }};
}

pub(super) use write_rows;
