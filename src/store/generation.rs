//! The store's generation: the part of every epoch that names the database itself. Two databases
//! that could hold different histories never share it. On Postgres it follows from the system id
//! (another cluster), the timeline (a failover or a point-in-time restore) and a marker in the
//! data; on SQLite from the marker alone, which `campanile log new-epoch` changes after a restore.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use sha2::{Digest as _, Sha256};

use super::conn::Conn;
use super::error::{Result, StoreError};
use super::log::LogTx;
use super::postgres::PgConnection;
use super::schema::meta;
use super::types::{SqlTs, Ts};
use crate::domain::position::Epoch;

pub(super) const MARKER: &str = "marker";

/// What a look at the store tells.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) generation: Epoch,
    /// The database's clock, where it has one of its own.
    pub(super) clock: Option<Ts>,
}

/// Reads the generation, and proves by it that the store answers.
pub(super) async fn probe(conn: &mut Conn) -> Result<Probe> {
    match conn {
        Conn::Pg(conn) => probe_postgres(conn).await,
        Conn::Sqlite { .. } => {
            let marker = conn.one(meta::table.find(MARKER).select(meta::value)).await?;
            Ok(Probe { generation: name(&[marker])?, clock: None })
        }
    }
}

pub(super) async fn probe_postgres(conn: &mut PgConnection) -> Result<Probe> {
    // The first eight digits of a WAL file's name are the timeline that is written now.
    let query = diesel::select((
        sql::<Text>("(SELECT system_identifier::text FROM pg_control_system())"),
        sql::<Text>("substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"),
        sql::<Text>("(SELECT value FROM meta WHERE key = 'marker')"),
        sql::<SqlTs>("clock_timestamp()"),
    ));
    let (system, timeline, marker, clock): (String, String, String, Ts) =
        diesel_async::RunQueryDsl::get_result(query, conn).await?;
    Ok(Probe { generation: name(&[system, timeline, marker])?, clock: Some(clock) })
}

/// What [`super::Store::id`] answers on Postgres: from what a failover leaves as it is.
pub(super) async fn lasting_id(conn: &mut PgConnection) -> Result<String> {
    let query = diesel::select((
        sql::<Text>("(SELECT system_identifier::text FROM pg_control_system())"),
        sql::<Text>("current_database()::text"),
        sql::<Text>("(SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'meta'::regclass)"),
    ));
    let (system, database, schema): (String, String, String) =
        diesel_async::RunQueryDsl::get_result(query, conn).await?;
    Ok(digest(&[system, database, schema]))
}

/// A marker that no store has.
pub fn new_marker() -> String {
    hex::encode(rand::random::<[u8; 6]>())
}

/// Makes the epochs of all channels differ from what they were.
pub async fn renew(conn: &mut LogTx<'_>, marker: &str) -> Result<()> {
    conn.execute(diesel::update(meta::table.find(MARKER)).set(meta::value.eq(marker))).await?;
    Ok(())
}

/// The oldest version of Campanile that may work on this schema.
pub(super) async fn oldest_binary(conn: &mut Conn) -> Result<String> {
    conn.one(meta::table.find("oldest_binary").select(meta::value)).await
}

fn name(parts: &[String]) -> Result<Epoch> {
    Epoch::parse(&digest(parts)).ok_or_else(|| StoreError::Failed("the store has no marker".into()))
}

/// Twelve digits are enough: an epoch is compared with a client's, not with all that ever were.
fn digest(parts: &[String]) -> String {
    hex::encode(&Sha256::digest(parts.join("/").as_bytes())[..6])
}
