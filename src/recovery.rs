//! Recovery: the transition from stored events to live ones. While a subscriber is paused, announced
//! events are kept in it. This module reads the log from the client's position to the head, pushes the
//! events as fast as the client reads them, and then lets the subscriber go live after the last one. If
//! the events kept in the subscriber do not follow on from there, it reads again.

use std::time::Duration;

use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::hub::fanout::{Resume, Subscriber};
use crate::hub::outbox::PushError;
use crate::session::effect::{Replay, Since};
use crate::store::log::{self, Page, PageRequest};
use crate::store::{self, Store};

/// The number of events in one read, and in the first one, which shows how large they are.
const PAGE: u32 = 256;
const FIRST_PAGE: u32 = 64;
/// The same for a reply, which nobody's reading slows down.
const FIRST_RECOVERED: u32 = 128;
/// Bytes of a page.
const PAGE_BYTES: usize = 1 << 20;
/// How long to wait before the log is read again after an error of the store.
const RETRY: Duration = Duration::from_millis(500);

/// Lets `subscriber` go live after `start`. Everything after `joined` reaches the subscriber without a read, so
/// nothing is read if the two are equal. `start` is `None` if the channel has no history.
pub async fn begin(
    store: &Store,
    subscriber: &Subscriber,
    kept: Option<Retention>,
    start: Option<Position>,
    joined: Option<&Position>,
) -> Result<(), PushError> {
    let (Some(retention), Some(mut position)) = (kept, start) else {
        subscriber.resume(None);
        return Ok(());
    };
    if joined == Some(&position) {
        if subscriber.resume(Some(position.clone())) == Resume::Live {
            return Ok(());
        }
        // Part of what was held may have been pushed.
        position = subscriber.take_resume_position().unwrap_or(position);
    }
    catch_up(store, subscriber, retention, position).await
}

/// Reads the log from `position` to the head for a `subscriber` that is paused, and lets it go live. Also
/// ends if the position is lost and the connection has to handle that.
pub async fn catch_up(
    store: &Store,
    subscriber: &Subscriber,
    retention: Retention,
    mut position: Position,
) -> Result<(), PushError> {
    let (mut fruitless, mut limit) = (0, FIRST_PAGE);
    loop {
        // One page of a connection is in memory at a time, whatever it follows.
        let turn = subscriber.replay_turn().await;
        if subscriber.is_closed() {
            return Err(PushError::Closed);
        }
        let (events, bounds) = match read(store, subscriber, retention, position.clone(), limit).await {
            Ok(Page::Events { events, bounds }) => (events, bounds),
            Ok(Page::Lost(bounds)) => {
                subscriber.push_reset(&bounds)?;
                if subscriber.listener_reports_loss() {
                    return Ok(());
                }
                position = bounds.head.clone();
                (Vec::new(), bounds)
            }
            Err(error) => {
                tracing::warn!(channel = %subscriber.channel(), %error, "a replay waits for the store");
                drop(turn);
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        limit = next_page(&events, subscriber.chunk_size().saturating_mul(4));
        fruitless = if events.is_empty() { fruitless + 1 } else { 0 };
        // An announced event is not in the log: the channel actor will detect that and report it.
        if fruitless > 2 {
            tokio::time::sleep(RETRY).await;
        }
        for chunk in chunks(events, subscriber.chunk_size()) {
            let last = chunk.last().map_or(position.offset, |event| event.offset);
            subscriber.wait_for_capacity().await;
            subscriber.replay(&position.epoch, chunk)?;
            position.offset = last;
        }
        if position.offset >= bounds.head.offset {
            if subscriber.resume(Some(position.clone())) == Resume::Live {
                return Ok(());
            }
            position = subscriber.take_resume_position().unwrap_or(position);
        }
    }
}

/// Splits a page into chunks of about `size` bytes: a page of large events is too much to keep in
/// memory for every client that returns at the same time.
fn chunks(events: Vec<Event>, size: usize) -> Vec<Vec<Event>> {
    let mut chunks: Vec<Vec<Event>> = Vec::new();
    let mut space = 0;
    for event in events {
        let length = event.data.len();
        match chunks.last_mut().filter(|_| length <= space) {
            Some(chunk) => {
                chunk.push(event);
                space -= length;
            }
            None => {
                chunks.push(vec![event]);
                space = size.saturating_sub(length);
            }
        }
    }
    chunks
}

async fn read(
    store: &Store,
    subscriber: &Subscriber,
    retention: Retention,
    from: Position,
    limit: u32,
) -> store::Result<Page> {
    let channel = subscriber.channel().clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let asked = PageRequest { from: Some(&from), until: None, limit, bytes: None };
                tx.page(&channel, retention, asked).await
            })
        })
        .await
}

/// How many events probably have `bytes` if they are like `events`.
fn next_page(events: &[Event], bytes: usize) -> u32 {
    let length: usize = events.iter().map(|event| event.data.len()).sum();
    let average = length / events.len().max(1);
    u32::try_from(bytes / average.max(1)).map_or(PAGE, |fits| fits.clamp(1, PAGE))
}

/// How much a returning client can recover; a client that has missed more must start over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecoveryLimit {
    pub events: u64,
    /// Bytes of their data.
    pub bytes: usize,
}

/// What a returning client may have missed. Clients that return to the same position share a read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecoveryRequest {
    pub channel: ChannelName,
    pub retention: Retention,
    pub since: Since,
    pub limit: RecoveryLimit,
    /// Bytes for which there is room.
    pub room: usize,
    /// Only the latest publication counts.
    pub cache: bool,
}

/// What a returning client gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Recovered {
    /// What it has missed, and the head of the log, which the channel on this node may not know yet: after a
    /// failover it is in another epoch.
    Whole(Replay, Position),
    /// More than there is room for.
    NeedsRoom,
}

impl RecoveryRequest {
    /// Reads it; `None` if the store cannot.
    pub async fn read(self, store: Store) -> Option<Recovered> {
        let Self { channel, retention, since, limit, room, cache } = self;
        let found = match cache {
            true => recover_latest(&store, &channel, retention, since).await,
            false => recover(&store, &channel, retention, since, limit, room).await,
        };
        found.inspect_err(|error| tracing::warn!(%channel, %error, "clients cannot recover")).ok()
    }
}

/// The events of `channel` for a client that returns at `since`: all of them up to the head,
/// or nothing (protocol §7.3).
async fn recover(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
    limit: RecoveryLimit,
    room: usize,
) -> store::Result<Recovered> {
    let channel = channel.clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let bounds = tx.bounds(&channel, retention).await?;
                let epoch = bounds.head.epoch.clone();
                let known = since.epoch.is_empty() || since.epoch == epoch.as_str();
                let start = Position::new(epoch, since.offset);
                if !known || !bounds.covers(&start) || bounds.head.offset - start.offset > limit.events {
                    return Ok(Recovered::Whole(Replay::Lost, bounds.head));
                }
                let mut limit_of_page = FIRST_RECOVERED;
                let (mut missed, mut bytes) = (Vec::new(), 0);
                let mut after = start.offset;
                while after < bounds.head.offset {
                    let page =
                        log::read_after(tx, &channel, after, bounds.head.offset, limit_of_page).await?;
                    bytes += page.iter().map(|event| event.data.len()).sum::<usize>();
                    // The janitor may have trimmed since the bounds were read.
                    let whole = page.iter().zip(after + 1..).all(|(event, offset)| event.offset == offset);
                    let Some(last) = page.last().filter(|_| whole && bytes <= limit.bytes) else {
                        return Ok(Recovered::Whole(Replay::Lost, bounds.head));
                    };
                    if bytes > room {
                        return Ok(Recovered::NeedsRoom);
                    }
                    after = last.offset;
                    limit_of_page = next_page(&page, PAGE_BYTES);
                    missed.extend(page);
                }
                Ok(Recovered::Whole(Replay::Found(start, missed), bounds.head))
            })
        })
        .await
}

/// Recovery of a cache channel (protocol §7.5): the latest publication, unless the client has it.
async fn recover_latest(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
) -> store::Result<Recovered> {
    let channel = channel.clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let head = tx.head(&channel).await?;
                if since.offset > 0 && since.offset == head.offset && since.epoch == head.epoch.as_str() {
                    return Ok(Recovered::Whole(Replay::Found(head.clone(), Vec::new()), head));
                }
                let mut latest = tx.latest(&channel, retention, 1).await?;
                // One that was appended since the head was read comes live.
                latest.retain(|event| event.offset >= head.offset);
                let replay = latest.pop().map_or(Replay::Lost, |event| {
                    Replay::Found(Position::new(head.epoch.clone(), event.offset), vec![event])
                });
                Ok(Recovered::Whole(replay, head))
            })
        })
        .await
}
