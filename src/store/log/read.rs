//! Reading the log: where a channel is, what it holds, and pages of its events.

use std::collections::HashMap;

use diesel::dsl::{max, min};
use diesel::prelude::*;
use uuid::Uuid;

use super::{Row, epoch, to_i64, to_u64};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::store::conn::Conn;
use crate::store::dialect::columns;
use crate::store::error::Result;
use crate::store::read::ReadTx;
use crate::store::schema::{channels, events};
use crate::store::types::{Id, Ts};

/// Events of the first statement of a read that ends by bytes.
const FIRST_EVENTS: u32 = 32;
/// Events of each further one, as the next may be larger than those before.
const MOST_EVENTS: usize = 128;

/// What a channel holds just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// The end of the log.
    pub head: Position,
    /// The offset after which everything retained follows: a reader there has lost nothing.
    pub before_oldest: u64,
}

impl Bounds {
    /// The position from which everything retained follows.
    pub fn oldest(&self) -> Position {
        Position::new(self.head.epoch.clone(), self.before_oldest)
    }

    /// Whether a reader at `position` can go on without having lost anything.
    pub fn covers(&self, position: &Position) -> bool {
        position.epoch == self.head.epoch
            && (self.before_oldest..=self.head.offset).contains(&position.offset)
    }
}

/// One read of a channel.
#[derive(Debug, Clone)]
pub enum Page {
    /// Events that follow the asked position without a hole, and the bounds they were read in.
    Events {
        /// Ascending; empty only at the head.
        events: Vec<Event>,
        /// The channel's bounds at the time of the read.
        bounds: Bounds,
    },
    /// The asked position is of another epoch, trimmed, or ahead of the log.
    Lost(Bounds),
}

/// Which events of a channel are wanted.
#[derive(Debug, Clone, Copy)]
pub struct PageRequest<'a> {
    /// Those after this position; `None`: from the oldest retained.
    pub from: Option<&'a Position>,
    /// No further than this offset, where it is given.
    pub until: Option<u64>,
    /// At most so many.
    pub limit: u32,
    /// The page ends after so many bytes of data, if it has an event; `None` for no such end.
    pub bytes: Option<usize>,
}

impl ReadTx<'_> {
    /// Where `channel` is: its epoch and the offset of its last event.
    pub async fn head(&mut self, channel: &ChannelName) -> Result<Position> {
        let query = channels::table.find(channel.as_str()).select((channels::epoch, channels::head));
        let row: Option<(String, i64)> = self.maybe(query).await?;
        let (part, head) = row.unwrap_or_default();
        Ok(Position::new(epoch(&self.generation, &part), to_u64(head)))
    }

    /// The heads of many channels in one statement; a channel without a row is left out.
    pub async fn heads(&mut self, names: &[ChannelName]) -> Result<HashMap<String, Position>> {
        let names: Vec<&str> = names.iter().map(ChannelName::as_str).collect();
        let query = channels::table.filter(channels::name.eq_any(names)).select((
            channels::name,
            channels::epoch,
            channels::head,
        ));
        let rows: Vec<(String, String, i64)> = self.load(query).await?;
        let position = |part: &str, head| Position::new(epoch(&self.generation, part), to_u64(head));
        Ok(rows.into_iter().map(|(name, part, head)| (name, position(&part, head))).collect())
    }

    /// Reads the bounds of `channel`, with retention applied by size and by age.
    pub async fn bounds(&mut self, channel: &ChannelName, retention: Retention) -> Result<Bounds> {
        let head = self.head(channel).await?;
        let too_many = head.offset.saturating_sub(retention.events);
        let query = events::table
            .filter(events::channel.eq(channel.as_str()))
            .filter(events::offset.gt(to_i64(too_many)))
            .filter(events::created_at.gt(self.now.minus(retention.age)))
            .select(min(events::offset));
        let oldest: Option<i64> = self.maybe(query).await?.flatten();
        // An event may have been appended since the head was read: never report past it.
        let before_oldest = oldest.map_or(head.offset, |offset| to_u64(offset - 1).min(head.offset));
        Ok(Bounds { head, before_oldest })
    }

    /// The bounds of several channels that have the same retention, in one statement. A channel without
    /// a row is left out.
    pub async fn bounds_of(
        &mut self,
        names: &[&ChannelName],
        retention: Retention,
    ) -> Result<HashMap<String, Bounds>> {
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let oldest = events::table
            .filter(events::channel.eq(channels::name))
            .filter(events::offset.gt(channels::head - to_i64(retention.events)))
            .filter(events::created_at.gt(self.now.minus(retention.age)))
            .order(events::offset.asc());
        let query = channels::table.filter(channels::name.eq_any(names)).select((
            channels::name,
            channels::epoch,
            channels::head,
            oldest.select(events::offset).single_value(),
        ));
        let rows: Vec<(String, String, i64, Option<i64>)> = self.load(query).await?;
        let bounds = |part: &str, head: i64, oldest: Option<i64>| {
            let head = Position::new(epoch(&self.generation, part), to_u64(head));
            Bounds { before_oldest: oldest.map_or(head.offset, |offset| to_u64(offset - 1)), head }
        };
        Ok(rows.into_iter().map(|(name, part, head, oldest)| (name, bounds(&part, head, oldest))).collect())
    }

    /// Reads what `asked` names of `channel`, up to its head.
    pub async fn page(
        &mut self,
        channel: &ChannelName,
        retention: Retention,
        asked: PageRequest<'_>,
    ) -> Result<Page> {
        let bounds = self.bounds(channel, retention).await?;
        if asked.from.is_some_and(|position| !bounds.covers(position)) {
            return Ok(Page::Lost(bounds));
        }
        let after = asked.from.map_or(bounds.before_oldest, |position| position.offset);
        let until = asked.until.map_or(bounds.head.offset, |until| until.min(bounds.head.offset));
        let until = until.min(after.saturating_add(asked.limit.into()));
        Ok(match self.without_hole(channel, after, until, asked.bytes).await? {
            Some(events) => Page::Events { events, bounds },
            None => Page::Lost(bounds),
        })
    }

    /// The events with `after` < offset ≤ `until`, ascending, up to the one with which they have `bytes` of
    /// data. `None` if some of them are missing, because the janitor may have trimmed since the bounds were
    /// read.
    pub async fn without_hole(
        &mut self,
        channel: &ChannelName,
        mut after: u64,
        until: u64,
        bytes: Option<usize>,
    ) -> Result<Option<Vec<Event>>> {
        let mut found: Vec<Event> = Vec::new();
        let (mut sum, most) = (0, bytes.unwrap_or(usize::MAX));
        let mut wanted = if bytes.is_some() { FIRST_EVENTS } else { u32::MAX };
        while after < until && sum < most {
            let events = read_after(self, channel, after, until, wanted).await?;
            let whole = events.iter().zip(after + 1..).all(|(event, expected)| event.offset == expected);
            if !whole || events.len() as u64 != (until - after).min(wanted.into()) {
                return Ok(None);
            }
            after += events.len() as u64;
            for event in events {
                if sum < most {
                    sum += event.data.len();
                    found.push(event);
                }
            }
            // As many as fit, if they are like those so far.
            let average = (sum / found.len()).max(1);
            wanted = (most.saturating_sub(sum) / average).clamp(1, MOST_EVENTS) as u32;
        }
        Ok(Some(found))
    }

    /// The newest `limit` events of `channel`, newest first, with retention applied.
    pub async fn latest(
        &mut self,
        channel: &ChannelName,
        retention: Retention,
        limit: u32,
    ) -> Result<Vec<Event>> {
        let query = events::table
            .filter(events::channel.eq(channel.as_str()))
            .filter(events::created_at.gt(self.now.minus(retention.age)))
            .order(events::offset.desc())
            .limit(i64::from(limit).min(to_i64(retention.events)))
            .select(columns::<Row>());
        let rows: Vec<Row> = self.load(query).await?;
        Ok(rows.into_iter().map(Event::from).collect())
    }
}

/// The events with `after` < offset ≤ `until`, ascending, at most `limit`. Knows no retention.
pub async fn read_after(
    conn: &mut Conn,
    channel: &ChannelName,
    after: u64,
    until: u64,
    limit: u32,
) -> Result<Vec<Event>> {
    if until <= after {
        return Ok(Vec::new());
    }
    // There is no hole, so this is a limit; SQLite plans anew each time for one that is a parameter.
    let until = until.min(after.saturating_add(limit.into()));
    let query = events::table
        .filter(events::channel.eq(channel.as_str()))
        .filter(events::offset.gt(to_i64(after)))
        .filter(events::offset.le(to_i64(until)))
        .order(events::offset.asc())
        .select(columns::<Row>());
    let rows: Vec<Row> = conn.load(query).await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// The channels whose names begin with `prefix`, the most recently appended to first.
pub async fn recent_channels(conn: &mut Conn, prefix: &str, limit: u32) -> Result<Vec<ChannelName>> {
    let end = format!("{prefix}\u{7f}");
    let query = channels::table
        .filter(channels::name.ge(prefix))
        .filter(channels::name.lt(end))
        .order(channels::updated_at.desc())
        .limit(i64::from(limit))
        .select(channels::name);
    let names: Vec<String> = conn.load(query).await?;
    Ok(names.iter().filter_map(|name| ChannelName::parse(name).ok()).collect())
}

/// A channel and the oldest event that it stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    pub channel: ChannelName,
    /// The offset of its last event.
    pub head: u64,
    /// The offset of the oldest one that is stored, and when it was appended.
    pub stored: Option<(u64, Ts)>,
}

impl Oldest {
    /// Whether there is one that `retention` no longer covers.
    pub fn has_expired(&self, retention: Retention, now: Ts) -> bool {
        self.stored.is_some_and(|(offset, created_at)| {
            offset <= self.head.saturating_sub(retention.events) || created_at <= now.minus(retention.age)
        })
    }
}

/// The oldest events of up to `limit` channels after `after`, in the order of their names; a channel
/// that stores none comes without. How the janitor walks over them all.
pub async fn oldest_after(conn: &mut Conn, after: &str, limit: u32) -> Result<Vec<Oldest>> {
    // Not a join: however little Postgres knows of the tables, it looks up the first one of each.
    let first = events::table.filter(events::channel.eq(channels::name)).order(events::offset.asc());
    let query = channels::table
        .filter(channels::name.gt(after))
        .order(channels::name.asc())
        .limit(i64::from(limit))
        .select((
            channels::name,
            channels::head,
            first.select(events::offset).single_value(),
            first.select(events::created_at).single_value(),
        ));
    let rows: Vec<(String, i64, Option<i64>, Option<Ts>)> = conn.load(query).await?;
    let oldest = |(name, head, offset, created_at): (String, i64, Option<i64>, Option<Ts>)| {
        let stored = offset.map(to_u64).zip(created_at);
        Some(Oldest { channel: ChannelName::parse(&name).ok()?, head: to_u64(head), stored })
    };
    Ok(rows.into_iter().filter_map(oldest).collect())
}

/// The id of the event at `offset`, if it is still there.
pub async fn event_id_at(conn: &mut Conn, channel: &ChannelName, offset: u64) -> Result<Option<Uuid>> {
    let query = events::table.find((channel.as_str(), to_i64(offset))).select(events::event_id);
    let id: Option<Id> = conn.maybe(query).await?;
    Ok(id.map(|id| id.0))
}

/// The lowest offset that is stored for `channel`.
pub async fn first_stored(conn: &mut Conn, channel: &ChannelName) -> Result<Option<u64>> {
    let query = events::table.filter(events::channel.eq(channel.as_str())).select(min(events::offset));
    let first: Option<i64> = conn.one(query).await?;
    Ok(first.map(to_u64))
}

/// The highest offset that is stored for `channel`, read from the events themselves.
pub async fn last_stored(conn: &mut Conn, channel: &ChannelName) -> Result<Option<u64>> {
    let query = events::table.filter(events::channel.eq(channel.as_str())).select(max(events::offset));
    let last: Option<i64> = conn.one(query).await?;
    Ok(last.map(to_u64))
}
