//! The audit log of webhook deliveries, and the only place that answers "seen this one already?".
//! Payloads are kept verbatim, compressed with zstd, and dropped before their rows are.

use std::cell::RefCell;
use std::collections::HashSet;

use diesel::prelude::*;
use uuid::Uuid;
use zstd::bulk::Compressor;

use super::conn::Conn;
use super::dialect::{columns, write_rows};
use super::error::{Result, StoreError};
use super::schema::webhook_deliveries as table;
use super::types::{Id, Ts};
use crate::domain::delivery::{DeliveryId, DeliveryStatus};
use crate::domain::event::Time;

/// A payload as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(Vec<u8>);

/// Enough for JSON to shrink several times, and fast enough for the webhook endpoint.
const LEVEL: i32 = 1;
/// No payload that was accepted unpacks to more (`limits.webhook_body` is below it).
const MAX_UNPACKED: usize = 64 << 20;

impl Payload {
    /// Compresses `text`. Each thread keeps a compressor: to make one costs as much as to compress
    /// a payload of the usual size.
    pub fn pack(text: &[u8]) -> std::io::Result<Self> {
        thread_local! {
            static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
        }
        COMPRESSOR.with_borrow_mut(|kept| {
            let compressor = match kept {
                Some(compressor) => compressor,
                None => kept.insert(Compressor::new(LEVEL)?),
            };
            compressor.compress(text).map(Self)
        })
    }

    /// The text as it came.
    pub fn unpack(&self) -> Result<Vec<u8>> {
        zstd::stream::decode_all(self.0.as_slice())
            .ok()
            .filter(|text| text.len() <= MAX_UNPACKED)
            .ok_or_else(|| StoreError::Failed("a stored payload cannot be decompressed".into()))
    }
}

/// A delivery that was let in.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    /// Our id, UUID v7.
    pub id: Uuid,
    /// GitHub's id: seen once, never taken again.
    pub delivery_id: DeliveryId,
    /// GitHub's event kind.
    pub event: String,
    /// The payload's `action`.
    pub action: Option<String>,
    /// `owner/name` of the repository that it is about.
    pub repo: Option<String>,
    /// The payload, verbatim.
    pub payload: Payload,
    /// What became of it.
    pub status: DeliveryStatus,
    /// Why it failed or was ignored.
    pub error: Option<String>,
    /// When it came.
    pub received_at: Time,
}

#[derive(Insertable)]
#[diesel(table_name = table, treat_none_as_default_value = false)]
struct NewRow<'a> {
    id: Id,
    delivery_id: &'a str,
    event: &'a str,
    action: Option<&'a str>,
    repo: Option<&'a str>,
    payload: Option<&'a [u8]>,
    status: &'a str,
    error: Option<&'a str>,
    received_at: Ts,
    processed_at: Option<Ts>,
}

/// A delivery in the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: Uuid,
    pub delivery_id: String,
    /// GitHub's event kind.
    pub event: String,
    /// The payload's `action`.
    pub action: Option<String>,
    /// `owner/name`.
    pub repo: Option<String>,
    /// What became of it.
    pub status: DeliveryStatus,
    /// Why it failed or was ignored.
    pub error: Option<String>,
    /// When it came.
    pub received_at: Time,
    /// When it was last interpreted with success.
    pub processed_at: Option<Time>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = table)]
struct Row {
    id: Id,
    delivery_id: String,
    event: String,
    action: Option<String>,
    repo: Option<String>,
    status: String,
    error: Option<String>,
    received_at: Ts,
    processed_at: Option<Ts>,
}

/// Inserts the deliveries whose id is new, and answers those ids.
pub async fn insert_new(conn: &mut Conn, deliveries: &[&NewDelivery]) -> Result<HashSet<String>> {
    let rows = deliveries.iter().map(|delivery| {
        let processed = delivery.status == DeliveryStatus::Processed;
        NewRow {
            id: Id(delivery.id),
            delivery_id: delivery.delivery_id.as_str(),
            event: &delivery.event,
            action: delivery.action.as_deref(),
            repo: delivery.repo.as_deref(),
            payload: Some(&delivery.payload.0),
            status: delivery.status.as_str(),
            error: delivery.error.as_deref(),
            received_at: delivery.received_at.into(),
            processed_at: processed.then(|| delivery.received_at.into()),
        }
    });
    let mut rows: Vec<NewRow<'_>> = rows.collect();
    // Two nodes that insert the same ids must do it in the same order.
    rows.sort_by_key(|row| row.delivery_id);
    let inserted = write_rows!(conn, rows, String, |values| {
        diesel::insert_into(table::table)
            .values(values)
            .on_conflict(table::delivery_id)
            .do_nothing()
            .returning(table::delivery_id)
    });
    Ok(inserted.into_iter().collect())
}

/// Whether `delivery_id` was taken before.
pub async fn is_known(conn: &mut Conn, delivery_id: &DeliveryId) -> Result<bool> {
    let query = table::table.filter(table::delivery_id.eq(delivery_id.as_str())).select(table::id);
    let id: Option<Id> = conn.maybe(query).await?;
    Ok(id.is_some())
}

/// Up to `limit` deliveries that are older than `before` (newest first).
pub async fn list(conn: &mut Conn, before: Option<Uuid>, limit: u32) -> Result<Vec<Delivery>> {
    let before = Id(before.unwrap_or(Uuid::max()));
    let query = table::table
        .filter(table::id.lt(before))
        .order(table::id.desc())
        .limit(i64::from(limit))
        .select(columns::<Row>());
    let rows: Vec<Row> = conn.load(query).await?;
    Ok(rows.into_iter().map(Delivery::from).collect())
}

/// One delivery with its payload, which is `None` once it was dropped for age.
pub async fn get(conn: &mut Conn, id: Uuid) -> Result<Option<(Delivery, Option<Payload>)>> {
    let query = table::table.find(Id(id)).select((columns::<Row>(), table::payload));
    let row: Option<(Row, Option<Vec<u8>>)> = conn.maybe(query).await?;
    Ok(row.map(|(row, payload)| (row.into(), payload.map(Payload))))
}

/// Records a new interpretation of a delivery, unless it is processed already; answers whether it
/// changed anything.
pub async fn settle(
    conn: &mut Conn,
    id: Uuid,
    status: DeliveryStatus,
    error: Option<&str>,
    repo: Option<&str>,
    action: Option<&str>,
    now: Ts,
) -> Result<bool> {
    let unsettled = table::table.find(Id(id)).filter(table::status.ne(DeliveryStatus::Processed.as_str()));
    let processed = (status == DeliveryStatus::Processed).then_some(now);
    let statement = diesel::update(unsettled).set((
        table::status.eq(status.as_str()),
        table::error.eq(error),
        table::repo.eq(repo),
        table::action.eq(action),
        table::processed_at.eq(processed),
    ));
    Ok(conn.execute(statement).await? == 1)
}

/// Drops the payloads of up to `batch` deliveries that follow `after` and were received before
/// `cutoff`; answers their ids in order.
pub async fn drop_payloads(conn: &mut Conn, after: Uuid, cutoff: Ts, batch: u32) -> Result<Vec<Uuid>> {
    let old = table::table
        .filter(table::id.gt(Id(after)))
        .filter(table::id.lt(first_id_at(cutoff)))
        .filter(table::payload.is_not_null())
        .order(table::id.asc())
        .limit(i64::from(batch))
        .select(table::id);
    let ids: Vec<Id> = conn.load(old).await?;
    let rows = table::table.filter(table::id.eq_any(ids.clone()));
    conn.execute(diesel::update(rows).set(table::payload.eq(None::<Vec<u8>>))).await?;
    Ok(ids.into_iter().map(|id| id.0).collect())
}

/// Forgets up to `batch` deliveries received before `cutoff`.
pub async fn forget(conn: &mut Conn, cutoff: Ts, batch: u32) -> Result<usize> {
    let old = table::table
        .filter(table::id.lt(first_id_at(cutoff)))
        .order(table::id.asc())
        .limit(i64::from(batch))
        .select(table::id);
    let ids: Vec<Id> = conn.load(old).await?;
    conn.execute(diesel::delete(table::table.filter(table::id.eq_any(ids)))).await
}

/// Ids are UUID v7, so their order is that of their times: this is the least id of an instant.
fn first_id_at(at: Ts) -> Id {
    let ms = u64::try_from(at.0 / 1000).unwrap_or(0);
    let mut bytes = [0u8; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    Id(Uuid::from_bytes(bytes))
}

impl From<Row> for Delivery {
    fn from(row: Row) -> Self {
        Self {
            id: row.id.0,
            delivery_id: row.delivery_id,
            event: row.event,
            action: row.action,
            repo: row.repo,
            status: DeliveryStatus::parse(&row.status).unwrap_or(DeliveryStatus::Failed),
            error: row.error,
            received_at: row.received_at.into(),
            processed_at: row.processed_at.map(Time::from),
        }
    }
}
