//! What becomes of a log later: it loses what retention no longer covers, and gets another epoch
//! when it is another history.

use diesel::prelude::*;

use super::{Bounds, LogTx, first_stored, to_i64};
use crate::domain::channel::ChannelName;
use crate::domain::position::Epoch;
use crate::store::error::Result;
use crate::store::schema::{channels, events};

/// Gives `channel` a new epoch if its head is still below `known`: the log has lost events that
/// were accepted, and must not count on in the history that had them.
pub async fn renew_epoch(conn: &mut LogTx<'_>, channel: &ChannelName, known: u64, part: &str) -> Result<()> {
    let row = (channels::name.eq(channel.as_str()), channels::head.eq(0), channels::updated_at.eq(conn.now));
    conn.execute(diesel::insert_into(channels::table).values(row).on_conflict(channels::name).do_nothing())
        .await?;
    let behind =
        channels::table.filter(channels::name.eq(channel.as_str())).filter(channels::head.lt(to_i64(known)));
    conn.execute(diesel::update(behind).set(channels::epoch.eq(part))).await?;
    Ok(())
}

/// Gives `channel` a new epoch if it still has `old`: the log holds another event where one of `old`
/// was delivered, so it is another history. Two nodes that notice it change the epoch once.
pub async fn leave_epoch(conn: &mut LogTx<'_>, channel: &ChannelName, old: &Epoch, part: &str) -> Result<()> {
    let old_part = match old.as_str().strip_prefix(conn.generation.as_str()) {
        Some("") => "",
        Some(part) if part.starts_with('-') => &part[1..],
        // Of another generation: all epochs have changed already.
        _ => return Ok(()),
    };
    let unchanged =
        channels::table.filter(channels::name.eq(channel.as_str())).filter(channels::epoch.eq(old_part));
    conn.execute(diesel::update(unchanged).set(channels::epoch.eq(part))).await?;
    Ok(())
}

/// Deletes at most `batch` events of `channel` that retention no longer covers, oldest first, and
/// says how many. The head stays where it is.
pub async fn trim(conn: &mut LogTx<'_>, channel: &ChannelName, bounds: &Bounds, batch: u32) -> Result<usize> {
    let Some(first) = first_stored(conn, channel).await?.map(to_i64) else { return Ok(0) };
    let last = to_i64(bounds.before_oldest).min(first + i64::from(batch) - 1);
    if last < first {
        return Ok(0);
    }
    let prefix = events::table.filter(events::channel.eq(channel.as_str())).filter(events::offset.le(last));
    conn.execute(diesel::delete(prefix)).await
}

/// Deletes all events of `channel`, whatever retention covers. The head stays where it is, so what
/// is appended next has the next number.
pub async fn clear(conn: &mut LogTx<'_>, channel: &ChannelName) -> Result<usize> {
    conn.execute(diesel::delete(events::table.filter(events::channel.eq(channel.as_str())))).await
}
