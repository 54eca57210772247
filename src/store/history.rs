//! What a channel's log still holds, as clients and the server API ask for it (protocol §4.6): a
//! piece of it, forward or backward, and the head. Unlike a page it promises no continuity with
//! the place it begins at: who asks for what is trimmed gets what is left.
//!
//! Must hold: the events of one answer follow each other without a hole, none lies behind the
//! head of the same answer, and retention is applied although the janitor may be late.

use diesel::prelude::*;

use super::conn::Conn;
use super::dialect::columns;
use super::error::Result;
use super::log::{Row, to_i64};
use super::read::ReadTx;
use super::schema::events;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::Position;

/// Events of one answer at most, whatever was asked for.
pub const MAX_EVENTS: u32 = 10_000;
/// Bytes of data after which an answer ends, whatever was asked for.
pub const MAX_BYTES: usize = 32 << 20;
/// Events of one statement, so that the bound on bytes is seen in time.
const CHUNK: u64 = 200;

/// Which events are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Only those on the far side of this epoch and offset; an empty epoch fits any.
    pub since: Option<(&'a str, u64)>,
    /// At most so many; 0 for the head alone.
    pub limit: u32,
    /// The newest first.
    pub reverse: bool,
    /// The answer ends after so many bytes of data, if it has at least one event.
    pub bytes: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// Events in the wished order, and the head. Ends before the wish is fulfilled where an
    /// answer would become too large.
    Events {
        /// Without a hole between them.
        events: Vec<Event>,
        /// The end of the log.
        head: Position,
    },
    /// The wish counts in another history than the one with this head.
    OtherEpoch(Position),
}

impl ReadTx<'_> {
    /// Reads what `wish` names of `channel`, as far as `retention` covers it.
    pub async fn history(
        &mut self,
        channel: &ChannelName,
        retention: Retention,
        wish: Wish<'_>,
    ) -> Result<History> {
        let other = |head: &Position| {
            wish.since.is_some_and(|(epoch, _)| !epoch.is_empty() && epoch != head.epoch.as_str())
        };
        if wish.limit == 0 {
            let head = self.head(channel).await?;
            return Ok(if other(&head) {
                History::OtherEpoch(head)
            } else {
                History::Events { events: Vec::new(), head }
            });
        }
        let bounds = self.bounds(channel, retention).await?;
        let (oldest, head) = (bounds.before_oldest, bounds.head);
        if other(&head) {
            return Ok(History::OtherEpoch(head));
        }
        // Wanted is after < offset ≤ until.
        let (after, until) = match wish.since {
            None => (oldest, head.offset),
            Some((_, offset)) if wish.reverse => (oldest, head.offset.min(offset.saturating_sub(1))),
            Some((_, offset)) => (oldest.max(offset), head.offset),
        };
        let events = piece(self, channel, after, until, wish).await?;
        Ok(History::Events { events, head })
    }
}

async fn piece(
    conn: &mut Conn,
    channel: &ChannelName,
    mut after: u64,
    mut until: u64,
    wish: Wish<'_>,
) -> Result<Vec<Event>> {
    let (limit, most_bytes, reverse) = (wish.limit.min(MAX_EVENTS), wish.bytes.min(MAX_BYTES), wish.reverse);
    let (mut found, mut bytes): (Vec<Event>, usize) = (Vec::new(), 0);
    while after < until && bytes < most_bytes {
        let wanted = CHUNK.min(u64::from(limit) - found.len() as u64);
        if wanted == 0 {
            break;
        }
        let rows = chunk(conn, channel, after, until, wanted, reverse).await?;
        let Some(last) = rows.last().map(|row| row.offset) else { break };
        for row in rows {
            let follows = found.last().is_none_or(|event| event.offset.abs_diff(row.offset) == 1);
            // The janitor took what stood between: what is left begins a piece of its own.
            if !follows {
                return Ok(found);
            }
            bytes += row.data.len();
            found.push(row);
            if bytes >= most_bytes {
                break;
            }
        }
        if reverse { until = last - 1 } else { after = last }
    }
    Ok(found)
}

async fn chunk(
    conn: &mut Conn,
    channel: &ChannelName,
    after: u64,
    until: u64,
    limit: u64,
    reverse: bool,
) -> Result<Vec<Event>> {
    let query = events::table
        .filter(events::channel.eq(channel.as_str()))
        .filter(events::offset.gt(to_i64(after)))
        .filter(events::offset.le(to_i64(until)))
        .limit(to_i64(limit))
        .select(columns::<Row>());
    let rows: Vec<Row> = if reverse {
        conn.load(query.order(events::offset.desc())).await?
    } else {
        conn.load(query.order(events::offset.asc())).await?
    };
    Ok(rows.into_iter().map(Event::from).collect())
}
