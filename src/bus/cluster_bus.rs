//! The bus of nodes that share a PostgreSQL. Announcements go out over Redis, each on its channel's
//! topic, in the order of the commits; what Redis has not confirmed in time, or cannot take, is sent
//! by NOTIFY. A node that receives nothing from Redis polls the log twice a second. So Redis makes
//! delivery fast, and nothing depends on it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::OptionFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant as TokioInstant;
use uuid::Uuid;

use super::announcement::{Announcement, BusHandlers, Content, HubEvent};
use super::dedup::Dedup;
use super::message::{BusMessage, DecodeError};
use super::metrics::{Carrier, Metrics, RefusedFor};
use super::notify::{self, NotifyQueue, Reassembler, split};
use super::packet::{BusKeys, Envelope, Packets};
use super::peers::Peers;
use super::redis::{self, Events as _, QueuedMessage, Redis, RedisOptions, Topic};
use crate::domain::channel::ChannelName;
use crate::store::Store;
use crate::store::listen_notify::ListenEvent;

/// How long a channel waits for Redis to confirm its subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(200);

/// The number of messages that only say that a node is there.
const UNCOUNTED: u64 = 0;

/// Between two lines in the log about messages that are refused.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A handle on the bus of a cluster; cheap to clone.
#[derive(Clone)]
pub struct ClusterBus(Arc<Inner>);

struct Inner {
    node: Uuid,
    next_number: AtomicU64,
    redis: Option<Arc<Redis>>,
    notify_queue: NotifyQueue,
    live: watch::Sender<bool>,
    mirroring: AtomicBool,
    received: Dedup,
    packets: Packets,
    peers: Mutex<Peers>,
    /// When a message that is not trusted was last logged.
    last_refusal: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

/// The task of a bus, which never ends.
pub struct ClusterBusLoop {
    bus: ClusterBus,
    store: Store,
    redis: Option<(Arc<Redis>, ::redis::Client, mpsc::Receiver<QueuedMessage>)>,
    texts: mpsc::Receiver<notify::NumberedText>,
}

impl ClusterBusLoop {
    /// Sends and receives. Must be called on the runtime of the store.
    pub async fn run(self, handlers: BusHandlers) {
        let receiver = BusReceiver { bus: self.bus.clone(), handlers };
        let listening = receiver.listen(&self.store);
        let notifying = self.bus.notify(&self.store, self.texts);
        let redis = async {
            if let Some((redis, client, messages)) = self.redis {
                tokio::join!(
                    redis::run(&redis, client, &receiver),
                    redis::send_queued(&redis, messages, &receiver)
                );
            }
        };
        tokio::join!(listening, notifying, redis);
    }
}

#[derive(Clone)]
struct BusReceiver {
    bus: ClusterBus,
    handlers: BusHandlers,
}

impl ClusterBus {
    /// The bus of the node `node` over `redis`, or by NOTIFY alone, and its task, which never ends. Other
    /// nodes know it by one of `keys`.
    pub fn new(
        node: Uuid,
        keys: BusKeys,
        store: Store,
        redis: Option<RedisOptions>,
        metrics: Arc<Metrics>,
    ) -> (Self, ClusterBusLoop) {
        let (notify_queue, texts) = NotifyQueue::new();
        let packets = Packets::new(node, keys);
        let redis = redis.map(|RedisOptions { client, prefix }| {
            let (redis, messages) = Redis::new(node, packets.clone(), prefix, metrics.clone());
            (redis, client, messages)
        });
        let bus = Self(Arc::new(Inner {
            node,
            next_number: AtomicU64::new(1),
            redis: redis.as_ref().map(|(redis, ..)| redis.clone()),
            notify_queue,
            live: watch::Sender::new(false),
            mirroring: AtomicBool::new(false),
            received: Dedup::default(),
            packets,
            peers: Mutex::default(),
            last_refusal: Mutex::default(),
            metrics,
        }));
        (bus.clone(), ClusterBusLoop { bus, store, redis, texts })
    }

    pub(super) fn node(&self) -> Uuid {
        self.0.node
    }

    pub(super) fn live(&self) -> watch::Receiver<bool> {
        self.0.live.subscribe()
    }

    /// Waits until everything has been sent.
    pub(super) async fn flush(&self) {
        loop {
            let redis = self.0.redis.as_deref();
            let (sent, idle) = (redis.map(Redis::sent), self.0.notify_queue.idle());
            if redis.is_none_or(Redis::is_idle) && self.0.notify_queue.is_idle() {
                return;
            }
            tokio::select! {
                Some(()) = OptionFuture::from(sent) => {}
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

    fn take_number(&self) -> u64 {
        self.0.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn is_live(&self) -> bool {
        *self.0.live.borrow()
    }

    fn enqueue(&self, topic: Topic, message: BusMessage) {
        let number = self.take_number();
        let refused = match self.0.redis.as_deref().filter(|_| self.is_live()) {
            Some(redis) => redis.enqueue(topic, number, message).err(),
            None => Some(message),
        };
        if let Some(message) = refused {
            self.fall_back(number, message);
        }
    }

    /// Sends by NOTIFY what cannot be sent by Redis.
    fn fall_back(&self, number: u64, message: BusMessage) {
        match message {
            BusMessage::Appended(Announcement { channel, content: Content::Logged { .. }, .. }) => {
                self.0.notify_queue.check([channel]);
            }
            message => {
                let text = self.0.packets.encode(number, &message);
                if !self.0.notify_queue.send(number, text.into()) {
                    self.0.metrics.messages_dropped.inc();
                }
            }
        }
    }

    pub(super) fn follow(&self, channel: &ChannelName) -> Option<impl Future<Output = ()> + Send + use<>> {
        let confirmed = self.0.redis.as_ref()?.subscriptions.follow(channel)?;
        Some(async move {
            // The channel starts in any case: what it misses is read from the log.
            let _ = tokio::time::timeout(SUBSCRIBE_TIMEOUT, confirmed).await;
        })
    }

    pub(super) fn leave(&self, channel: &ChannelName) {
        if let Some(redis) = &self.0.redis {
            redis.subscriptions.leave(channel);
        }
    }

    /// Sends by NOTIFY what is queued for it.
    async fn notify(&self, store: &Store, mut texts: mpsc::Receiver<notify::NumberedText>) {
        loop {
            let (checks, messages) = self.0.notify_queue.next(&mut texts).await;
            let mut notifications = Vec::new();
            for check in &checks {
                let number = self.take_number();
                let text = self.0.packets.encode(number, check);
                notifications.extend(split(self.0.node, number, &text));
            }
            for message in &messages {
                notifications.extend(split(self.0.node, message.number, &message.text));
            }
            let pings = messages.iter().filter(|message| message.number == UNCOUNTED).count();
            let (mut failed, mut sent) = (false, 0);
            for some in notifications.chunks(notify::BATCH) {
                if let Err(error) = store.notify(some.to_vec()).await {
                    tracing::debug!(%error, "other nodes could not be notified");
                    failed = true;
                    break;
                }
                sent += some.len();
            }
            self.0.metrics.messages_sent.with(Carrier::Postgres).inc_by(sent.saturating_sub(pings) as u64);
            if failed {
                // Checks are queued again; messages that are not in the log are dropped.
                self.0.metrics.messages_dropped.inc_by((messages.len() - pings) as u64);
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
}

impl ClusterBus {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusReceiver {
    fn deliver(&self, event: HubEvent) {
        (self.handlers.on_event)(event);
    }

    /// Handles what other nodes send by NOTIFY.
    async fn listen(&self, store: &Store) {
        let mut events = store.listen();
        let mut reassembler = Reassembler::default();
        let notify_only = self.bus.0.redis.is_none();
        while let Some(event) = events.recv().await {
            match event {
                ListenEvent::Notification(notification) => {
                    let Some(text) = reassembler.push(&notification) else { continue };
                    match self.decode(&text, Carrier::Postgres) {
                        Ok(Envelope { from, message: BusMessage::Ping, .. }) => {
                            if from != self.bus.0.node {
                                self.bus.peers().by_notify(from, TokioInstant::now());
                            }
                        }
                        Ok(envelope) => self.receive(envelope),
                        Err(DecodeError::Version) => self.deliver(HubEvent::CheckAll),
                        Err(_) => {}
                    }
                }
                ListenEvent::Connected if notify_only => self.set_live(true),
                ListenEvent::Connected => self.deliver(HubEvent::CheckAll),
                ListenEvent::Lost if notify_only => self.set_live(false),
                ListenEvent::Lost => {}
            }
        }
    }

    /// Reads a packet and counts it.
    fn decode(&self, packet: &str, carrier: Carrier) -> Result<Envelope, DecodeError> {
        let metrics = &self.bus.0.metrics;
        let decoded = self.bus.0.packets.decode(packet);
        match &decoded {
            Ok(envelope) if envelope.from == self.bus.0.node => {}
            Ok(Envelope { message: BusMessage::Ping, .. }) => {}
            Ok(_) => metrics.messages_received.inc(carrier),
            Err(DecodeError::Version | DecodeError::Malformed) => {
                metrics.messages_unreadable.inc();
            }
            Err(DecodeError::Forged) => {
                self.refuse(RefusedFor::Forged, "no secret in bus.secrets verifies it")
            }
            Err(DecodeError::Stale) => {
                self.refuse(RefusedFor::Stale, "it is a copy, or the clocks of the nodes are minutes apart");
            }
        }
        decoded
    }

    /// Counts a message that is not trusted, and logs one a minute.
    fn refuse(&self, reason: RefusedFor, why: &'static str) {
        self.bus.0.metrics.messages_refused.inc(reason);
        let mut last = self.bus.0.last_refusal.lock().expect("a moment is only compared under its lock");
        if last.is_none_or(|last| last.elapsed() >= REFUSAL_LOG_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!(why, "messages between nodes are refused");
        }
    }

    fn receive(&self, envelope: Envelope) {
        let Envelope { from, number, message } = envelope;
        if from == self.bus.0.node {
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
            _ if !self.bus.0.received.is_new(from, number) => {}
            BusMessage::Appended(announcement) => self.deliver(HubEvent::Appended(vec![announcement])),
            BusMessage::PresenceChanged(channel, change) => {
                self.deliver(HubEvent::PresenceChanged(channel, change))
            }
            BusMessage::Direct(to, text) => {
                if to.is_none_or(|to| to == self.bus.0.node) {
                    (self.handlers.on_message)(from, &text);
                }
            }
        }
    }
}

impl redis::Events for BusReceiver {
    fn take_number(&self) -> u64 {
        self.bus.take_number()
    }

    fn is_live(&self) -> bool {
        self.bus.is_live()
    }

    fn on_broadcast(&self) {
        let ping = self.bus.0.packets.encode(UNCOUNTED, &BusMessage::Ping);
        // One of many: the next does as well.
        self.bus.0.notify_queue.send(UNCOUNTED, ping.into());
    }

    fn on_connected(&self) {
        self.bus.peers().start_anew();
    }

    fn set_live(&self, live: bool) {
        let live = live
            && {
                let unheard = self.bus.peers().unheard(TokioInstant::now());
                if let Some(node) = unheard.filter(|_| self.is_live()) {
                    tracing::warn!(%node, "a node is not heard over Redis although it sends there: is it on another one?");
                }
                unheard.is_none()
            };
        let turned = self.bus.0.live.send_if_modified(|before| std::mem::replace(before, live) != live);
        if turned {
            self.bus.0.metrics.up.set(i64::from(live));
            if live {
                tracing::info!("the bus is live");
                // Messages may have been missed before.
                self.deliver(HubEvent::CheckAll);
            } else {
                tracing::warn!("the bus is not live: events of other nodes are read from the log");
            }
        }
    }

    fn on_message(&self, channel: Option<ChannelName>, text: &str) -> Option<u64> {
        match self.decode(text, Carrier::Redis) {
            Ok(Envelope { from, number, message: BusMessage::Ping }) if from == self.bus.0.node => {
                return Some(number);
            }
            Ok(envelope) => {
                if envelope.from != self.bus.0.node {
                    self.bus.peers().over_redis(envelope.from, TokioInstant::now());
                }
                self.receive(envelope);
            }
            Err(error) => {
                tracing::debug!(?error, "a message from Redis is not taken");
                if let (DecodeError::Version, Some(channel)) = (error, channel) {
                    self.deliver(HubEvent::Check(vec![channel]));
                }
            }
        }
        None
    }

    fn on_missed(&self, channels: Vec<ChannelName>) {
        self.deliver(HubEvent::Check(channels));
    }

    /// Sends by NOTIFY too what was not sent, or may not be received.
    fn on_sent(&self, number: u64, message: BusMessage, sent: bool) {
        if sent {
            self.bus.0.metrics.messages_sent.inc(Carrier::Redis);
        }
        if !sent || (self.bus.0.mirroring.load(Ordering::Relaxed) && !message.is_logged()) {
            self.bus.fall_back(number, message);
        }
    }
}
