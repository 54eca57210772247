//! Replay meets live. While an entry is on hold, what is announced waits in it; this reads the log
//! from the client's position to the head, pushes it at the reader's pace, and then lets the entry
//! go live behind the last event it pushed. If what was held does not join on, it reads again.

use std::time::Duration;

use super::effect::{Replay, Since};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::hub::fanout::{Entry, Release};
use crate::hub::outbox::Refused;
use crate::store::log::{self, Page};
use crate::store::{self, Store};

/// Events in one read.
const PAGE: u32 = 256;
/// How long to wait before the log is read again after the store did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// Lets `entry` go live behind `start`. Everything after `joined` reaches the entry by itself, so
/// who starts there needs no read. `start` is `None` where nothing is kept.
pub async fn begin(
    store: &Store,
    entry: &Entry,
    kept: Option<Retention>,
    start: Option<Position>,
    joined: Option<&Position>,
) -> Result<(), Refused> {
    let (Some(retention), Some(mut position)) = (kept, start) else {
        entry.release(None);
        return Ok(());
    };
    if joined == Some(&position) {
        if entry.release(Some(position.clone())) == Release::Live {
            return Ok(());
        }
        // Part of what was held may have been pushed.
        position = entry.take_resume_position().unwrap_or(position);
    }
    catch_up(store, entry, retention, position).await
}

/// Brings `entry`, which is on hold, from `position` to the head and live. Ends also when the place
/// is gone and it is for the connection's keeper to go on.
pub async fn catch_up(
    store: &Store,
    entry: &Entry,
    retention: Retention,
    mut position: Position,
) -> Result<(), Refused> {
    let mut fruitless = 0;
    loop {
        if entry.is_over() {
            return Err(Refused::Closed);
        }
        let (events, bounds) = match read(store, entry, retention, position.clone()).await {
            Ok(Page::Events { events, bounds }) => (events, bounds),
            Ok(Page::Lost(bounds)) => {
                entry.push_reset(&bounds)?;
                if entry.is_told_by_keeper() {
                    return Ok(());
                }
                position = bounds.head.clone();
                (Vec::new(), bounds)
            }
            Err(error) => {
                tracing::warn!(channel = %entry.channel(), %error, "a replay waits for the store");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        fruitless = if events.is_empty() { fruitless + 1 } else { 0 };
        // What was announced is not in the log: the channel will find out, and say so.
        if fruitless > 2 {
            tokio::time::sleep(RETRY).await;
        }
        for piece in pieces(events, entry.piece()) {
            let last = piece.last().map_or(position.offset, |event| event.offset);
            entry.room().await;
            entry.replay(&position.epoch, piece)?;
            position.offset = last;
        }
        if position.offset >= bounds.head.offset {
            if entry.release(Some(position.clone())) == Release::Live {
                return Ok(());
            }
            position = entry.take_resume_position().unwrap_or(position);
        }
    }
}

/// A page in pieces of about `size` bytes: a page of large events is too much to lie in memory for
/// every reader that comes back at the same time.
fn pieces(events: Vec<Event>, size: usize) -> Vec<Vec<Event>> {
    let mut pieces: Vec<Vec<Event>> = Vec::new();
    let mut room = 0;
    for event in events {
        let length = event.data.len();
        match pieces.last_mut().filter(|_| length <= room) {
            Some(piece) => {
                piece.push(event);
                room -= length;
            }
            None => {
                pieces.push(vec![event]);
                room = size.saturating_sub(length);
            }
        }
    }
    pieces
}

async fn read(store: &Store, entry: &Entry, retention: Retention, from: Position) -> store::Result<Page> {
    let (asked, channel) = (store.clone(), entry.channel().clone());
    store
        .read(move |conn| {
            Box::pin(async move {
                let (generation, now) = (asked.generation(), asked.timestamp());
                log::page(conn, &generation, &channel, retention, now, Some(&from), None, PAGE).await
            })
        })
        .await
}

/// How much is replayed to a client that comes back; with more it begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecoveryLimit {
    /// Events.
    pub events: u64,
    /// Bytes of their data.
    pub bytes: usize,
}

/// What `channel` has for a client that comes back from `since`: everything up to the head, whole,
/// or nothing (protocol §7.3). Also where the log ends, which the channel here may not have heard
/// yet: after a failover that is another history.
pub async fn recover(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
    limit: RecoveryLimit,
) -> store::Result<(Replay, Position)> {
    let (asked, channel) = (store.clone(), channel.clone());
    store
        .read(move |conn| {
            Box::pin(async move {
                let (generation, now) = (asked.generation(), asked.timestamp());
                let bounds = log::bounds(conn, &generation, &channel, retention, now).await?;
                let epoch = bounds.head.epoch.clone();
                let known = since.epoch.is_empty() || since.epoch == epoch.as_str();
                let start = Position::new(epoch, since.offset);
                if !known || !bounds.covers(&start) || bounds.head.offset - start.offset > limit.events {
                    return Ok((Replay::Lost, bounds.head));
                }
                let (mut missed, mut bytes) = (Vec::new(), 0);
                let mut after = start.offset;
                while after < bounds.head.offset {
                    let page = log::read_after(conn, &channel, after, bounds.head.offset, PAGE).await?;
                    bytes += page.iter().map(|event| event.data.len()).sum::<usize>();
                    // The janitor may have trimmed since the bounds were read.
                    let whole = page.iter().zip(after + 1..).all(|(event, offset)| event.offset == offset);
                    let Some(last) = page.last().filter(|_| whole && bytes <= limit.bytes) else {
                        return Ok((Replay::Lost, bounds.head));
                    };
                    after = last.offset;
                    missed.extend(page);
                }
                Ok((Replay::Found(start, missed), bounds.head))
            })
        })
        .await
}

/// The same where only the latest publication counts (protocol §7.5): it, unless the client has it.
pub async fn recover_latest(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
) -> store::Result<(Replay, Position)> {
    let (asked, channel) = (store.clone(), channel.clone());
    store
        .read(move |conn| {
            Box::pin(async move {
                let (generation, now) = (asked.generation(), asked.timestamp());
                let head = log::head(conn, &generation, &channel).await?;
                if since.offset > 0 && since.offset == head.offset && since.epoch == head.epoch.as_str() {
                    return Ok((Replay::Found(head.clone(), Vec::new()), head));
                }
                let mut latest = log::latest(conn, &channel, retention, now, 1).await?;
                // One that was appended since the head was read comes live.
                latest.retain(|event| event.offset >= head.offset);
                let replay = latest.pop().map_or(Replay::Lost, |event| {
                    Replay::Found(Position::new(head.epoch.clone(), event.offset), vec![event])
                });
                Ok((replay, head))
            })
        })
        .await
}
