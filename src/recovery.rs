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

/// The number of events in one read.
const PAGE: u32 = 256;
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
    let mut fruitless = 0;
    loop {
        if subscriber.is_closed() {
            return Err(PushError::Closed);
        }
        let (events, bounds) = match read(store, subscriber, retention, position.clone()).await {
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
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
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
) -> store::Result<Page> {
    let channel = subscriber.channel().clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let asked = PageRequest { from: Some(&from), until: None, limit: PAGE };
                tx.page(&channel, retention, asked).await
            })
        })
        .await
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
    /// Only the latest publication counts.
    pub cache: bool,
}

impl RecoveryRequest {
    /// Reads it; `None` if the store cannot.
    pub async fn read(self, store: Store) -> Option<(Replay, Position)> {
        let Self { channel, retention, since, limit, cache } = self;
        let found = match cache {
            true => recover_latest(&store, &channel, retention, since).await,
            false => recover(&store, &channel, retention, since, limit).await,
        };
        found.inspect_err(|error| tracing::warn!(%channel, %error, "clients cannot recover")).ok()
    }
}

/// The events of `channel` for a client that returns at `since`: all of them up to the head,
/// or nothing (protocol §7.3). Also returns the head of the log, which the channel on this node may not
/// know yet: after a failover it is in another epoch.
async fn recover(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
    limit: RecoveryLimit,
) -> store::Result<(Replay, Position)> {
    let channel = channel.clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let bounds = tx.bounds(&channel, retention).await?;
                let epoch = bounds.head.epoch.clone();
                let known = since.epoch.is_empty() || since.epoch == epoch.as_str();
                let start = Position::new(epoch, since.offset);
                if !known || !bounds.covers(&start) || bounds.head.offset - start.offset > limit.events {
                    return Ok((Replay::Lost, bounds.head));
                }
                let (mut missed, mut bytes) = (Vec::new(), 0);
                let mut after = start.offset;
                while after < bounds.head.offset {
                    let page = log::read_after(tx, &channel, after, bounds.head.offset, PAGE).await?;
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

/// Recovery of a cache channel (protocol §7.5): the latest publication, unless the client has it.
async fn recover_latest(
    store: &Store,
    channel: &ChannelName,
    retention: Retention,
    since: Since,
) -> store::Result<(Replay, Position)> {
    let channel = channel.clone();
    store
        .read(move |tx| {
            Box::pin(async move {
                let head = tx.head(&channel).await?;
                if since.offset > 0 && since.offset == head.offset && since.epoch == head.epoch.as_str() {
                    return Ok((Replay::Found(head.clone(), Vec::new()), head));
                }
                let mut latest = tx.latest(&channel, retention, 1).await?;
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
