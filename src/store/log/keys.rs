//! Idempotency keys: under one a unit of work appends once.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use diesel::upsert::excluded;

use super::{to_i64, to_u64};
use crate::domain::channel::ChannelName;
use crate::domain::position::{Epoch, Position};
use crate::store::conn::Conn;
use crate::store::dialect::{FEW_ROWS, Prepared, write_rows};
use crate::store::error::Result;
use crate::store::schema::idempotency;
use crate::store::types::Ts;

/// Under `key` a unit appends to `channel` once; until `expires_at` a repeat is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Where the key counts; one of the unit's channels.
    pub channel: ChannelName,
    /// The publisher's text.
    pub key: String,
    /// When it is forgotten.
    pub expires_at: Ts,
}

/// Which of `keys` have been used, as `(channel, key)`, and where their events are. Without the lock
/// on the channel the answer may be out of date.
pub async fn known_keys<'a>(
    conn: &mut Conn,
    keys: &[&'a IdempotencyKey],
    now: Ts,
) -> Result<HashMap<(&'a str, &'a str), Position>> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let wanted: HashMap<(&str, &str), (&'a str, &'a str)> =
        keys.iter().map(|k| (k.channel.as_str(), k.key.as_str())).map(|pair| (pair, pair)).collect();
    let in_channels: BTreeSet<&str> = wanted.keys().map(|(channel, _)| *channel).collect();
    let with_keys: BTreeSet<&str> = wanted.keys().map(|(_, key)| *key).collect();
    let query = idempotency::table
        .filter(idempotency::channel.eq_any(in_channels.into_iter().collect::<Vec<_>>()))
        .filter(idempotency::key.eq_any(with_keys.into_iter().collect::<Vec<_>>()))
        .filter(idempotency::expires_at.gt(now))
        .select((idempotency::channel, idempotency::key, idempotency::epoch, idempotency::offset));
    let query = Prepared { query, keep: keys.len() <= FEW_ROWS };
    let rows: Vec<(String, String, String, i64)> = conn.load(query).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(channel, key, epoch, offset)| {
            let pair = wanted.get(&(channel.as_str(), key.as_str()))?;
            Some((*pair, Position::new(Epoch::parse(&epoch)?, to_u64(offset))))
        })
        .collect())
}

pub(super) async fn remember(conn: &mut Conn, key: &IdempotencyKey, position: &Position) -> Result<()> {
    let row = (
        idempotency::channel.eq(key.channel.as_str()),
        idempotency::key.eq(&key.key),
        idempotency::epoch.eq(position.epoch.as_str()),
        idempotency::offset.eq(to_i64(position.offset)),
        idempotency::expires_at.eq(key.expires_at),
    );
    write_rows!(conn, vec![row], |values| {
        diesel::insert_into(idempotency::table)
            .values(values)
            .on_conflict((idempotency::channel, idempotency::key))
            .do_update()
            .set((
                idempotency::epoch.eq(excluded(idempotency::epoch)),
                idempotency::offset.eq(excluded(idempotency::offset)),
                idempotency::expires_at.eq(excluded(idempotency::expires_at)),
            ))
    });
    Ok(())
}

/// Forgets up to `batch` idempotency keys that have expired.
pub async fn forget_keys(conn: &mut Conn, now: Ts, batch: u32) -> Result<usize> {
    let query = idempotency::table
        .filter(idempotency::expires_at.le(now))
        .order(idempotency::expires_at.asc())
        .limit(i64::from(batch))
        .select((idempotency::channel, idempotency::key));
    let expired: Vec<(String, String)> = conn.load(query).await?;
    for (channel, key) in &expired {
        let row = idempotency::table.find((channel, key)).filter(idempotency::expires_at.le(now));
        conn.execute(diesel::delete(row)).await?;
    }
    Ok(expired.len())
}
