//! The hub: this node's live channels. A channel with subscribers on this node has an actor; events
//! from the bus go to the actors, and from them to the worker threads that have subscribers.
//!
//! The table of actors is read for every event and written when a channel starts or ends, so it is
//! a lock around a map; everything else is owned by the actors. Nothing here waits for a slow
//! part: what does not fit marks a channel *behind*, and the channel reads the log.

mod channel;
pub mod fanout;
mod idle_channels;
pub mod metrics;
pub mod outbox;
pub mod sequencer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use actix::ArbiterHandle;
use tokio::sync::mpsc;

pub use metrics::Metrics;

use crate::bus::{Announcement, Bus, EventHandler, HubEvent, PresenceChange};
use crate::config::Config;
use crate::domain::channel::ChannelName;
use crate::domain::options::{Namespaces, Retention, SharedNamespaces};
use crate::domain::position::Position;
use crate::domain::presence::Member;
use crate::store::{self, Store};
use channel::ChannelHandle;
use fanout::FanoutMessage;
use idle_channels::IdleChannels;

/// Channels in one statement of the position check.
const CHECK_CHUNK: usize = 1000;

/// How many channels read their logs at once after the store was away, and the pause before the next: ten
/// thousand channels are checked after two seconds.
const RECHECKS_AT_ONCE: usize = 256;
const RECHECK_PAUSE: Duration = Duration::from_millis(50);

/// How long a reload waits for channels whose history begins.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What the hub needs to know of the config.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Which channels keep what.
    pub namespaces: SharedNamespaces,
    /// How long a channel stays alive without worker threads that subscribe to it.
    pub linger: Duration,
    /// How many channels may do so at once.
    pub linger_limit: usize,
    /// Announcements that may wait for a channel; more mark it behind.
    pub mailbox: usize,
    /// Messages that may wait for a worker thread; more make a channel behind for it.
    pub inbox: usize,
    /// Let deliveries share system calls where the system allows it.
    pub io_uring: bool,
}

impl From<&Config> for HubOptions {
    fn from(config: &Config) -> Self {
        Self {
            namespaces: config.namespaces().shared(),
            linger: config.channel.linger.0,
            linger_limit: config.channel.linger_limit as usize,
            io_uring: config.server.io_uring,
            ..Self::default()
        }
    }
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            namespaces: SharedNamespaces::default(),
            linger: Duration::from_secs(30),
            linger_limit: 10_000,
            mailbox: 256,
            inbox: 1024,
            io_uring: true,
        }
    }
}

/// A handle on the hub; cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<HubInner>);

struct HubInner {
    channels: RwLock<HashMap<ChannelName, ChannelHandle>>,
    store: Store,
    bus: Bus,
    idle: IdleChannels,
    options: HubOptions,
    metrics: Arc<Metrics>,
    arbiter: ArbiterHandle,
    /// A check of all channels is about to begin.
    check_wanted: AtomicBool,
}

/// A worker thread as the channel actors see it.
#[derive(Clone)]
pub struct Worker {
    /// Unique in this process.
    pub id: usize,
    /// Its inbox; when it is full, the channel is behind for this worker.
    pub inbox: mpsc::Sender<FanoutMessage>,
}

/// A worker thread follows a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The actor that said so: of another one it is not true.
    pub actor: u64,
    /// Everything after it reaches the worker's inbox in order; what is before it is in the log. `None`
    /// where no history is kept.
    pub position: Option<Position>,
}

/// A channel cannot be subscribed to now, because the store does not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the channel cannot be subscribed to: {0}")]
pub struct SubscribeError(pub String);

impl Hub {
    /// A hub whose channel actors live on the thread of `arbiter`. Its events come by
    /// [`event_handler`](Self::event_handler).
    pub fn new(
        store: Store,
        bus: Bus,
        options: HubOptions,
        metrics: Arc<Metrics>,
        arbiter: ArbiterHandle,
    ) -> Self {
        let (channels, check_wanted) = (RwLock::default(), AtomicBool::new(false));
        let idle = IdleChannels::new(options.linger_limit, metrics.clone());
        Self(Arc::new(HubInner { channels, store, bus, idle, options, metrics, arbiter, check_wanted }))
    }

    /// The handler for events of the bus and the publisher.
    pub fn event_handler(&self) -> EventHandler {
        let hub = self.clone();
        Arc::new(move |event| hub.deliver(event))
    }

    /// Handles an event of the bus. Never blocks.
    pub fn deliver(&self, event: HubEvent) {
        match event {
            HubEvent::Appended(announcements) => announcements.into_iter().for_each(|a| self.route(a)),
            HubEvent::Check(channels) => {
                let hub = self.clone();
                let followed: Vec<ChannelName> =
                    channels.into_iter().filter(|name| self.table().contains_key(name)).collect();
                if !followed.is_empty() {
                    self.0.arbiter.spawn(async move { hub.check(followed).await });
                }
            }
            HubEvent::CheckAll => {
                if !self.0.check_wanted.swap(true, Ordering::SeqCst) {
                    let hub = self.clone();
                    self.0.arbiter.spawn(async move {
                        hub.0.check_wanted.store(false, Ordering::SeqCst);
                        hub.check_all().await;
                    });
                }
            }
            HubEvent::PresenceChanged(channel, change) => self.deliver_presence(&channel, change),
        }
    }

    fn route(&self, announcement: Announcement) {
        if let Some(handle) = self.table().get(&announcement.channel) {
            handle.announce(announcement, &self.0.metrics);
        }
    }

    /// Subscribes `worker` to `channel`.
    pub async fn join(&self, channel: &ChannelName, worker: &Worker) -> Result<Followed, SubscribeError> {
        // The actor may have stopped between the lookup and the call: then it is gone from the table, and
        // the next lookup starts a new one.
        for _ in 0..3 {
            let handle = self.handle_of(channel);
            if let Some(answer) = handle.join(worker.clone()).await {
                return answer;
            }
        }
        Err(SubscribeError("the channel keeps ending".into()))
    }

    /// Whether `followed` still holds for `channel`: it was said by the actor that lives, and it has a
    /// position if the channel keeps a history.
    pub fn is_current(&self, channel: &ChannelName, followed: &Followed) -> bool {
        let lives = self.table().get(channel).is_some_and(|handle| handle.id() == followed.actor);
        lives && (followed.position.is_some() || self.retention_of(channel).is_none())
    }

    /// What is kept of `channel`; `None` when nothing is.
    fn retention_of(&self, channel: &ChannelName) -> Option<Retention> {
        self.0.options.namespaces.load().retention_of(channel)
    }

    /// Lets active channels that get a history by `new` find their positions before it takes effect, so
    /// that they know where they are when the first event is kept. Waits a second at most.
    pub async fn prepare(&self, new: &Namespaces) {
        let begins = |handle: &&ChannelHandle| self.retention_of(handle.name()).is_none();
        let beginning: Vec<(ChannelHandle, Retention)> = {
            let table = self.table();
            let kept = |handle: &ChannelHandle| Some((handle.clone(), new.retention_of(handle.name())?));
            table.values().filter(begins).filter_map(kept).collect()
        };
        let all = futures_util::future::join_all(
            beginning.iter().map(|(handle, retention)| handle.begin_history(*retention)),
        );
        // A channel that is not ready by then holds what is announced until it is.
        let _ = tokio::time::timeout(BEGIN_TIMEOUT, all).await;
    }

    /// Lets all active channels apply the options of the namespaces as they are now.
    pub fn take_options(&self) {
        self.table().values().for_each(ChannelHandle::take_options);
    }

    /// `worker` has no subscriber of `channel` any more.
    pub fn leave(&self, channel: &ChannelName, worker: usize) {
        if let Some(handle) = self.table().get(channel) {
            handle.leave(worker);
        }
    }

    /// Publishes that a client of a thread that subscribes to `channel` joined or left, here and on other
    /// nodes.
    pub fn publish_presence(&self, channel: &ChannelName, change: PresenceChange) {
        self.0.bus.publish_presence(channel, &change);
        self.deliver_presence(channel, change);
    }

    fn deliver_presence(&self, channel: &ChannelName, change: PresenceChange) {
        if let Some(handle) = self.table().get(channel) {
            handle.send_presence(change);
        }
    }

    /// The clients on `channel` on this node that presence may list.
    pub async fn members(&self, channel: &ChannelName) -> Vec<Member> {
        let handle = self.table().get(channel).cloned();
        match handle {
            Some(handle) => handle.members().await.unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// Compares all active channels with the log. Repairs what lost announcements left out, and finds a
    /// log that was replaced.
    pub async fn check_all(&self) {
        let names: Vec<ChannelName> = self.table().keys().cloned().collect();
        self.check(names).await;
    }

    /// Makes every active channel read the log from its position, and check that it is still the log it
    /// knows: after the store was away, or has another generation. Some at a time, so that the reads of
    /// many channels leave room for others.
    pub async fn recheck_all(&self) {
        let handles: Vec<ChannelHandle> = self.table().values().cloned().collect();
        for some in handles.chunks(RECHECKS_AT_ONCE) {
            some.iter().for_each(ChannelHandle::recheck);
            tokio::time::sleep(RECHECK_PAUSE).await;
        }
    }

    async fn check(&self, names: Vec<ChannelName>) {
        for chunk in names.chunks(CHECK_CHUNK) {
            // The positions are taken before the heads are read: a head that is lower than a
            // position known before is a loss, one that is lower than a newer position is not.
            let known: Vec<(ChannelHandle, Option<Position>)> = {
                let table = self.table();
                chunk.iter().filter_map(|name| table.get(name)).map(|h| (h.clone(), h.position())).collect()
            };
            match self.read_heads(chunk.to_vec()).await {
                Ok(mut heads) => {
                    for (handle, position) in known {
                        let base = Position::new(self.0.store.generation(), 0);
                        let head = heads.remove(handle.name().as_str()).unwrap_or(base);
                        // Nearly all of them are where they should be, and need not be woken for it.
                        if position.as_ref() != Some(&head) {
                            handle.compare(head, position);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the position check could not read the heads");
                    return;
                }
            }
        }
    }

    async fn read_heads(&self, names: Vec<ChannelName>) -> store::Result<HashMap<String, Position>> {
        self.0.store.read(move |tx| Box::pin(async move { tx.heads(&names).await })).await
    }

    /// Whether `channel` has an actor here.
    pub fn is_active(&self, channel: &ChannelName) -> bool {
        self.table().contains_key(channel)
    }

    /// How many channels have an actor here.
    pub fn active_channels(&self) -> usize {
        self.table().len()
    }

    fn handle_of(&self, channel: &ChannelName) -> ChannelHandle {
        if let Some(handle) = self.table().get(channel) {
            return handle.clone();
        }
        let mut table = self.table_mut();
        let start = || channel::start(self.clone(), channel.clone(), &self.0.arbiter);
        let handle = table.entry(channel.clone()).or_insert_with(start).clone();
        self.0.metrics.channels.set(table.len() as i64);
        handle
    }

    /// Removes an actor that stops from the table, unless another one has taken its place already.
    fn remove(&self, channel: &ChannelName, id: u64) {
        let mut table = self.table_mut();
        if table.get(channel).is_some_and(|handle| handle.id() == id) {
            table.remove(channel);
            self.0.metrics.channels.set(table.len() as i64);
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, HashMap<ChannelName, ChannelHandle>> {
        self.0.channels.read().expect("nobody panics with the table of channels in hand")
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, HashMap<ChannelName, ChannelHandle>> {
        self.0.channels.write().expect("nobody panics with the table of channels in hand")
    }
}
