//! The connections to Redis: one that publishes, in order and many messages in one write, and one
//! that receives. They are opened and closed together. A ping to oneself every half second shows
//! that Redis still delivers; the bus is not live while one is late, and the connections are closed
//! when it does not arrive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSub, PubSubSink};
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};

use super::HubEvent;
use super::cluster_bus::{ClusterBus, QueuedMessage};
use super::message::BusMessage;
use super::subscriptions::SubscriptionChanges;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;

/// Timeout of connecting, and of a command.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// What is not confirmed after this time is sent by NOTIFY as well.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(200);
/// Between two pings, and between two checks for a late one.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// A ping that takes longer than this leaves in doubt whether messages arrive.
const LATE_PONG: Duration = Duration::from_millis(400);
/// A ping that takes longer than this is lost.
const LOST_PONG: Duration = Duration::from_secs(2);
/// Messages in one write.
const BATCH: usize = 128;
/// Channels in one command.
const CHANNELS_PER_COMMAND: usize = 1_000;
/// Bytes of data in one message, unless a single event has more. Redis disconnects a subscriber that
/// has 32 MB unread.
const MAX_MESSAGE_BYTES: usize = 512 << 10;

/// The connection that publishes.
pub(super) struct RedisConnection {
    publisher: MultiplexedConnection,
    failed: Notify,
}

/// Aborts a task when dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects, and reconnects whenever the connection is lost. Never returns.
pub(super) async fn run(bus: &ClusterBus, client: Client) {
    let mut warned = false;
    loop {
        let why = match timeout(TIMEOUT, connect(&client)).await {
            Ok(Ok((publisher, messages))) => {
                warned = false;
                let why = serve(bus, publisher, messages).await;
                if let Some(redis_queue) = bus.redis_queue() {
                    redis_queue.connection.store(None);
                }
                bus.set_live(false);
                bus.inner().subscriptions.disconnected();
                bus.inner().metrics.redis_reconnects.inc();
                why
            }
            Ok(Err(error)) => reason(&error),
            Err(_) => "no answer".to_owned(),
        };
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(
                why,
                "Redis cannot be used; messages go through PostgreSQL until it can be reached again"
            );
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn connect(client: &Client) -> redis::RedisResult<(MultiplexedConnection, PubSub)> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    let publisher = client.get_multiplexed_async_connection_with_config(&config).await?;
    Ok((publisher, client.get_async_pubsub().await?))
}

/// An error without the address, which may hold a password.
fn reason(error: &RedisError) -> String {
    let detail = error.detail().unwrap_or_default();
    format!("{} {detail}", error.category())
}

/// Publishes and receives until something fails; returns the reason.
async fn serve(bus: &ClusterBus, publisher: MultiplexedConnection, messages: PubSub) -> String {
    let Some(redis_queue) = bus.redis_queue() else { return String::new() };
    let (mut sink, mut messages) = messages.split();
    let names = [redis_queue.broadcast_topic(), redis_queue.node_topic(bus.node())];
    let subscribed = timeout(TIMEOUT, async {
        sink.subscribe(&names).await?;
        bus.inner().subscriptions.connected();
        loop {
            let changes = bus.inner().subscriptions.try_next_changes(CHANNELS_PER_COMMAND);
            if changes == SubscriptionChanges::default() {
                return Ok::<_, RedisError>(());
            }
            apply(bus, &mut sink, changes).await?;
        }
    });
    match subscribed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return reason(&error),
        Err(_) => return "no answer to SUBSCRIBE".to_owned(),
    }
    let connection = Arc::new(RedisConnection { publisher, failed: Notify::new() });
    redis_queue.connection.store(Some(connection.clone()));
    let _sync = AbortOnDrop(tokio::spawn(sync_subscriptions(bus.clone(), sink, connection.clone())));

    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pending_ping, mut next_ping) = (None, Instant::now());
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return "the connection was closed".to_owned() };
                let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else { continue };
                let number = bus.on_redis_message(message.get_channel_name(), text);
                if let (Some(number), Some((expected, since))) = (number, pending_ping)
                    && number == expected
                {
                    let since: Instant = since;
                    bus.inner().metrics.round_trip_seconds.observe(since.elapsed().as_secs_f64());
                    pending_ping = None;
                    bus.set_live(true);
                }
            }
            _ = ticks.tick() => match pending_ping {
                Some((_, since)) if since.elapsed() > LOST_PONG => return "it does not answer".to_owned(),
                Some((_, since)) if since.elapsed() > LATE_PONG => bus.set_live(false),
                Some(_) => {}
                None if Instant::now() < next_ping => {}
                None => {
                    let number = bus.take_number();
                    (pending_ping, next_ping) = (Some((number, Instant::now())), Instant::now() + PING_INTERVAL);
                    ping(bus, &connection, number);
                }
            },
            () = connection.failed.notified() => return "a command failed".to_owned(),
        }
    }
}

/// Sends a ping to oneself, without waiting for it.
fn ping(bus: &ClusterBus, connection: &Arc<RedisConnection>, number: u64) {
    let Some(redis_queue) = bus.redis_queue() else { return };
    let name = redis_queue.node_topic(bus.node());
    let text = BusMessage::Ping.encode(bus.node(), number);
    let mut publisher = connection.publisher.clone();
    tokio::spawn(async move {
        let _: redis::RedisResult<i64> =
            redis::cmd("PUBLISH").arg(name).arg(text).query_async(&mut publisher).await;
    });
}

/// Keeps the subscriptions at Redis equal to those in the table.
async fn sync_subscriptions(bus: ClusterBus, mut sink: PubSubSink, connection: Arc<RedisConnection>) {
    loop {
        let changes = bus.inner().subscriptions.next_changes(CHANNELS_PER_COMMAND).await;
        let changed = timeout(TIMEOUT, apply(&bus, &mut sink, changes)).await;
        if !matches!(changed, Ok(Ok(()))) {
            connection.failed.notify_one();
            return;
        }
    }
}

async fn apply(
    bus: &ClusterBus,
    sink: &mut PubSubSink,
    changes: SubscriptionChanges,
) -> redis::RedisResult<()> {
    let Some(redis_queue) = bus.redis_queue() else { return Ok(()) };
    let names = |channels: &[ChannelName]| {
        channels.iter().map(|one| redis_queue.channel_topic(one)).collect::<Vec<_>>()
    };
    if !changes.unsubscribe.is_empty() {
        sink.unsubscribe(names(&changes.unsubscribe)).await?;
        bus.inner().subscriptions.unsubscribed(&changes.unsubscribe);
    }
    if !changes.subscribe.is_empty() {
        sink.subscribe(names(&changes.subscribe)).await?;
        let missed = bus.inner().subscriptions.confirmed(changes.subscribe);
        if !missed.is_empty() {
            bus.deliver(HubEvent::Check(missed));
        }
    }
    Ok(())
}

/// Publishes the queued messages in order. What Redis does not confirm in time is sent by NOTIFY.
pub(super) async fn send_queued(bus: &ClusterBus, mut queue: mpsc::Receiver<QueuedMessage>) {
    let Some(redis_queue) = bus.redis_queue() else { return };
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let sent = match redis_queue.connection.load_full() {
            Some(connection) if *bus.live().borrow() => {
                let mut commands = redis::pipe();
                for message in &batch {
                    let name = message.topic_name(redis_queue);
                    for text in message.texts(bus) {
                        commands.cmd("PUBLISH").arg(&name).arg(text).ignore();
                    }
                }
                let mut publisher = connection.publisher.clone();
                match timeout(PUBLISH_TIMEOUT, commands.exec_async(&mut publisher)).await {
                    Ok(Ok(())) => true,
                    Ok(Err(_)) => {
                        connection.failed.notify_one();
                        false
                    }
                    Err(_) => {
                        bus.set_live(false);
                        false
                    }
                }
            }
            _ => false,
        };
        for message in batch.drain(..) {
            bus.complete(message, sent);
        }
    }
}

/// Whether these events fit into one message.
pub(super) fn is_small(events: &[Event]) -> bool {
    events.len() == 1 || events.iter().map(|event| event.data.len()).sum::<usize>() <= MAX_MESSAGE_BYTES
}

/// Splits events so that each message stays small.
pub(super) fn chunks(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.data.len();
            bytes <= MAX_MESSAGE_BYTES
        };
        let fitting = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (some, more) = rest.split_at(fitting);
        rest = more;
        (!some.is_empty()).then_some(some)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Delta;
    use uuid::Uuid;

    #[test]
    fn many_large_events_go_in_several_messages() {
        let event = |offset: u64, bytes: usize| Event {
            offset,
            id: Uuid::nil(),
            kind: "k".into(),
            data: "1".repeat(bytes).into(),
            tags: None,
            info: None,
            delta: Delta::No,
        };
        let offsets = |events: &[Event]| -> Vec<Vec<u64>> {
            chunks(events).map(|some| some.iter().map(|event| event.offset).collect()).collect()
        };
        let large = [
            event(1, MAX_MESSAGE_BYTES / 2),
            event(2, MAX_MESSAGE_BYTES / 2),
            event(3, 1),
            event(4, 2 * MAX_MESSAGE_BYTES),
            event(5, 9),
        ];
        assert_eq!(offsets(&large), [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert!(offsets(&[]).is_empty());
    }
}
