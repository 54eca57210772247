//! Builds: who made each, and for which account. A build exists from its first event until none of
//! its events is retained; the events are in the log.
//! Must hold: owner and account of an id never change, not even when its build is forgotten.

use diesel::prelude::*;
use diesel::query_dsl::methods as on_conflict;
use diesel::upsert::excluded;
use uuid::Uuid;

use super::conn::Conn;
use super::dialect::Prepared;
use super::error::Result;
use super::schema::{builds as table, channels, events};
use super::types::{Id, Ts};
use crate::domain::channel::ChannelName;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The user who made it.
    pub owner: String,
    /// The account whose members may see it too.
    pub org: Option<String>,
}

/// The build `id`, if there is one.
pub async fn get(conn: &mut Conn, id: Uuid) -> Result<Option<Build>> {
    let query = table::table.find(Id(id)).select((table::owner, table::org));
    let row: Option<(String, Option<String>)> = conn.maybe(query).await?;
    Ok(row.map(|(owner, org)| Build { owner, org }))
}

/// Whether the id was one of a build that is forgotten, or its channel carried events without a
/// build. Nobody may begin there: whoever still listens was let in to something else.
pub async fn is_used_up(conn: &mut Conn, id: Uuid) -> Result<bool> {
    let channel = ChannelName::build(id);
    let used = channels::table.filter(channels::name.eq(channel.as_str())).filter(channels::head.gt(0));
    let head: Option<i64> = conn.maybe(used.select(channels::head)).await?;
    Ok(head.is_some() && get(conn, id).await?.is_none())
}

/// Notes that something happened in the build `id`, which begins with it as `build` if there is
/// none. Answers whether that may be: the build of another owner is not touched, and neither is an
/// id that is used up.
pub async fn touch(conn: &mut Conn, id: Uuid, build: &Build, now: Ts) -> Result<bool> {
    let ours = table::table.find(Id(id)).filter(table::owner.eq(&build.owner));
    if conn.execute(diesel::update(ours).set(table::last_event_at.eq(now))).await? > 0 {
        return Ok(true);
    }
    if is_used_up(conn, id).await? {
        return Ok(false);
    }
    let values = (
        table::id.eq(Id(id)),
        table::owner.eq(&build.owner),
        table::org.eq(build.org.as_deref()),
        table::created_at.eq(now),
        table::last_event_at.eq(now),
    );
    // Somebody may have made it meanwhile; if that was its owner, it is the same build.
    let upsert = diesel::insert_into(table::table)
        .values(values)
        .on_conflict(table::id)
        .do_update()
        .set(table::last_event_at.eq(excluded(table::last_event_at)));
    let upsert = on_conflict::FilterDsl::filter(upsert, table::owner.eq(&build.owner));
    Ok(conn.execute(Prepared { query: upsert, keep: true }).await? > 0)
}

/// Forgets builds of which nothing younger than `cutoff` is left, looking at no more than `batch`
/// of them. Answers how many it looked at and how many are gone. One that somebody else told of (by
/// the server API) is looked at again later.
pub async fn forget(conn: &mut Conn, cutoff: Ts, now: Ts, batch: u32) -> Result<(usize, usize)> {
    let old = table::table
        .filter(table::last_event_at.le(cutoff))
        .order(table::last_event_at.asc())
        .limit(i64::from(batch))
        .select(table::id);
    let old: Vec<Id> = conn.load(old).await?;
    let mut gone = 0;
    for id in &old {
        let channel = ChannelName::build(id.0);
        let young = events::table
            .filter(events::channel.eq(channel.as_str()))
            .filter(events::created_at.gt(cutoff))
            .select(events::offset)
            .limit(1);
        let young: Option<i64> = conn.maybe(young).await?;
        let row = table::table.find(*id).filter(table::last_event_at.le(cutoff));
        if young.is_some() {
            conn.execute(diesel::update(row).set(table::last_event_at.eq(now))).await?;
        } else {
            gone += conn.execute(diesel::delete(row)).await?;
        }
    }
    Ok((old.len(), gone))
}
