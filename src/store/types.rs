//! Column types that mean the same on both backends: one Rust type, one SQL type, two encodings.
//!
//! | SQL type | Postgres      | SQLite                            |
//! |----------|---------------|-----------------------------------|
//! | `SqlTs`  | `timestamptz` | `INTEGER`, microseconds since 1970 |
//! | `SqlId`  | `uuid`        | `BLOB` of 16 bytes                |

use std::io::Write as _;

use chrono::DateTime;
use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::QueryId;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{BigInt, SqlType};
use diesel::sqlite::Sqlite;
use uuid::Uuid;

use crate::domain::event::Time;

/// The SQL type of an instant.
#[derive(Debug, Clone, Copy, SqlType, QueryId)]
#[diesel(postgres_type(oid = 1184, array_oid = 1185))]
#[diesel(sqlite_type(name = "Long"))]
pub struct SqlTs;

/// The SQL type of an id.
#[derive(Debug, Clone, Copy, SqlType, QueryId)]
#[diesel(postgres_type(oid = 2950, array_oid = 2951))]
#[diesel(sqlite_type(name = "Binary"))]
pub struct SqlId;

impl diesel::sql_types::SqlOrd for SqlTs {}
impl diesel::sql_types::SqlOrd for SqlId {}

/// An instant in microseconds since 1970 (UTC), which is what both stores keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = SqlTs)]
pub struct Ts(pub i64);

/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Instants that both stores can keep: 1970 to the end of the year 9999. Postgres ends later, but
/// before what the longest spans would make.
const KEPT: std::ops::RangeInclusive<i64> = 0..=253_402_300_799_999_999;

impl Ts {
    /// This instant minus a length of time.
    pub fn minus(self, length: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(micros(length)).max(*KEPT.start()))
    }

    /// The time since `earlier`; none if that is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant plus a length of time.
    pub fn plus(self, length: std::time::Duration) -> Self {
        Self(self.0.saturating_add(micros(length)).min(*KEPT.end()))
    }
}

fn micros(length: std::time::Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

impl From<Time> for Ts {
    fn from(at: Time) -> Self {
        Self(at.timestamp_micros())
    }
}

impl From<Ts> for Time {
    fn from(ts: Ts) -> Self {
        DateTime::from_timestamp_micros(ts.0).unwrap_or_default()
    }
}

impl ToSql<SqlTs, Pg> for Ts {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(&(self.0 - POSTGRES_EPOCH).to_be_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<SqlTs, Pg> for Ts {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(i64::from_be_bytes(value.as_bytes().try_into()?) + POSTGRES_EPOCH))
    }
}

impl ToSql<SqlTs, Sqlite> for Ts {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.0);
        Ok(IsNull::No)
    }
}

impl FromSql<SqlTs, Sqlite> for Ts {
    fn from_sql(value: <Sqlite as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        <i64 as FromSql<BigInt, Sqlite>>::from_sql(value).map(Self)
    }
}

/// A UUID as a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = SqlId)]
pub struct Id(pub Uuid);

impl ToSql<SqlId, Pg> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<SqlId, Pg> for Id {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(Uuid::from_slice(value.as_bytes())?))
    }
}

impl ToSql<SqlId, Sqlite> for Id {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(&self.0.as_bytes()[..]);
        Ok(IsNull::No)
    }
}

impl FromSql<SqlId, Sqlite> for Id {
    fn from_sql(mut value: <Sqlite as Backend>::RawValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(Uuid::from_slice(value.read_blob())?))
    }
}
