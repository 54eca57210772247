//! The connections to Redis: one that publishes, in order and many messages in one write, and one
//! that receives. They are opened and closed together. A ping to oneself every half second shows
//! that Redis still delivers; the bus is not live while one is late, and the connections are closed
//! when it does not arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{MultiplexedConnection, PubSub, PubSubSink};
use ::redis::{AsyncConnectionConfig, Client, RedisError};
use arc_swap::ArcSwapOption;
use futures_util::StreamExt as _;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use uuid::Uuid;

use super::message::BusMessage;
use super::metrics::Metrics;
use super::packet::Packets;
use super::subscriptions::{SubscriptionChanges, Subscriptions};
use crate::domain::channel::ChannelName;
use crate::supervision;

/// Timeout of connecting, and of a command.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// What is not confirmed after this time is sent by NOTIFY as well.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(200);
/// Between two pings, and between two checks for a late one.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// One of so many pings goes to the other nodes.
const PINGS_PER_BROADCAST: u64 = 4;
/// How long the key is there that shows that Redis can be written.
const WRITTEN_FOR: Duration = Duration::from_secs(10);
/// A ping that takes longer than this leaves in doubt whether messages arrive.
const LATE_PONG: Duration = Duration::from_millis(400);
/// A ping that takes longer than this is lost.
const LOST_PONG: Duration = Duration::from_secs(2);
/// Messages in one write.
const BATCH: usize = 128;
/// Channels in one command.
const CHANNELS_PER_COMMAND: usize = 1_000;
/// The most messages, and bytes of messages, in the queue; more are not taken.
const MAX_QUEUED: usize = 8_192;
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// Where Redis is and how names begin there.
pub struct RedisOptions {
    pub client: Client,
    /// The configured prefix and the store's id: `campanile:1f…`.
    pub prefix: String,
}

/// What the bus does about what happens here. None of it waits.
pub(super) trait Events: Clone + Send + Sync + 'static {
    /// The next message number of this node.
    fn take_number(&self) -> u64;
    /// Whether Redis delivers, as far as is known.
    fn is_live(&self) -> bool;
    fn set_live(&self, live: bool);
    /// This node says over Redis that it is there; it is to say so by NOTIFY as well.
    fn on_broadcast(&self);
    /// What comes from here on comes over a new connection.
    fn on_connected(&self);
    /// A message came on the topic of `channel`, or on another one. Returns the number of a ping of
    /// this node.
    fn on_message(&self, channel: Option<ChannelName>, text: &str) -> Option<u64>;
    /// Announcements on these channels may have been missed.
    fn on_missed(&self, channels: Vec<ChannelName>);
    /// This message was sent, or could not be.
    fn on_sent(&self, number: u64, message: BusMessage, sent: bool);
}

/// What leads to Redis: the queue of messages, and the topics of this node.
pub(super) struct Redis {
    node: Uuid,
    packets: Packets,
    prefix: String,
    queue: mpsc::Sender<QueuedMessage>,
    queued_bytes: AtomicUsize,
    /// Notified after messages were sent.
    sent: Notify,
    pub(super) subscriptions: Subscriptions,
    connection: ArcSwapOption<Connection>,
    metrics: Arc<Metrics>,
}

pub(super) struct QueuedMessage {
    topic: Topic,
    message: BusMessage,
    number: u64,
    weight: usize,
}

/// Who gets a message.
pub(super) enum Topic {
    Channel(ChannelName),
    All,
    Node(Uuid),
}

impl Redis {
    pub(super) fn new(
        node: Uuid,
        packets: Packets,
        prefix: String,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, mpsc::Receiver<QueuedMessage>) {
        let (queue, messages) = mpsc::channel(MAX_QUEUED);
        let redis = Self {
            node,
            packets,
            prefix,
            queue,
            queued_bytes: AtomicUsize::new(0),
            sent: Notify::new(),
            subscriptions: Subscriptions::default(),
            connection: ArcSwapOption::empty(),
            metrics,
        };
        (Arc::new(redis), messages)
    }

    /// Queues a message, or gives it back if the queue is full.
    pub(super) fn enqueue(&self, topic: Topic, number: u64, message: BusMessage) -> Result<(), BusMessage> {
        let weight = message.weight();
        let queued = QueuedMessage { topic, message, number, weight };
        let full = self.queued_bytes.fetch_add(weight, Ordering::Relaxed) + weight > MAX_QUEUED_BYTES;
        let refused =
            if full { Some(queued) } else { self.queue.try_send(queued).err().map(|e| e.into_inner()) };
        match refused {
            None => Ok(()),
            Some(queued) => {
                self.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
                Err(queued.message)
            }
        }
    }

    /// Completes the next time that messages were sent.
    pub(super) fn sent(&self) -> Notified<'_> {
        self.sent.notified()
    }

    /// Whether everything that was queued has been sent.
    pub(super) fn is_idle(&self) -> bool {
        self.queued_bytes.load(Ordering::SeqCst) == 0
    }

    fn topic(&self, topic: &Topic) -> String {
        match topic {
            Topic::Channel(channel) => self.channel_topic(channel),
            Topic::All => format!("{}:control", self.prefix),
            Topic::Node(node) => format!("{}:node:{}", self.prefix, node.simple()),
        }
    }

    /// What a replica refuses.
    fn write(&self) -> ::redis::Cmd {
        let mut write = ::redis::cmd("SET");
        let key = format!("{}:written:{}", self.prefix, self.node.simple());
        write.arg(key).arg(1).arg("PX").arg(WRITTEN_FOR.as_millis() as u64);
        write
    }

    fn channel_topic(&self, channel: &ChannelName) -> String {
        format!("{}:c:{channel}", self.prefix)
    }

    fn channel_of(&self, topic: &str) -> Option<ChannelName> {
        let name = topic.strip_prefix(&self.prefix)?.strip_prefix(":c:")?;
        ChannelName::parse(name).ok()
    }
}

/// The connection that publishes.
struct Connection {
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
pub(super) async fn run(redis: &Arc<Redis>, client: Client, bus: &impl Events) {
    let mut warned = false;
    loop {
        let why = match timeout(TIMEOUT, connect(redis, &client)).await {
            Ok(Ok((publisher, messages))) => {
                warned = false;
                let why = serve(redis, bus, publisher, messages).await;
                redis.connection.store(None);
                bus.set_live(false);
                redis.subscriptions.disconnected();
                redis.metrics.redis_reconnects.inc();
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

async fn connect(redis: &Redis, client: &Client) -> ::redis::RedisResult<(MultiplexedConnection, PubSub)> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    let mut publisher = client.get_multiplexed_async_connection_with_config(&config).await?;
    match redis.write().query_async(&mut publisher).await {
        Err(error) if is_replica(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    Ok((publisher, client.get_async_pubsub().await?))
}

/// Whether Redis is a replica: what is published there reaches nobody who is connected elsewhere.
fn is_replica(error: &RedisError) -> bool {
    error.code() == Some("READONLY")
}

/// An error without the address, which may hold a password.
fn reason(error: &RedisError) -> String {
    let detail = error.detail().unwrap_or_default();
    format!("{} {detail}", error.category())
}

/// Publishes and receives until something fails; returns the reason.
async fn serve(
    redis: &Arc<Redis>,
    bus: &impl Events,
    publisher: MultiplexedConnection,
    messages: PubSub,
) -> String {
    let (mut sink, mut messages) = messages.split();
    let names = [redis.topic(&Topic::All), redis.topic(&Topic::Node(redis.node))];
    let subscribed = timeout(TIMEOUT, async {
        sink.subscribe(&names).await?;
        redis.subscriptions.connected();
        loop {
            let changes = redis.subscriptions.try_next_changes(CHANNELS_PER_COMMAND);
            if changes == SubscriptionChanges::default() {
                return Ok::<_, RedisError>(());
            }
            apply(redis, bus, &mut sink, changes).await?;
        }
    });
    match subscribed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return reason(&error),
        Err(_) => return "no answer to SUBSCRIBE".to_owned(),
    }
    let connection = Arc::new(Connection { publisher, failed: Notify::new() });
    redis.connection.store(Some(connection.clone()));
    let sync = sync_subscriptions(redis.clone(), bus.clone(), sink, connection.clone());
    let _sync = AbortOnDrop(tokio::spawn(supervision::critical(sync)));

    bus.on_connected();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pending_ping, mut next_ping, mut number_of_ping) = (None, Instant::now(), 0_u64);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return "the connection was closed".to_owned() };
                let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) else { continue };
                let number = bus.on_message(redis.channel_of(message.get_channel_name()), text);
                if let (Some(number), Some((expected, since))) = (number, pending_ping)
                    && number == expected
                {
                    let since: Instant = since;
                    redis.metrics.round_trip_seconds.observe(since.elapsed().as_secs_f64());
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
                    ping(redis, &connection, number);
                    if number_of_ping % PINGS_PER_BROADCAST == 0 {
                        broadcast(redis, &connection, bus.take_number());
                        bus.on_broadcast();
                    }
                    number_of_ping += 1;
                }
            },
            () = connection.failed.notified() => return "a command failed".to_owned(),
        }
    }
}

/// Sends a ping to oneself and writes, without waiting for it.
fn ping(redis: &Redis, connection: &Arc<Connection>, number: u64) {
    let mut commands = ::redis::pipe();
    commands.add_command(redis.write()).ignore();
    let text = redis.packets.encode(number, &BusMessage::Ping);
    commands.cmd("PUBLISH").arg(redis.topic(&Topic::Node(redis.node))).arg(text).ignore();
    let connection = connection.clone();
    tokio::spawn(async move {
        let done = commands.exec_async(&mut connection.publisher.clone()).await;
        if done.is_err_and(|error| is_replica(&error)) {
            connection.failed.notify_one();
        }
    });
}

/// Sends a ping to the other nodes, without waiting for it.
fn broadcast(redis: &Redis, connection: &Connection, number: u64) {
    let text = redis.packets.encode(number, &BusMessage::Ping);
    let topic = redis.topic(&Topic::All);
    let mut publisher = connection.publisher.clone();
    tokio::spawn(async move {
        let _: ::redis::RedisResult<i64> =
            ::redis::cmd("PUBLISH").arg(topic).arg(text).query_async(&mut publisher).await;
    });
}

/// Keeps the subscriptions at Redis equal to those in the table.
async fn sync_subscriptions(
    redis: Arc<Redis>,
    bus: impl Events,
    mut sink: PubSubSink,
    connection: Arc<Connection>,
) {
    loop {
        let changes = redis.subscriptions.next_changes(CHANNELS_PER_COMMAND).await;
        let changed = timeout(TIMEOUT, apply(&redis, &bus, &mut sink, changes)).await;
        if !matches!(changed, Ok(Ok(()))) {
            connection.failed.notify_one();
            return;
        }
    }
}

async fn apply(
    redis: &Redis,
    bus: &impl Events,
    sink: &mut PubSubSink,
    changes: SubscriptionChanges,
) -> ::redis::RedisResult<()> {
    let names =
        |channels: &[ChannelName]| channels.iter().map(|one| redis.channel_topic(one)).collect::<Vec<_>>();
    if !changes.unsubscribe.is_empty() {
        sink.unsubscribe(names(&changes.unsubscribe)).await?;
        redis.subscriptions.unsubscribed(&changes.unsubscribe);
    }
    if !changes.subscribe.is_empty() {
        sink.subscribe(names(&changes.subscribe)).await?;
        let missed = redis.subscriptions.confirmed(changes.subscribe);
        if !missed.is_empty() {
            bus.on_missed(missed);
        }
    }
    Ok(())
}

/// Publishes the queued messages in order. What Redis does not confirm in time counts as not sent.
pub(super) async fn send_queued(redis: &Redis, mut queue: mpsc::Receiver<QueuedMessage>, bus: &impl Events) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let sent = match redis.connection.load_full() {
            Some(connection) if bus.is_live() => publish(redis, &connection, &batch, bus).await,
            _ => false,
        };
        for QueuedMessage { message, number, weight, .. } in batch.drain(..) {
            bus.on_sent(number, message, sent);
            redis.queued_bytes.fetch_sub(weight, Ordering::SeqCst);
        }
        redis.sent.notify_waiters();
    }
}

async fn publish(redis: &Redis, connection: &Connection, batch: &[QueuedMessage], bus: &impl Events) -> bool {
    let mut commands = ::redis::pipe();
    for QueuedMessage { topic, message, number, .. } in batch {
        let topic = redis.topic(topic);
        for text in redis.packets.encode_in_parts(*number, message) {
            commands.cmd("PUBLISH").arg(&topic).arg(text).ignore();
        }
    }
    let mut publisher = connection.publisher.clone();
    match timeout(PUBLISH_TIMEOUT, commands.exec_async(&mut publisher)).await {
        Ok(Ok(())) => return true,
        Ok(Err(_)) => connection.failed.notify_one(),
        Err(_) => bus.set_live(false),
    }
    false
}
