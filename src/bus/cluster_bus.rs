//! The bus of nodes that share a PostgreSQL. Announcements go out over Redis, each on its channel's
//! topic, in the order of the commits; what Redis has not confirmed in time, or cannot take, is sent
//! by NOTIFY. A node that receives nothing from Redis polls the log twice a second. So Redis makes
//! delivery fast, and nothing depends on it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::message::{BusMessage, DecodeError, Envelope};
use super::metrics::{Carrier, Metrics};
use super::notify::{self, NotifyQueue, Reassembler, split};
use super::redis::{self, RedisConnection};
use super::subscriptions::Subscriptions;
use super::{Announcement, Content, EventHandler, HubEvent, MessageHandler};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::store::Store;
use crate::store::listen_notify::ListenEvent;

/// The most messages, and bytes of messages, in the queue for Redis; more are sent by NOTIFY.
const MAX_QUEUED: usize = 8_192;
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Overhead of a message, in bytes.
const MESSAGE_OVERHEAD: usize = 256;
/// How long a channel waits for Redis to confirm its subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(200);
/// The most recent message numbers kept for each node, to drop duplicates.
const RECENT_PER_NODE: usize = 4_096;
/// The most nodes for which they are kept.
const MAX_NODES: usize = 1_024;

/// Where Redis is and how names begin there.
pub struct RedisOptions {
    pub client: ::redis::Client,
    /// The configured prefix and the store's id: `campanile:1f…`.
    pub prefix: String,
}

/// A handle on the bus of a cluster; cheap to clone.
#[derive(Clone)]
pub struct ClusterBus(Arc<Inner>);

pub(super) struct Inner {
    node: Uuid,
    next_number: AtomicU64,
    redis_queue: Option<RedisQueue>,
    notify_queue: NotifyQueue,
    pub(super) subscriptions: Subscriptions,
    live: watch::Sender<bool>,
    mirroring: AtomicBool,
    received: Mutex<HashMap<Uuid, Recent>>,
    /// Notified after messages were sent to Redis.
    sent: Notify,
    on_event: OnceLock<EventHandler>,
    on_message: OnceLock<MessageHandler>,
    pub(super) metrics: Arc<Metrics>,
}

/// The queue for Redis.
pub(super) struct RedisQueue {
    prefix: String,
    queue: mpsc::Sender<QueuedMessage>,
    queued_bytes: AtomicUsize,
    pub(super) connection: ArcSwapOption<RedisConnection>,
}

/// A message in the queue for Redis.
pub(super) struct QueuedMessage {
    topic: Topic,
    pub(super) message: BusMessage,
    number: u64,
    weight: usize,
}

enum Topic {
    Channel(ChannelName),
    All,
    Node(Uuid),
}

#[derive(Default)]
struct Recent {
    numbers: HashSet<u64>,
    order: VecDeque<u64>,
}

impl ClusterBus {
    /// The bus of the node `node` over `redis`, or by NOTIFY alone, and its task, which never ends.
    /// Must be called on the runtime of the store.
    pub fn new(
        node: Uuid,
        store: Store,
        redis: Option<RedisOptions>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (notify_queue, texts) = NotifyQueue::new();
        let (queue, messages) = mpsc::channel(MAX_QUEUED);
        let (redis_queue, client) = match redis {
            Some(RedisOptions { client, prefix }) => {
                let connection = ArcSwapOption::empty();
                (
                    Some(RedisQueue { prefix, queue, queued_bytes: AtomicUsize::new(0), connection }),
                    Some(client),
                )
            }
            None => (None, None),
        };
        let bus = Self(Arc::new(Inner {
            node,
            next_number: AtomicU64::new(1),
            redis_queue,
            notify_queue,
            subscriptions: Subscriptions::default(),
            live: watch::Sender::new(false),
            mirroring: AtomicBool::new(false),
            received: Mutex::default(),
            sent: Notify::new(),
            on_event: OnceLock::new(),
            on_message: OnceLock::new(),
            metrics,
        }));
        let work = {
            let bus = bus.clone();
            async move {
                let listening = bus.listen(&store);
                let notifying = bus.notify(&store, texts);
                let redis = async {
                    if let Some(client) = client {
                        tokio::join!(redis::run(&bus, client), redis::send_queued(&bus, messages));
                    }
                };
                tokio::join!(listening, notifying, redis);
            }
        };
        (bus, work)
    }

    pub(super) fn node(&self) -> Uuid {
        self.0.node
    }

    pub(super) fn live(&self) -> watch::Receiver<bool> {
        self.0.live.subscribe()
    }

    pub(super) fn set_event_handler(&self, handler: EventHandler) {
        let _ = self.0.on_event.set(handler);
    }

    pub(super) fn set_message_handler(&self, handler: MessageHandler) {
        let _ = self.0.on_message.set(handler);
    }

    /// Waits until everything has been sent.
    pub(super) async fn flush(&self) {
        loop {
            let (sent, idle) = (self.0.sent.notified(), self.0.notify_queue.idle());
            let queued =
                self.0.redis_queue.as_ref().map_or(0, |queue| queue.queued_bytes.load(Ordering::SeqCst));
            if queued == 0 && self.0.notify_queue.is_idle() {
                return;
            }
            tokio::select! {
                () = sent => {}
                () = idle => {}
            }
        }
    }

    pub(super) fn mirror_to_notify(&self, mirroring: bool) {
        self.0.mirroring.store(mirroring, Ordering::Relaxed);
    }

    pub(super) fn publish(&self, event: &HubEvent) {
        match event {
            HubEvent::Appended(announcements) => {
                for announcement in announcements {
                    let to = Topic::Channel(announcement.channel.clone());
                    self.enqueue(to, BusMessage::Appended(announcement.clone()));
                }
            }
            HubEvent::PresenceChanged(channel, change) => {
                self.enqueue(
                    Topic::Channel(channel.clone()),
                    BusMessage::PresenceChanged(channel.clone(), change.clone()),
                );
            }
            HubEvent::Check(channels) => self.0.notify_queue.check(channels.iter().cloned()),
            HubEvent::CheckAll => self.0.notify_queue.check_all(),
        }
    }

    pub(super) fn send(&self, to: Option<Uuid>, text: &str) {
        let message = BusMessage::Direct(to, text.into());
        self.enqueue(to.map_or(Topic::All, Topic::Node), message);
    }

    fn enqueue(&self, topic: Topic, message: BusMessage) {
        let number = self.take_number();
        let Some(queue) = self.0.redis_queue.as_ref().filter(|_| *self.0.live.borrow()) else {
            return self.fall_back(number, message);
        };
        let weight = message.weight();
        let queued = QueuedMessage { topic, message, number, weight };
        if queue.queued_bytes.fetch_add(weight, Ordering::Relaxed) + weight > MAX_QUEUED_BYTES {
            queue.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
            return self.fall_back(number, queued.message);
        }
        if let Err(error) = queue.queue.try_send(queued) {
            queue.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
            self.fall_back(number, error.into_inner().message);
        }
    }

    /// Sends by NOTIFY what cannot be sent by Redis.
    pub(super) fn fall_back(&self, number: u64, message: BusMessage) {
        match message {
            BusMessage::Appended(Announcement { channel, content: Content::Logged { .. }, .. }) => {
                self.0.notify_queue.check([channel]);
            }
            message => {
                let text = message.encode(self.0.node, number);
                if !self.0.notify_queue.send(number, text.into()) {
                    self.0.metrics.messages_dropped.inc();
                }
            }
        }
    }

    pub(super) fn set_live(&self, live: bool) {
        let turned = self.0.live.send_if_modified(|before| std::mem::replace(before, live) != live);
        if turned {
            self.0.metrics.up.set(i64::from(live));
            if live {
                tracing::info!("the bus is live");
                // Messages may have been missed before.
                self.deliver(HubEvent::CheckAll);
            } else {
                tracing::warn!("the bus is not live: events of other nodes are read from the log");
            }
        }
    }

    pub(super) fn deliver(&self, event: HubEvent) {
        if let Some(on_event) = self.0.on_event.get() {
            on_event(event);
        }
    }

    // ---- Redis

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(super) fn redis_queue(&self) -> Option<&RedisQueue> {
        self.0.redis_queue.as_ref()
    }

    /// The next message number of this node.
    pub(super) fn take_number(&self) -> u64 {
        self.0.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Completes a message that was sent to Redis (`sent`) or could not be: sends it by NOTIFY too
    /// where that is needed.
    pub(super) fn complete(&self, queued: QueuedMessage, sent: bool) {
        let weight = queued.weight;
        let logged = matches!(
            &queued.message,
            BusMessage::Appended(Announcement { content: Content::Logged { .. }, .. })
        );
        if sent {
            self.0.metrics.messages_sent.inc(Carrier::Redis);
        }
        if !sent || (self.0.mirroring.load(Ordering::Relaxed) && !logged) {
            self.fall_back(queued.number, queued.message);
        }
        if let Some(queue) = &self.0.redis_queue {
            queue.queued_bytes.fetch_sub(weight, Ordering::SeqCst);
        }
        self.0.sent.notify_waiters();
    }

    /// Handles a message on the topic `topic`. Returns the number of a ping of this node.
    pub(super) fn on_redis_message(&self, topic: &str, text: &str) -> Option<u64> {
        match Envelope::decode(text) {
            Ok(Envelope { from, number, message: BusMessage::Ping }) if from == self.0.node => {
                return Some(number);
            }
            Ok(envelope) => {
                self.0.metrics.messages_received.inc(Carrier::Redis);
                self.receive(envelope);
            }
            Err(error) => {
                self.0.metrics.messages_unreadable.inc();
                tracing::debug!(?error, "a message from Redis cannot be decoded");
                let channel = self.0.redis_queue.as_ref().and_then(|queue| queue.channel_of(topic));
                if let (DecodeError::Version, Some(channel)) = (error, channel) {
                    self.deliver(HubEvent::Check(vec![channel]));
                }
            }
        }
        None
    }

    pub(super) fn follow(&self, channel: &ChannelName) -> Option<impl Future<Output = ()> + Send + use<>> {
        let confirmed = self.0.subscriptions.follow(channel).filter(|_| self.0.redis_queue.is_some())?;
        Some(async move {
            // The channel starts in any case: what it misses is read from the log.
            let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, confirmed).await;
        })
    }

    pub(super) fn leave(&self, channel: &ChannelName) {
        self.0.subscriptions.leave(channel);
    }

    // ---- PostgreSQL

    /// Handles what other nodes send by NOTIFY.
    async fn listen(&self, store: &Store) {
        let mut events = store.listen();
        let mut reassembler = Reassembler::default();
        let notify_only = self.0.redis_queue.is_none();
        while let Some(event) = events.recv().await {
            match event {
                ListenEvent::Notification(notification) => {
                    let Some(text) = reassembler.push(&notification) else { continue };
                    match Envelope::decode(&text) {
                        Ok(envelope) if envelope.from == self.0.node => {}
                        Ok(envelope) => {
                            self.0.metrics.messages_received.inc(Carrier::Postgres);
                            self.receive(envelope);
                        }
                        Err(error) => {
                            self.0.metrics.messages_unreadable.inc();
                            if error == DecodeError::Version {
                                self.deliver(HubEvent::CheckAll);
                            }
                        }
                    }
                }
                ListenEvent::Connected if notify_only => self.set_live(true),
                ListenEvent::Connected => self.deliver(HubEvent::CheckAll),
                ListenEvent::Lost if notify_only => self.set_live(false),
                ListenEvent::Lost => {}
            }
        }
    }

    /// Sends by NOTIFY what is queued for it.
    async fn notify(&self, store: &Store, mut texts: mpsc::Receiver<notify::NumberedText>) {
        loop {
            let (checks, messages) = self.0.notify_queue.next(&mut texts).await;
            let mut notifications = Vec::new();
            for check in &checks {
                let number = self.take_number();
                let text = check.encode(self.0.node, number);
                notifications.extend(split(self.0.node, number, &text));
            }
            for message in &messages {
                notifications.extend(split(self.0.node, message.number, &message.text));
            }
            let mut failed = false;
            for some in notifications.chunks(notify::BATCH) {
                if let Err(error) = store.notify(some.to_vec()).await {
                    tracing::debug!(%error, "other nodes could not be notified");
                    failed = true;
                    break;
                }
                self.0.metrics.messages_sent.with(Carrier::Postgres).inc_by(some.len() as u64);
            }
            if failed {
                // Checks are queued again; messages that are not in the log are dropped.
                self.0.metrics.messages_dropped.inc_by(messages.len() as u64);
                for check in checks {
                    match check {
                        BusMessage::Check(channels) => self.0.notify_queue.check(channels),
                        _ => self.0.notify_queue.check_all(),
                    }
                }
                tokio::time::sleep(notify::RETRY_DELAY).await;
            }
        }
    }

    // ---- both

    fn receive(&self, envelope: Envelope) {
        let Envelope { from, number, message } = envelope;
        if from == self.0.node {
            return;
        }
        match message {
            // Duplicates are recognised by their offsets in the log.
            BusMessage::Appended(announcement) if matches!(announcement.content, Content::Logged { .. }) => {
                self.deliver(HubEvent::Appended(vec![announcement]));
            }
            BusMessage::Check(channels) => self.deliver(HubEvent::Check(channels)),
            BusMessage::CheckAll => self.deliver(HubEvent::CheckAll),
            BusMessage::Ping => {}
            _ if !self.is_new(from, number) => {}
            BusMessage::Appended(announcement) => self.deliver(HubEvent::Appended(vec![announcement])),
            BusMessage::PresenceChanged(channel, change) => {
                self.deliver(HubEvent::PresenceChanged(channel, change))
            }
            BusMessage::Direct(to, text) => {
                if to.is_none_or(|to| to == self.0.node)
                    && let Some(on_message) = self.0.on_message.get()
                {
                    on_message(from, &text);
                }
            }
        }
    }

    /// Whether this message has not been received before, over either transport.
    fn is_new(&self, from: Uuid, number: u64) -> bool {
        let mut received = self.0.received.lock().expect("no thread panics while holding this lock");
        if received.len() >= MAX_NODES && !received.contains_key(&from) {
            received.clear();
        }
        let recent = received.entry(from).or_default();
        if !recent.numbers.insert(number) {
            return false;
        }
        recent.order.push_back(number);
        if recent.order.len() > RECENT_PER_NODE
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.numbers.remove(&oldest);
        }
        true
    }
}

impl BusMessage {
    fn weight(&self) -> usize {
        let event = |event: &Event| event.data.len() + MESSAGE_OVERHEAD;
        MESSAGE_OVERHEAD
            + match self {
                Self::Appended(announcement) => match &announcement.content {
                    Content::Logged { events, .. } | Content::Ephemeral(events) => {
                        events.iter().map(event).sum()
                    }
                },
                Self::PresenceChanged(_, change) => change.info.len(),
                Self::Direct(_, text) => text.len(),
                Self::Check(_) | Self::CheckAll | Self::Ping => 0,
            }
    }
}

impl QueuedMessage {
    /// The topic on which it is published.
    pub(super) fn topic_name(&self, queue: &RedisQueue) -> String {
        match &self.topic {
            Topic::Channel(channel) => queue.channel_topic(channel),
            Topic::All => queue.broadcast_topic(),
            Topic::Node(node) => queue.node_topic(*node),
        }
    }

    /// The payloads that are published there, in this order.
    pub(super) fn texts(&self, bus: &ClusterBus) -> Vec<String> {
        let from = bus.node();
        match &self.message {
            BusMessage::Appended(Announcement {
                channel,
                content: Content::Logged { epoch, events },
                ..
            }) if !redis::is_small(events) => {
                let part = |events: &[Event]| {
                    let content = Content::Logged { epoch: epoch.clone(), events: events.to_vec() };
                    let channel = channel.clone();
                    BusMessage::Appended(Announcement { channel, content, accepted: None })
                        .encode(from, self.number)
                };
                redis::chunks(events).map(part).collect()
            }
            message => vec![message.encode(from, self.number)],
        }
    }
}

impl RedisQueue {
    pub(super) fn channel_topic(&self, channel: &ChannelName) -> String {
        format!("{}:c:{channel}", self.prefix)
    }

    pub(super) fn broadcast_topic(&self) -> String {
        format!("{}:control", self.prefix)
    }

    pub(super) fn node_topic(&self, node: Uuid) -> String {
        format!("{}:node:{}", self.prefix, node.simple())
    }

    fn channel_of(&self, name: &str) -> Option<ChannelName> {
        let name = name.strip_prefix(&self.prefix)?.strip_prefix(":c:")?;
        ChannelName::parse(name).ok()
    }
}
