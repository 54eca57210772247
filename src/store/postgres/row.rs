//! What Diesel reads of a row, and what it writes of a value: bytes in the server's binary format.

use std::error::Error;
use std::num::NonZeroU32;
use std::ops::Range;

use bytes::BytesMut;
use diesel::pg::{Pg, PgValue};
use diesel::row::{Field, PartialRow, Row, RowIndex, RowSealed};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

pub struct PgRow(pub(super) tokio_postgres::Row);

impl RowSealed for PgRow {}

impl<'a> Row<'a, Pg> for PgRow {
    type InnerPartialRow = Self;
    type Field<'b>
        = PgField<'b>
    where
        Self: 'b,
        'a: 'b;

    fn field_count(&self) -> usize {
        self.0.len()
    }

    fn get<'b, I>(&'b self, index: I) -> Option<PgField<'b>>
    where
        'a: 'b,
        Self: RowIndex<I>,
    {
        let index = self.idx(index)?;
        let oid = NonZeroU32::new(self.0.columns()[index].type_().oid())?;
        Some(PgField { row: &self.0, index, oid })
    }

    fn partial_row(&self, range: Range<usize>) -> PartialRow<'_, Self> {
        PartialRow::new(self, range)
    }
}

impl RowIndex<usize> for PgRow {
    fn idx(&self, index: usize) -> Option<usize> {
        (index < self.0.len()).then_some(index)
    }
}

impl<'a> RowIndex<&'a str> for PgRow {
    fn idx(&self, name: &'a str) -> Option<usize> {
        self.0.columns().iter().position(|column| column.name() == name)
    }
}

pub struct PgField<'a> {
    row: &'a tokio_postgres::Row,
    index: usize,
    oid: NonZeroU32,
}

impl<'a> Field<'a, Pg> for PgField<'a> {
    fn field_name(&self) -> Option<&str> {
        Some(self.row.columns()[self.index].name())
    }

    fn value(&self) -> Option<PgValue<'_>> {
        let Bytes(value) = self.row.get(self.index);
        value.map(|bytes| PgValue::new(bytes, &self.oid))
    }
}

struct Bytes<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Bytes<'a> {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(Some(bytes)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A value as Diesel has written it.
#[derive(Debug)]
pub(super) struct Bind(pub(super) Option<Vec<u8>>);

impl ToSql for Bind {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Some(bytes) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    // The statement names the types that Diesel has written.
    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}
