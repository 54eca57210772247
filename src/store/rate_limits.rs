//! How much of each rate is used up, kept over a restart. Rows are behind by what happened since
//! they were written; nobody decides by them while the process lives.

use diesel::prelude::*;
use diesel::query_dsl::methods as on_conflict;
use diesel::upsert::excluded;

use super::conn::Conn;
use super::dialect::write_rows;
use super::error::Result;
use super::schema::rate_limits as table;
use super::types::Ts;

/// Notes when each key of the rate `name` will have earned everything again. A later instant that
/// another node has written stays. `keys` names each once.
pub async fn record(conn: &mut Conn, name: &str, keys: Vec<(String, Ts)>) -> Result<()> {
    let mut keys = keys;
    // Two nodes that write the same keys lock them in one order.
    keys.sort();
    let row =
        |(key, free_at)| (table::name.eq(name.to_owned()), table::key.eq(key), table::free_at.eq(free_at));
    let rows: Vec<_> = keys.into_iter().map(row).collect();
    write_rows!(conn, rows, |values| {
        let upsert = diesel::insert_into(table::table)
            .values(values)
            .on_conflict((table::name, table::key))
            .do_update()
            .set(table::free_at.eq(excluded(table::free_at)));
        on_conflict::FilterDsl::filter(upsert, excluded(table::free_at).gt(table::free_at))
    });
    Ok(())
}

/// The keys of `name` that have something to earn at `now`, at most `limit`: those that need
/// longest come first.
pub async fn load(conn: &mut Conn, name: &str, now: Ts, limit: u32) -> Result<Vec<(String, Ts)>> {
    let query = table::table
        .filter(table::name.eq(name))
        .filter(table::free_at.gt(now))
        .order(table::free_at.desc())
        .limit(i64::from(limit))
        .select((table::key, table::free_at));
    conn.load(query).await
}

/// Forgets up to `batch` keys that have nothing to earn, and says how many.
pub async fn forget(conn: &mut Conn, now: Ts, batch: u32) -> Result<usize> {
    let query = table::table
        .filter(table::free_at.le(now))
        .order(table::free_at.asc())
        .limit(i64::from(batch))
        .select((table::name, table::key));
    let free: Vec<(String, String)> = conn.load(query).await?;
    for (name, key) in &free {
        let row = table::table.find((name, key)).filter(table::free_at.le(now));
        conn.execute(diesel::delete(row)).await?;
    }
    Ok(free.len())
}
