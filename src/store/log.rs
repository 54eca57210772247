//! The log: append, read, trim. Offsets are assigned here and nowhere else, under the lock of the
//! channel's row, which is held to the commit: they are contiguous, visible in order, and a
//! rollback gives them back. Only `publish` appends.
//!
//! Reads never write: a channel without a row answers the store's base epoch at offset 0, and
//! that is the epoch its first append creates the row with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use diesel::dsl::{max, min};
use diesel::prelude::*;
use diesel::upsert::excluded;
use uuid::Uuid;

use super::conn::Conn;
use super::dialect::{FEW_ROWS, Prepared, write_rows};
use super::error::Result;
use super::schema::{channels, events, idempotency};
use super::types::{Id, Ts};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event, NewEvent};
use crate::domain::options::Retention;
use crate::domain::position::{Epoch, Position};

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

/// Which state of its channel an event shows: one that is not newer than what is known is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Grows with each state; above 0.
    pub number: i64,
    /// In which count the number counts; empty fits any.
    pub epoch: String,
}

/// What one unit of work appends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Append<'a> {
    /// In the order in which they get their offsets.
    pub events: &'a [&'a NewEvent],
    /// At most once, if there is a key.
    pub key: Option<&'a IdempotencyKey>,
    /// Only if it is newer, by the channel of the first event.
    pub version: Option<&'a Version>,
}

/// What became of one unit's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// Their positions, one for each event.
    New(Vec<Position>),
    /// The key, or a version as new, was known: nothing was appended, and this is where the event,
    /// or the head, is.
    Known(Position),
}

#[derive(Insertable)]
#[diesel(table_name = events, treat_none_as_default_value = false)]
struct NewRow<'a> {
    channel: &'a str,
    offset: i64,
    event_id: Id,
    kind: &'a str,
    data: &'a str,
    tags: Option<&'a str>,
    info: Option<&'a str>,
    created_at: Ts,
}

/// A stored event as [`COLUMNS`] select it.
#[derive(Queryable)]
pub(super) struct Row {
    offset: i64,
    event_id: Id,
    kind: String,
    data: String,
    tags: Option<String>,
    info: Option<String>,
}

/// The columns of a [`Row`].
pub(super) const COLUMNS: Columns =
    (events::offset, events::event_id, events::kind, events::data, events::tags, events::info);
type Columns = (events::offset, events::event_id, events::kind, events::data, events::tags, events::info);

/// A channel's own part is appended to the store's generation, so a new generation changes the
/// epochs of all channels without touching a row.
fn epoch(generation: &Epoch, part: &str) -> Epoch {
    if part.is_empty() {
        return generation.clone();
    }
    Epoch::parse(&format!("{generation}-{part}")).unwrap_or_else(|| generation.clone())
}

fn to_u64(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Appends the events of all `units` in the caller's transaction. Locks all their channels in one
/// statement, in the order of their names. Answers in the order of `units`.
pub async fn append(
    conn: &mut Conn,
    generation: &Epoch,
    now: Ts,
    units: &[Append<'_>],
) -> Result<Vec<Appended>> {
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for unit in units {
        for event in unit.events {
            *counts.entry(event.channel.as_str()).or_default() += 1;
        }
        // What is not kept may have a key as well, which counts in a channel that has nothing else.
        if let Some(key) = unit.key {
            counts.entry(key.channel.as_str()).or_default();
        }
    }
    let guarded = units.iter().any(|unit| unit.key.is_some() || unit.version.is_some());
    // With keys and versions the counts are known only after a look behind the lock.
    let mut heads = if guarded {
        let locked: Vec<(&str, i64)> = counts.keys().map(|name| (*name, 0)).collect();
        move_heads(conn, &locked, now).await?
    } else {
        let moved: Vec<(&str, i64)> = counts.iter().map(|(name, count)| (*name, *count)).collect();
        let mut heads = move_heads(conn, &moved, now).await?;
        for (name, (_, head)) in &mut heads {
            *head -= counts[name.as_str()];
        }
        heads
    };
    let keys: Vec<&IdempotencyKey> = units.iter().filter_map(|unit| unit.key).collect();
    let mut known = known_keys(conn, &keys, now).await?;
    let mut versions = versions_of(conn, units).await?;
    let mut newer: BTreeMap<&str, &Version> = BTreeMap::new();

    let mut rows = Vec::with_capacity(counts.values().sum::<i64>() as usize);
    let mut keys = Vec::new();
    let mut answers = Vec::with_capacity(units.len());
    let mut appended: BTreeMap<&str, i64> = BTreeMap::new();
    for unit in units {
        if let Some(position) = unit.key.and_then(|k| known.get(&(k.channel.as_str(), k.key.as_str()))) {
            answers.push(Appended::Known(position.clone()));
            continue;
        }
        if let (Some(version), Some(channel)) = (unit.version, unit.first_channel()) {
            let known = versions.get(channel);
            if known.is_some_and(|known| version.is_known_by(known)) {
                let (part, head) = &heads[channel];
                answers.push(Appended::Known(Position::new(epoch(generation, part), to_u64(*head))));
                continue;
            }
            versions.insert(channel.to_owned(), version.clone());
            newer.insert(channel, version);
        }
        let mut positions = Vec::with_capacity(unit.events.len());
        for event in unit.events {
            let (part, head) = heads.get_mut(event.channel.as_str()).expect("every channel was locked");
            *head += 1;
            *appended.entry(event.channel.as_str()).or_default() += 1;
            positions.push(Position::new(epoch(generation, part), to_u64(*head)));
            rows.push(NewRow {
                channel: event.channel.as_str(),
                offset: *head,
                event_id: Id(event.id),
                kind: &event.kind,
                data: &event.data,
                tags: event.tags.as_deref(),
                info: event.info.as_deref(),
                created_at: now,
            });
        }
        if let Some(key) = unit.key {
            let of_channel = unit.events.iter().position(|event| event.channel == key.channel);
            let position = of_channel.map(|i| positions[i].clone()).unwrap_or_else(|| {
                let (part, _) = &heads[key.channel.as_str()];
                Position::new(epoch(generation, part), 0)
            });
            known.insert((key.channel.as_str(), key.key.as_str()), position.clone());
            keys.push((key, position));
        }
        answers.push(Appended::New(positions));
    }
    if guarded {
        let moved: Vec<(&str, i64)> = appended.into_iter().collect();
        if !moved.is_empty() {
            move_heads(conn, &moved, now).await?;
        }
    }
    write_rows!(conn, rows, |values| diesel::insert_into(events::table).values(values));
    for (key, position) in keys {
        remember(conn, key, &position).await?;
    }
    for (channel, version) in newer {
        let shown = (channels::version.eq(version.number), channels::version_epoch.eq(&version.epoch));
        conn.execute(diesel::update(channels::table.find(channel)).set(shown)).await?;
    }
    Ok(answers)
}

impl<'a> Append<'a> {
    fn first_channel(&self) -> Option<&'a str> {
        self.events.first().map(|event| event.channel.as_str())
    }
}

impl Version {
    /// Whether `known` is as new.
    fn is_known_by(&self, known: &Self) -> bool {
        (self.epoch.is_empty() || self.epoch == known.epoch) && self.number <= known.number
    }
}

/// The versions of the channels that some of `units` show a state of; to be read under their locks.
async fn versions_of(conn: &mut Conn, units: &[Append<'_>]) -> Result<HashMap<String, Version>> {
    let versioned = units.iter().filter(|unit| unit.version.is_some());
    let names: BTreeSet<&str> = versioned.filter_map(Append::first_channel).collect();
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let query = channels::table
        .filter(channels::name.eq_any(names.into_iter().collect::<Vec<_>>()))
        .select((channels::name, channels::version, channels::version_epoch));
    let rows: Vec<(String, i64, String)> = conn.load(query).await?;
    Ok(rows.into_iter().map(|(name, number, epoch)| (name, Version { number, epoch })).collect())
}

/// Locks the rows of `moves` in their order, creates those that are missing, and moves each head
/// by its number. Answers the channel's part of the epoch and the new head.
async fn move_heads(
    conn: &mut Conn,
    moves: &[(&str, i64)],
    now: Ts,
) -> Result<BTreeMap<String, (String, i64)>> {
    let row = |(name, by): &(&str, i64)| {
        (channels::name.eq((*name).to_owned()), channels::head.eq(*by), channels::updated_at.eq(now))
    };
    let rows: Vec<_> = moves.iter().map(row).collect();
    let moved = write_rows!(conn, rows, (String, String, i64), |values| {
        diesel::insert_into(channels::table)
            .values(values)
            .on_conflict(channels::name)
            .do_update()
            .set((
                channels::head.eq(channels::head + excluded(channels::head)),
                channels::updated_at.eq(excluded(channels::updated_at)),
            ))
            .returning((channels::name, channels::epoch, channels::head))
    });
    Ok(moved.into_iter().map(|(name, part, head)| (name, (part, head))).collect())
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

async fn remember(conn: &mut Conn, key: &IdempotencyKey, position: &Position) -> Result<()> {
    let values = (
        idempotency::channel.eq(key.channel.as_str()),
        idempotency::key.eq(&key.key),
        idempotency::epoch.eq(position.epoch.as_str()),
        idempotency::offset.eq(to_i64(position.offset)),
        idempotency::expires_at.eq(key.expires_at),
    );
    let statement = diesel::insert_into(idempotency::table)
        .values(values)
        .on_conflict((idempotency::channel, idempotency::key))
        .do_update()
        .set((
            idempotency::epoch.eq(excluded(idempotency::epoch)),
            idempotency::offset.eq(excluded(idempotency::offset)),
            idempotency::expires_at.eq(excluded(idempotency::expires_at)),
        ));
    conn.execute(Prepared { query: statement, keep: true }).await?;
    Ok(())
}

/// Where `channel` is: its epoch and the offset of its last event.
pub async fn head(conn: &mut Conn, generation: &Epoch, channel: &ChannelName) -> Result<Position> {
    let query = channels::table.find(channel.as_str()).select((channels::epoch, channels::head));
    let row: Option<(String, i64)> = conn.maybe(query).await?;
    let (part, head) = row.unwrap_or_default();
    Ok(Position::new(epoch(generation, &part), to_u64(head)))
}

/// The heads of many channels in one statement; a channel without a row is left out.
pub async fn heads(
    conn: &mut Conn,
    generation: &Epoch,
    names: &[ChannelName],
) -> Result<HashMap<String, Position>> {
    let names: Vec<&str> = names.iter().map(ChannelName::as_str).collect();
    let query = channels::table.filter(channels::name.eq_any(names)).select((
        channels::name,
        channels::epoch,
        channels::head,
    ));
    let rows: Vec<(String, String, i64)> = conn.load(query).await?;
    let position = |part: &str, head| Position::new(epoch(generation, part), to_u64(head));
    Ok(rows.into_iter().map(|(name, part, head)| (name, position(&part, head))).collect())
}

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

/// Reads the bounds of `channel`, with retention applied by size and by age.
pub async fn bounds(
    conn: &mut Conn,
    generation: &Epoch,
    channel: &ChannelName,
    retention: Retention,
    now: Ts,
) -> Result<Bounds> {
    let head = head(conn, generation, channel).await?;
    let too_many = head.offset.saturating_sub(retention.events);
    let query = events::table
        .filter(events::channel.eq(channel.as_str()))
        .filter(events::offset.gt(to_i64(too_many)))
        .filter(events::created_at.gt(now.minus(retention.age)))
        .order(events::offset.asc())
        .select(events::offset)
        .limit(1);
    let oldest: Option<i64> = conn.maybe(query).await?;
    // An event may have been appended since the head was read: never report past it.
    let before_oldest = oldest.map_or(head.offset, |offset| to_u64(offset - 1).min(head.offset));
    Ok(Bounds { head, before_oldest })
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

/// Reads up to `limit` events after `from` (`None`: from the oldest retained), up to the head and
/// no further than `until` where that is given.
#[expect(clippy::too_many_arguments, reason = "all are needed, and they are of different types")]
pub async fn page(
    conn: &mut Conn,
    generation: &Epoch,
    channel: &ChannelName,
    retention: Retention,
    now: Ts,
    from: Option<&Position>,
    until: Option<u64>,
    limit: u32,
) -> Result<Page> {
    let bounds = bounds(conn, generation, channel, retention, now).await?;
    if from.is_some_and(|position| !bounds.covers(position)) {
        return Ok(Page::Lost(bounds));
    }
    let after = from.map_or(bounds.before_oldest, |position| position.offset);
    let until = until.map_or(bounds.head.offset, |until| until.min(bounds.head.offset));
    let events = read_after(conn, channel, after, until, limit).await?;
    // The janitor may have trimmed between the two statements.
    let whole = events.iter().zip(after + 1..).all(|(event, expected)| event.offset == expected);
    let complete = events.len() as u64 == (until.saturating_sub(after)).min(u64::from(limit));
    if whole && complete { Ok(Page::Events { events, bounds }) } else { Ok(Page::Lost(bounds)) }
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
    let query = events::table
        .filter(events::channel.eq(channel.as_str()))
        .filter(events::offset.gt(to_i64(after)))
        .filter(events::offset.le(to_i64(until)))
        .order(events::offset.asc())
        .limit(i64::from(limit))
        .select(COLUMNS);
    let rows: Vec<Row> = conn.load(query).await?;
    Ok(rows.into_iter().map(Event::from).collect())
}

/// The newest `limit` events of `channel`, newest first, with retention applied.
pub async fn latest(
    conn: &mut Conn,
    channel: &ChannelName,
    retention: Retention,
    now: Ts,
    limit: u32,
) -> Result<Vec<Event>> {
    let query = events::table
        .filter(events::channel.eq(channel.as_str()))
        .filter(events::created_at.gt(now.minus(retention.age)))
        .order(events::offset.desc())
        .limit(i64::from(limit).min(to_i64(retention.events)))
        .select(COLUMNS);
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

/// Up to `limit` channel names after `after`, in order: how the janitor walks over them all.
pub async fn names_after(conn: &mut Conn, after: &str, limit: u32) -> Result<Vec<ChannelName>> {
    let query = channels::table
        .filter(channels::name.gt(after))
        .order(channels::name.asc())
        .limit(i64::from(limit))
        .select(channels::name);
    let names: Vec<String> = conn.load(query).await?;
    Ok(names.iter().filter_map(|name| ChannelName::parse(name).ok()).collect())
}

/// The id of the event at `offset`, if it is still there.
pub async fn event_id_at(conn: &mut Conn, channel: &ChannelName, offset: u64) -> Result<Option<Uuid>> {
    let query = events::table.find((channel.as_str(), to_i64(offset))).select(events::event_id);
    let id: Option<Id> = conn.maybe(query).await?;
    Ok(id.map(|id| id.0))
}

/// Gives `channel` a new epoch if its head is still below `known`: the log has lost events that
/// were accepted, and must not count on in the history that had them.
pub async fn renew_epoch(
    conn: &mut Conn,
    channel: &ChannelName,
    known: u64,
    part: &str,
    now: Ts,
) -> Result<()> {
    let row = (channels::name.eq(channel.as_str()), channels::head.eq(0), channels::updated_at.eq(now));
    conn.execute(diesel::insert_into(channels::table).values(row).on_conflict(channels::name).do_nothing())
        .await?;
    let behind =
        channels::table.filter(channels::name.eq(channel.as_str())).filter(channels::head.lt(to_i64(known)));
    conn.execute(diesel::update(behind).set(channels::epoch.eq(part))).await?;
    Ok(())
}

/// Gives `channel` a new epoch if it still has `old`: the log holds another event where one of `old`
/// was delivered, so it is another history. Two nodes that notice it change the epoch once.
pub async fn leave_epoch(
    conn: &mut Conn,
    generation: &Epoch,
    channel: &ChannelName,
    old: &Epoch,
    part: &str,
) -> Result<()> {
    let old_part = match old.as_str().strip_prefix(generation.as_str()) {
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
pub async fn trim(conn: &mut Conn, channel: &ChannelName, bounds: &Bounds, batch: u32) -> Result<usize> {
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
pub async fn clear(conn: &mut Conn, channel: &ChannelName) -> Result<usize> {
    conn.execute(diesel::delete(events::table.filter(events::channel.eq(channel.as_str())))).await
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

impl From<Row> for Event {
    fn from(row: Row) -> Self {
        Self {
            offset: to_u64(row.offset),
            id: row.event_id.0,
            kind: row.kind.into(),
            data: row.data.into(),
            tags: row.tags.map(Arc::from),
            info: row.info.map(Arc::from),
            delta: Delta::No,
        }
    }
}
