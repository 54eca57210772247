//! Leases: which node does the work that one of them does for all. The database's clock alone says
//! when one has run out. SQLite has one node, which holds them all without writing anything down.

use std::time::Duration;

use diesel::sql_types::{BigInt, Text};
use uuid::Uuid;

use super::Store;
use super::conn::Conn;
use super::error::Result;
use super::types::{Id, SqlId};

/// Takes or renews a lease for `ttl` from now, and says whether `holder` has it.
pub async fn hold(store: &Store, name: &'static str, holder: Uuid, ttl: Duration) -> Result<bool> {
    // Whoever does not get it only reads: of many nodes that ask, one writes.
    let query = "
        INSERT INTO leases (name, holder, expires_at)
        SELECT $1, $2, clock_timestamp() + $3 * interval '1 microsecond'
        WHERE NOT EXISTS (
            SELECT FROM leases WHERE name = $1 AND holder <> $2 AND expires_at > clock_timestamp()
        )
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
        WHERE leases.holder = excluded.holder OR leases.expires_at <= clock_timestamp()";
    let ttl = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
    // One statement that commits by itself, so no transaction of ours.
    let held = store.read(move |tx| {
        Box::pin(async move {
            let Conn::Pg(conn) = &mut *tx.conn else { return Ok(1) };
            let hold = diesel::sql_query(query)
                .bind::<Text, _>(name)
                .bind::<SqlId, _>(Id(holder))
                .bind::<BigInt, _>(ttl);
            Ok(diesel_async::RunQueryDsl::execute(hold, &mut **conn).await?)
        })
    });
    Ok(held.await? == 1)
}

/// Gives a lease back, if `holder` has it: it is anybody's at once.
pub async fn release(store: &Store, name: &'static str, holder: Uuid) -> Result<()> {
    let released = store.read(move |tx| {
        Box::pin(async move {
            let Conn::Pg(conn) = &mut *tx.conn else { return Ok(0) };
            let release = diesel::sql_query("DELETE FROM leases WHERE name = $1 AND holder = $2")
                .bind::<Text, _>(name)
                .bind::<SqlId, _>(Id(holder));
            Ok(diesel_async::RunQueryDsl::execute(release, &mut **conn).await?)
        })
    });
    released.await.map(drop)
}
