//! Appending: all units of a transaction together. Heads are locked and moved by name, then the
//! events are written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::Sqlite;
use diesel::upsert::excluded;

use super::keys::remember;
use super::{IdempotencyKey, LogTx, epoch, known_keys, to_u64};
use crate::domain::event::NewEvent;
use crate::domain::position::{Epoch, Position};
use crate::store::conn::Conn;
use crate::store::dialect::{Fixed, MANY_ROWS, insert_rows, write_rows};
use crate::store::error::Result;
use crate::store::known_heads::Head;
use crate::store::read::ReadTx;
use crate::store::schema::{channels, events};
use crate::store::types::{Id, SqlTs, Ts};

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

/// By the name of the channel.
type Heads = HashMap<String, Head>;

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
struct NewRow {
    channel: String,
    offset: i64,
    event_id: Id,
    kind: String,
    data: String,
    tags: Option<String>,
    info: Option<String>,
    created_at: Ts,
}

/// Appends the events of all `units` in the caller's transaction. Locks all their channels in one
/// statement, in the order of their names. Answers in the order of `units`.
pub async fn append(tx: &mut LogTx<'_>, units: &[Append<'_>]) -> Result<Vec<Appended>> {
    let ReadTx { conn, generation, now } = &mut tx.0;
    let (conn, generation, now): (&mut Conn, &Epoch, Ts) = (conn, generation, *now);
    let events = units.iter().flat_map(|unit| unit.events).map(|event| (event.channel.as_str(), 1));
    // What is not kept may have a key as well, which counts in a channel that has nothing else.
    let keys = units.iter().filter_map(|unit| unit.key).map(|key| (key.channel.as_str(), 0));
    let mut moves = summed(events.chain(keys));
    let count = moves.iter().map(|(_, count)| *count).sum::<i64>();
    let guarded = units.iter().any(|unit| unit.key.is_some() || unit.version.is_some());
    if guarded {
        // How far they move is known only after a look behind the lock.
        moves.iter_mut().for_each(|(_, by)| *by = 0);
    }
    let mut heads = move_heads(conn, &moves, now).await?;
    for (name, by) in moves {
        heads.get_mut(name).expect("every channel was locked").1 -= by;
    }
    let keys: Vec<&IdempotencyKey> = units.iter().filter_map(|unit| unit.key).collect();
    let mut known = known_keys(conn, &keys, now).await?;
    let mut versions = versions_of(conn, units).await?;
    let mut newer: BTreeMap<&str, &Version> = BTreeMap::new();

    let mut rows = Vec::with_capacity(count as usize);
    let mut keys = Vec::new();
    let mut answers = Vec::with_capacity(units.len());
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
            positions.push(Position::new(epoch(generation, part), to_u64(*head)));
            rows.push(NewRow {
                channel: event.channel.as_str().to_owned(),
                offset: *head,
                event_id: Id(event.id),
                kind: event.kind.to_string(),
                data: event.data.to_string(),
                tags: event.tags.as_deref().map(str::to_owned),
                info: event.info.as_deref().map(str::to_owned),
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
    if guarded && !rows.is_empty() {
        let moves = summed(rows.iter().map(|row: &NewRow| (row.channel.as_str(), 1)));
        move_heads(conn, &moves, now).await?;
    }
    insert_rows!(conn, rows, |values| diesel::insert_into(events::table).values(values));
    for (key, position) in keys {
        remember(conn, key, &position).await?;
    }
    for (channel, version) in newer {
        let shown = (channels::version.eq(version.number), channels::version_epoch.eq(&version.epoch));
        conn.execute(diesel::update(channels::table.find(channel)).set(shown)).await?;
    }
    Ok(answers)
}

/// The sum for each channel, in the order of their names.
fn summed<'a>(moves: impl Iterator<Item = (&'a str, i64)>) -> Vec<(&'a str, i64)> {
    let mut moves: Vec<_> = moves.collect();
    moves.sort_unstable_by_key(|(name, _)| *name);
    moves.dedup_by(|(name, by), (kept, sum)| {
        let same = name == kept;
        *sum += if same { *by } else { 0 };
        same
    });
    moves
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
async fn move_heads(conn: &mut Conn, moves: &[(&str, i64)], now: Ts) -> Result<Heads> {
    let mut heads = Heads::with_capacity(moves.len());
    let rest = move_many_heads(conn, moves, now, &mut heads).await?;
    let rest = move_known_heads(conn, rest, now, &mut heads)?;
    let row = |(name, by): &(&str, i64)| {
        (channels::name.eq((*name).to_owned()), channels::head.eq(*by), channels::updated_at.eq(now))
    };
    let rows: Vec<_> = rest.iter().map(row).collect();
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
    heads.extend(moved.into_iter().map(|(name, part, head)| (name, (part, head))));
    if let Conn::Sqlite { heads: known, .. } = conn {
        heads.iter().for_each(|(name, head)| known.learn(name, head.clone()));
    }
    Ok(heads)
}

/// Moves the heads that the connection knows, which need not be read. Answers the moves that are left.
fn move_known_heads<'m>(
    conn: &mut Conn,
    moves: Vec<(&'m str, i64)>,
    now: Ts,
    moved: &mut Heads,
) -> Result<Vec<(&'m str, i64)>> {
    let Conn::Sqlite { conn, heads, .. } = conn else { return Ok(moves) };
    let mut rest = Vec::new();
    for (name, by) in moves {
        match heads.of(name) {
            // It is no longer there if another process was here.
            Some((part, head)) if MoveHead { name, part, head: *head, by, now }.execute(conn)? == 1 => {
                moved.insert(name.to_owned(), (part.clone(), head + by));
            }
            _ => rest.push((name, by)),
        }
    }
    Ok(rest)
}

/// Moves a head that is where it is known to be. Diesel would have its own UPDATE parsed each time.
struct MoveHead<'a> {
    name: &'a str,
    part: &'a str,
    head: i64,
    by: i64,
    now: Ts,
}

impl QueryFragment<Sqlite> for MoveHead<'_> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        pass.push_sql("UPDATE channels SET head = head + ");
        pass.push_bind_param::<BigInt, _>(&self.by)?;
        pass.push_sql(", updated_at = ");
        pass.push_bind_param::<SqlTs, _>(&self.now)?;
        pass.push_sql(" WHERE name = ");
        pass.push_bind_param::<Text, _>(self.name)?;
        pass.push_sql(" AND epoch = ");
        pass.push_bind_param::<Text, _>(self.part)?;
        pass.push_sql(" AND head = ");
        pass.push_bind_param::<BigInt, _>(&self.head)
    }
}

impl QueryId for MoveHead<'_> {
    type QueryId = MoveHead<'static>;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl RunQueryDsl<SqliteConnection> for MoveHead<'_> {}

/// On SQLite, where an upsert takes one row: moves the heads of [`MANY_ROWS`] channels at a time, and
/// creates as many. Nobody else writes there, so a channel that is not found stays missing. Answers
/// the moves that are left.
async fn move_many_heads<'m>(
    conn: &mut Conn,
    moves: &'m [(&'m str, i64)],
    now: Ts,
    heads: &mut Heads,
) -> Result<Vec<(&'m str, i64)>> {
    if moves.len() < MANY_ROWS || conn.is_postgres() {
        return Ok(moves.to_vec());
    }
    let mut alike: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for (name, by) in moves {
        alike.entry(*by).or_default().push(name);
    }
    let mut rest = Vec::new();
    let mut missing = Vec::new();
    for (by, names) in alike {
        let many = names.chunks_exact(MANY_ROWS);
        rest.extend(many.remainder().iter().map(|name| (*name, by)));
        for names in many {
            struct ManyHeads;
            let query = diesel::update(channels::table.filter(channels::name.eq_any(names.to_vec())))
                .set((channels::head.eq(channels::head + by), channels::updated_at.eq(now)))
                .returning((channels::name, channels::epoch, channels::head));
            let moved: Vec<(String, String, i64)> = conn.load(Fixed::new::<ManyHeads>(query)).await?;
            let all = moved.len() == names.len();
            heads.extend(moved.into_iter().map(|(name, part, head)| (name, (part, head))));
            if !all {
                missing
                    .extend(names.iter().filter(|name| !heads.contains_key(**name)).map(|name| (*name, by)));
            }
        }
    }
    let many = missing.chunks_exact(MANY_ROWS);
    rest.extend_from_slice(many.remainder());
    for moves in many {
        let row = |i: usize| {
            let (name, by) = moves[i];
            (channels::name.eq(name.to_owned()), channels::head.eq(by), channels::updated_at.eq(now))
        };
        let rows: [_; MANY_ROWS] = std::array::from_fn(row);
        conn.execute(diesel::insert_into(channels::table).values(rows)).await?;
        heads.extend(moves.iter().map(|(name, by)| ((*name).to_owned(), (String::new(), *by))));
    }
    Ok(rest)
}
