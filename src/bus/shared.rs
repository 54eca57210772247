//! The bus of nodes that share a PostgreSQL. What is announced goes out over Redis, on the channel's
//! own name, in the order of the commits; what Redis has not confirmed in time, or cannot take, is
//! said by NOTIFY. A node that does not hear Redis looks at the log twice a second. So Redis makes
//! it fast, and nothing depends on it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::interests::Interests;
use super::link::{self, Link};
use super::understudy::{self, Pieces, Understudy, cut};
use super::wire::{Packet, Said, Unread};
use super::{Announcement, Content, Deliver, Hear, Notice};
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::store::Store;
use crate::store::notices::Heard;
use crate::telemetry::{Metrics, count};

/// Messages that may wait for Redis, and their bytes; more go by NOTIFY.
const QUEUE: usize = 8_192;
const QUEUE_BYTES: usize = 64 << 20;
/// What a message weighs beside its data.
const MESSAGE: usize = 256;
/// How long a channel waits for Redis to confirm that it is followed.
const CONFIRM_FOLLOWING: Duration = Duration::from_millis(200);
/// What was heard of each node lately, so that nothing counts twice.
const REMEMBERED: usize = 4_096;
/// Nodes of which that is known.
const NODES: usize = 1_024;

/// Where Redis is and how names begin there.
pub struct Redis {
    /// How to reach it.
    pub client: redis::Client,
    /// The configured prefix and the store's id: `campanile:1f…`.
    pub prefix: String,
}

/// A handle on the bus between nodes; cheap to clone.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

pub(super) struct Inner {
    node: Uuid,
    numbers: AtomicU64,
    out: Option<Out>,
    understudy: Understudy,
    pub(super) interests: Interests,
    live: watch::Sender<bool>,
    aloud: AtomicBool,
    heard: Mutex<HashMap<Uuid, Recent>>,
    /// Redis has been told something.
    said: Notify,
    deliver: OnceLock<Deliver>,
    hear: OnceLock<Hear>,
    pub(super) metrics: Arc<Metrics>,
}

/// The way out over Redis.
pub(super) struct Out {
    prefix: String,
    queue: mpsc::Sender<Message>,
    queued: AtomicUsize,
    pub(super) link: ArcSwapOption<Link>,
}

/// What waits for Redis.
pub(super) struct Message {
    to: To,
    pub(super) said: Said,
    number: u64,
    weight: usize,
}

enum To {
    Channel(ChannelName),
    All,
    Node(Uuid),
}

#[derive(Default)]
struct Recent {
    numbers: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Shared {
    /// The bus of the node `node` over `redis`, or without one by NOTIFY alone, and its work, which
    /// never ends. Must be called on the runtime of the store.
    pub fn new(
        node: Uuid,
        store: Store,
        redis: Option<Redis>,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (understudy, texts) = Understudy::new();
        let (queue, messages) = mpsc::channel(QUEUE);
        let (out, client) = match redis {
            Some(Redis { client, prefix }) => {
                let link = ArcSwapOption::empty();
                (Some(Out { prefix, queue, queued: AtomicUsize::new(0), link }), Some(client))
            }
            None => (None, None),
        };
        let shared = Self(Arc::new(Inner {
            node,
            numbers: AtomicU64::new(1),
            out,
            understudy,
            interests: Interests::default(),
            live: watch::Sender::new(false),
            aloud: AtomicBool::new(false),
            heard: Mutex::default(),
            said: Notify::new(),
            deliver: OnceLock::new(),
            hear: OnceLock::new(),
            metrics,
        }));
        let work = {
            let shared = shared.clone();
            async move {
                let listening = shared.listen(&store);
                let notifying = shared.notify(&store, texts);
                let linked = async {
                    if let Some(client) = client {
                        tokio::join!(link::keep(&shared, client), link::publish(&shared, messages));
                    }
                };
                tokio::join!(listening, notifying, linked);
            }
        };
        (shared, work)
    }

    pub(super) fn node(&self) -> Uuid {
        self.0.node
    }

    pub(super) fn live(&self) -> watch::Receiver<bool> {
        self.0.live.subscribe()
    }

    pub(super) fn deliver_to(&self, deliver: Deliver) {
        let _ = self.0.deliver.set(deliver);
    }

    pub(super) fn heard_by(&self, hear: Hear) {
        let _ = self.0.hear.set(hear);
    }

    /// Waits until everything has been said.
    pub(super) async fn flush(&self) {
        loop {
            let (said, rests) = (self.0.said.notified(), self.0.understudy.rests());
            let queued = self.0.out.as_ref().map_or(0, |out| out.queued.load(Ordering::SeqCst));
            if queued == 0 && self.0.understudy.is_idle() {
                return;
            }
            tokio::select! {
                () = said => {}
                () = rests => {}
            }
        }
    }

    pub(super) fn speak_up(&self, aloud: bool) {
        self.0.aloud.store(aloud, Ordering::Relaxed);
    }

    pub(super) fn tell(&self, notice: &Notice) {
        match notice {
            Notice::Appended(announcements) => {
                for announcement in announcements {
                    let to = To::Channel(announcement.channel.clone());
                    self.send(to, Said::Appended(announcement.clone()));
                }
            }
            Notice::Moved(channel, movement) => {
                self.send(To::Channel(channel.clone()), Said::Moved(channel.clone(), movement.clone()));
            }
            Notice::Check(channels) => self.0.understudy.look(channels.iter().cloned()),
            Notice::CheckAll => self.0.understudy.look_everywhere(),
        }
    }

    pub(super) fn say(&self, to: Option<Uuid>, text: &str) {
        let said = Said::Told(to, text.into());
        self.send(to.map_or(To::All, To::Node), said);
    }

    fn send(&self, to: To, said: Said) {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let Some(out) = self.0.out.as_ref().filter(|_| *self.0.live.borrow()) else {
            return self.step_in(number, said);
        };
        let weight = said.weight();
        let message = Message { to, said, number, weight };
        if out.queued.fetch_add(weight, Ordering::Relaxed) + weight > QUEUE_BYTES {
            out.queued.fetch_sub(weight, Ordering::Relaxed);
            return self.step_in(number, message.said);
        }
        if let Err(error) = out.queue.try_send(message) {
            out.queued.fetch_sub(weight, Ordering::Relaxed);
            self.step_in(number, error.into_inner().said);
        }
    }

    /// Redis does not say it: NOTIFY does.
    pub(super) fn step_in(&self, number: u64, said: Said) {
        match said {
            Said::Appended(Announcement { channel, content: Content::Logged { .. }, .. }) => {
                self.0.understudy.look([channel]);
            }
            said => {
                let text = said.write(self.0.node, number);
                if !self.0.understudy.say(number, text.into()) {
                    count(&self.0.metrics.bus_said, "dropped");
                }
            }
        }
    }

    pub(super) fn set_live(&self, live: bool) {
        let turned = self.0.live.send_if_modified(|before| std::mem::replace(before, live) != live);
        if turned {
            self.0.metrics.bus_up.set(i64::from(live));
            if live {
                tracing::info!("other nodes are heard at once");
                // What was said before may have been missed.
                self.deliver(Notice::CheckAll);
            } else {
                tracing::warn!("other nodes may not be heard: their events are looked for in the log");
            }
        }
    }

    pub(super) fn deliver(&self, notice: Notice) {
        if let Some(deliver) = self.0.deliver.get() {
            deliver(notice);
        }
    }

    // ---- Redis

    pub(super) fn parts(&self) -> &Inner {
        &self.0
    }

    pub(super) fn out(&self) -> Option<&Out> {
        self.0.out.as_ref()
    }

    /// The next number of this node.
    pub(super) fn number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The messages that Redis has not taken, or that a node would not hear from it.
    pub(super) fn said_by_redis(&self, message: Message, taken: bool) {
        let weight = message.weight;
        let kept =
            matches!(&message.said, Said::Appended(Announcement { content: Content::Logged { .. }, .. }));
        if taken {
            count(&self.0.metrics.bus_said, "redis");
        }
        if !taken || (self.0.aloud.load(Ordering::Relaxed) && !kept) {
            self.step_in(message.number, message.said);
        }
        if let Some(out) = &self.0.out {
            out.queued.fetch_sub(weight, Ordering::SeqCst);
        }
        self.0.said.notify_waiters();
    }

    /// Something on the name `name`. Answers the number of a ping of our own.
    pub(super) fn heard_from_redis(&self, name: &str, text: &str) -> Option<u64> {
        match Packet::read(text) {
            Ok(Packet { from, number, said: Said::Ping }) if from == self.0.node => return Some(number),
            Ok(packet) => {
                count(&self.0.metrics.bus_heard, "redis");
                self.heard(packet);
            }
            Err(unread) => {
                count(&self.0.metrics.bus_heard, "unread");
                tracing::debug!(?unread, "a message over Redis is not understood");
                let channel = self.0.out.as_ref().and_then(|out| out.channel_of(name));
                if let (Unread::Version, Some(channel)) = (unread, channel) {
                    self.deliver(Notice::Check(vec![channel]));
                }
            }
        }
        None
    }

    pub(super) fn follow(&self, channel: &ChannelName) -> Option<impl Future<Output = ()> + Send + use<>> {
        let confirmed = self.0.interests.follow(channel).filter(|_| self.0.out.is_some())?;
        Some(async move {
            // Whatever comes of it, the channel begins: what it may miss is looked for.
            let _ = tokio::time::timeout(CONFIRM_FOLLOWING, confirmed).await;
        })
    }

    pub(super) fn leave(&self, channel: &ChannelName) {
        self.0.interests.leave(channel);
    }

    // ---- PostgreSQL

    /// Hears what other nodes say by NOTIFY.
    async fn listen(&self, store: &Store) {
        let mut notices = store.listen();
        let mut pieces = Pieces::default();
        let alone = self.0.out.is_none();
        while let Some(heard) = notices.recv().await {
            match heard {
                Heard::Said(notification) => {
                    let Some(text) = pieces.take(&notification) else { continue };
                    match Packet::read(&text) {
                        Ok(packet) if packet.from == self.0.node => {}
                        Ok(packet) => {
                            count(&self.0.metrics.bus_heard, "postgres");
                            self.heard(packet);
                        }
                        Err(unread) => {
                            count(&self.0.metrics.bus_heard, "unread");
                            if unread == Unread::Version {
                                self.deliver(Notice::CheckAll);
                            }
                        }
                    }
                }
                Heard::Listening if alone => self.set_live(true),
                Heard::Listening => self.deliver(Notice::CheckAll),
                Heard::Deaf if alone => self.set_live(false),
                Heard::Deaf => {}
            }
        }
    }

    /// Says by NOTIFY what waits for it.
    async fn notify(&self, store: &Store, mut texts: mpsc::Receiver<understudy::Numbered>) {
        loop {
            let (looks, whole) = self.0.understudy.next(&mut texts).await;
            let mut notifications = Vec::new();
            for said in &looks {
                let number = self.number();
                let text = said.write(self.0.node, number);
                notifications.extend(cut(self.0.node, number, &text));
            }
            for text in &whole {
                notifications.extend(cut(self.0.node, text.number, &text.text));
            }
            let mut failed = false;
            for some in notifications.chunks(understudy::AT_ONCE) {
                if let Err(error) = store.notify(some.to_vec()).await {
                    tracing::debug!(%error, "other nodes cannot be notified");
                    failed = true;
                    break;
                }
                some.iter().for_each(|_| count(&self.0.metrics.bus_said, "postgres"));
            }
            if failed {
                // Nothing that is kept is forgotten; the rest was for this moment.
                whole.iter().for_each(|_| count(&self.0.metrics.bus_said, "dropped"));
                for said in looks {
                    match said {
                        Said::Check(channels) => self.0.understudy.look(channels),
                        _ => self.0.understudy.look_everywhere(),
                    }
                }
                tokio::time::sleep(understudy::PAUSE).await;
            }
        }
    }

    // ---- both

    fn heard(&self, packet: Packet) {
        let Packet { from, number, said } = packet;
        if from == self.0.node {
            return;
        }
        match said {
            // The log's own offsets tell what came twice.
            Said::Appended(announcement) if matches!(announcement.content, Content::Logged { .. }) => {
                self.deliver(Notice::Appended(vec![announcement]));
            }
            Said::Check(channels) => self.deliver(Notice::Check(channels)),
            Said::CheckAll => self.deliver(Notice::CheckAll),
            Said::Ping => {}
            _ if !self.is_new(from, number) => {}
            Said::Appended(announcement) => self.deliver(Notice::Appended(vec![announcement])),
            Said::Moved(channel, movement) => self.deliver(Notice::Moved(channel, movement)),
            Said::Told(to, text) => {
                if to.is_none_or(|to| to == self.0.node)
                    && let Some(hear) = self.0.hear.get()
                {
                    hear(from, &text);
                }
            }
        }
    }

    /// Whether this was not heard before, over one way or the other.
    fn is_new(&self, from: Uuid, number: u64) -> bool {
        let mut heard = self.0.heard.lock().expect("nobody panics while remembering");
        if heard.len() >= NODES && !heard.contains_key(&from) {
            heard.clear();
        }
        let recent = heard.entry(from).or_default();
        if !recent.numbers.insert(number) {
            return false;
        }
        recent.order.push_back(number);
        if recent.order.len() > REMEMBERED
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.numbers.remove(&oldest);
        }
        true
    }
}

impl Said {
    fn weight(&self) -> usize {
        let event = |event: &Event| event.data.len() + MESSAGE;
        MESSAGE
            + match self {
                Self::Appended(announcement) => match &announcement.content {
                    Content::Logged { events, .. } | Content::Ephemeral(events) => {
                        events.iter().map(event).sum()
                    }
                },
                Self::Moved(_, movement) => movement.info.len(),
                Self::Told(_, text) => text.len(),
                Self::Check(_) | Self::CheckAll | Self::Ping => 0,
            }
    }
}

impl Message {
    /// The name on which it goes out.
    pub(super) fn name(&self, out: &Out) -> String {
        match &self.to {
            To::Channel(channel) => out.name_of(channel),
            To::All => out.name_of_all(),
            To::Node(node) => out.name_of_node(*node),
        }
    }

    /// What goes out on it, in the order in which it must.
    pub(super) fn texts(&self, shared: &Shared) -> Vec<String> {
        let from = shared.node();
        match &self.said {
            Said::Appended(Announcement { channel, content: Content::Logged { epoch, events }, .. })
                if !link::is_small(events) =>
            {
                let part = |events: &[Event]| {
                    let content = Content::Logged { epoch: epoch.clone(), events: events.to_vec() };
                    let channel = channel.clone();
                    Said::Appended(Announcement { channel, content, accepted: None }).write(from, self.number)
                };
                link::in_bounds(events).map(part).collect()
            }
            said => vec![said.write(from, self.number)],
        }
    }
}

impl Out {
    pub(super) fn name_of(&self, channel: &ChannelName) -> String {
        format!("{}:c:{channel}", self.prefix)
    }

    pub(super) fn name_of_all(&self) -> String {
        format!("{}:control", self.prefix)
    }

    pub(super) fn name_of_node(&self, node: Uuid) -> String {
        format!("{}:node:{}", self.prefix, node.simple())
    }

    fn channel_of(&self, name: &str) -> Option<ChannelName> {
        let name = name.strip_prefix(&self.prefix)?.strip_prefix(":c:")?;
        ChannelName::parse(name).ok()
    }
}
