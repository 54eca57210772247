//! The cluster: which other nodes are alive, and requests about clients on any node. What clients
//! do is known only on the node that they are connected to: nothing of it is kept elsewhere, so
//! nothing of it can be stale. A question about all clients is sent to all nodes, and each answers
//! for its own; a single node sends nothing.
//!
//! Nodes send each other a heartbeat every second. A node that has missed more than
//! [`MAX_MISSED_HEARTBEATS`] counts as dead: it gets no requests any more, and its clients count as
//! gone.

mod membership;
mod message;
mod metrics;
mod requests;
mod rpc;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

pub use membership::MAX_MISSED_HEARTBEATS;
pub use message::Changed;
pub use metrics::Metrics;
pub use requests::NodeInfo;
pub use rpc::Incomplete;

use crate::bus::Bus;
use crate::clients::{ClientRegistry, ConnectionInfo, Target};
use crate::domain::channel::ChannelName;
use crate::domain::pattern::Glob;
use crate::domain::presence::Member;
use crate::domain::server_command::ServerCommand;
use crate::hub::Hub;
use crate::protocol::code::Disconnect;
use crate::supervision::critical;
use membership::Membership;
use message::{Heartbeat, Message};
use requests::{Channels, Command, Connected, Connections, Info, Members};
use rpc::PendingRequests;

/// Between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a node that starts waits for the bus, and for replies to its first heartbeat.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_HEARTBEATS: Duration = Duration::from_millis(50);
/// Requests of other nodes that are handled at once, and that may be queued. More get no response.
const MAX_CONCURRENT_REQUESTS: usize = 64;
const MAX_QUEUED_REQUESTS: usize = 8_192;
/// Channels in one response; one more says that there are more.
pub const MAX_CHANNELS: usize = 100_000;

/// Which node this is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// New after each start.
    pub uid: Uuid,
    pub name: String,
    /// When it started.
    pub started_at: Instant,
}

/// What became of a client's frame for a session of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostOutcome {
    /// The connection has it, or has ended.
    Accepted,
    /// The queue of the connection is full: it is closed.
    QueueFull,
    /// There is no such node.
    UnknownNode,
    /// The node does not answer now, or it is not known yet whether it is there.
    NoResponse,
}

/// Takes a frame for a session of this node; `false` if the session's queue is full.
pub type PostHandler = Box<dyn Fn(&str, String) -> bool + Send + Sync>;

/// What a node does for the others, each for its own clients.
pub struct Handlers {
    /// Who is connected here.
    pub clients: ClientRegistry,
    /// The channels that are followed here; `None` on a node without subscribers.
    pub hub: Option<Hub>,
    /// Counts the connections of a user on this node.
    pub count_connections: Box<dyn Fn(&str) -> u32 + Send + Sync>,
    pub post: PostHandler,
    /// Called when another node has changed what nodes keep in memory of the store.
    pub on_change: Box<dyn Fn(Changed) + Send + Sync>,
}

/// The other nodes: which of them are alive, and messages to them. A [`Cluster`] is this together
/// with what this node does for them. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<PeersInner>);

struct PeersInner {
    identity: Identity,
    bus: Bus,
    membership: Membership,
    pending: PendingRequests,
    metrics: Arc<Metrics>,
}

/// A handle on the cluster; cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    peers: Peers,
    handlers: Handlers,
    request_slots: Arc<Semaphore>,
    request_workers: Arc<Semaphore>,
}

impl Identity {
    /// The node that is called `name`, or else by its host and port. Containers say by HOSTNAME where
    /// they run, and all listen on one address.
    pub fn new(uid: Uuid, name: Option<&str>, address: SocketAddr) -> Self {
        let host = || std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
        let unset = || match host() {
            Some(host) if address.ip().is_unspecified() => format!("{host}:{}", address.port()),
            _ => address.to_string(),
        };
        Self { uid, name: name.map_or_else(unset, str::to_owned), started_at: Instant::now() }
    }
}

impl Peers {
    /// The other nodes on `bus`.
    pub fn new(identity: Identity, bus: Bus, metrics: Arc<Metrics>) -> Self {
        metrics.nodes.set(1);
        let (membership, pending) = (Membership::default(), PendingRequests::default());
        Self(Arc::new(PeersInner { identity, bus, membership, pending, metrics }))
    }

    /// Which node this is.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// Whether messages of other nodes arrive without delay, with change notification.
    pub fn bus_live(&self) -> watch::Receiver<bool> {
        self.0.bus.live()
    }

    /// The nodes that are alive, without this one, with change notification.
    pub fn others(&self) -> watch::Receiver<Vec<Uuid>> {
        self.0.membership.others()
    }

    /// Sends heartbeats, and detects when those of other nodes stop. Never returns in a cluster.
    pub async fn run(self) {
        if !self.0.bus.is_clustered() {
            return;
        }
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut live = self.0.bus.live();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.0.membership.tick(*live.borrow());
                    self.send_heartbeat(None, false);
                }
                // The others learn at once that this node receives again.
                Ok(()) = live.changed() => self.send_heartbeat(None, *live.borrow_and_update()),
            }
            self.update_membership();
        }
    }

    /// Applies a change of the membership to the bus and the metrics.
    fn update_membership(&self) {
        self.0.bus.mirror_to_notify(self.0.membership.any_peer_not_receiving());
        self.0.metrics.nodes.set(self.0.membership.others().borrow().len() as i64 + 1);
    }

    /// Waits until the other nodes should be known, for a bounded time.
    pub async fn wait_for_peers(&self) {
        let mut live = self.0.bus.live();
        if !self.0.bus.is_clustered() {
            return;
        }
        if tokio::time::timeout(SETTLE_TIMEOUT, live.wait_for(|live| *live)).await.is_ok() {
            self.send_heartbeat(None, true);
            tokio::time::sleep(FIRST_HEARTBEATS).await;
        }
    }

    /// Announces that this node stops: its clients are gone, and it needs no more requests.
    pub fn announce_leave(&self) {
        self.send(None, &Message::Leaving {});
    }

    /// Waits until all queued messages have been sent.
    pub async fn flush(&self) {
        self.0.bus.flush().await;
    }

    fn send_heartbeat(&self, to: Option<Uuid>, reply_requested: bool) {
        let heartbeat = Heartbeat {
            name: self.0.identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            receives: *self.0.bus.live().borrow(),
            reply_requested,
        };
        self.send(to, &Message::Heartbeat(heartbeat));
    }

    fn send(&self, to: Option<Uuid>, message: &Message) {
        match serde_json::to_string(message) {
            Ok(text) => self.0.bus.send(to, &text),
            Err(error) => tracing::error!(%error, "a message to other nodes cannot be serialized"),
        }
    }

    /// How many connections `user` has on each of `nodes`; `None` where that is not known.
    pub async fn connections_on(&self, nodes: &[Uuid], user: &str) -> Vec<(Uuid, Option<u32>)> {
        let (responses, _) = self.request(nodes.to_vec(), Connections { user: user.to_owned() }).await;
        let of = |node: &Uuid| responses.iter().find(|(from, _)| from == node).map(|(_, count)| *count);
        nodes.iter().map(|node| (*node, of(node))).collect()
    }

    /// Tells the other nodes what has changed in the store.
    pub fn announce(&self, what: Changed) {
        self.send(None, &Message::Changed { what });
    }
}

impl Cluster {
    /// This node among its `peers`.
    pub fn new(peers: Peers, handlers: Handlers) -> Self {
        Self(Arc::new(Inner {
            peers,
            handlers,
            request_slots: Arc::new(Semaphore::new(MAX_QUEUED_REQUESTS)),
            request_workers: Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS)),
        }))
    }

    /// Which node this is.
    pub fn identity(&self) -> &Identity {
        self.0.peers.identity()
    }

    /// Handles a message of another node. Runs on the bus's runtime.
    pub fn on_message(&self, from: Uuid, text: &str) {
        let message = match serde_json::from_str(text) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a message of another node cannot be parsed");
                return;
            }
        };
        let peers = &self.0.peers;
        match message {
            Message::Heartbeat(heartbeat) => {
                let wants_reply = heartbeat.reply_requested;
                let new = peers.0.membership.on_heartbeat(from, &heartbeat);
                peers.update_membership();
                if new {
                    tracing::info!(node = %from, name = heartbeat.name, version = heartbeat.version, "another node has joined");
                }
                if new || wants_reply {
                    peers.send_heartbeat(Some(from), false);
                }
            }
            Message::Leaving {} => {
                peers.0.membership.on_leave(from);
                peers.update_membership();
            }
            Message::Response { id, response } => peers.0.pending.resolve(id, from, response),
            Message::Changed { what } => (self.0.handlers.on_change)(what),
            Message::Request { id, request } => {
                let Ok(slot) = self.0.request_slots.clone().try_acquire_owned() else {
                    tracing::warn!("too many requests of other nodes: one was dropped");
                    return;
                };
                let cluster = self.clone();
                tokio::spawn(critical(async move {
                    let worker = cluster.0.request_workers.acquire().await;
                    let response = request.respond(&cluster).await;
                    drop((worker, slot));
                    match response {
                        Ok(response) => cluster.0.peers.send(Some(from), &Message::Response { id, response }),
                        Err(error) => tracing::error!(%error, "a response cannot be serialized"),
                    }
                }));
            }
        }
    }

    async fn info(&self) -> NodeInfo {
        let (identity, clients) = (self.identity(), &self.0.handlers.clients);
        let (counts, channels) = (clients.counts().await, clients.channels().await);
        NodeInfo {
            uid: identity.uid,
            name: identity.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            num_clients: counts.clients,
            num_users: counts.users.len(),
            num_channels: channels.len(),
            num_subs: channels.values().sum(),
            uptime: identity.started_at.elapsed().as_secs(),
        }
    }

    async fn own_channels(&self, pattern: Option<&str>) -> BTreeMap<ChannelName, usize> {
        let pattern = pattern.and_then(Glob::parse);
        let mut channels = self.0.handlers.clients.channels().await;
        channels.retain(|channel, _| pattern.as_ref().is_none_or(|glob| glob.matches(channel.as_str())));
        while channels.len() > MAX_CHANNELS + 1 {
            channels.pop_last();
        }
        channels
    }

    // ---- requests to all nodes

    /// Ends the matching connections on all nodes, and returns how many there were.
    pub async fn disconnect(&self, target: Target, disconnect: &Disconnect) -> Result<usize, Incomplete> {
        let request = requests::Disconnect { target, disconnect: disconnect.clone() };
        Ok(self.request_all(request).await.complete()?.into_iter().sum())
    }

    /// Sends a command to the matching connections on all nodes. Each applies it soon after.
    pub async fn send_command(&self, target: Target, command: ServerCommand) -> Result<(), Incomplete> {
        self.request_all(Command { target, command }).await.complete().map(drop)
    }

    /// All nodes that respond, with their figures.
    pub async fn nodes(&self) -> Vec<NodeInfo> {
        self.request_all(Info {}).await.responses
    }

    /// The channels that match `pattern` (a glob) and have subscribers, with their number. At most one
    /// more than [`MAX_CHANNELS`].
    pub async fn channels(&self, pattern: Option<&str>) -> BTreeMap<ChannelName, usize> {
        let responses = self.request_all(Channels { pattern: pattern.map(str::to_owned) }).await.responses;
        let mut all = BTreeMap::new();
        for (channel, clients) in responses.into_iter().flatten() {
            *all.entry(channel).or_default() += clients;
        }
        all
    }

    /// Up to `limit` clients, of one user or of all, the newest first.
    pub async fn connected(&self, user: Option<&str>, limit: usize) -> Vec<ConnectionInfo> {
        let request = Connected { user: user.map(str::to_owned), limit };
        let mut found = self.request_all(request).await.responses.concat();
        found.sort_by_key(|client| std::cmp::Reverse(client.client));
        found.truncate(limit);
        found
    }

    /// Who is on `channel` and is visible there.
    pub async fn members(&self, channel: &ChannelName) -> Vec<Member> {
        let responses = self.request_all(Members { channel: channel.clone() }).await.responses;
        let mut seen = HashSet::new();
        responses.into_iter().flatten().filter(|member| seen.insert(member.client)).collect()
    }

    /// Forwards a client's frame to the node that has its session.
    pub async fn post(&self, node: &str, session: String, frame: String) -> PostOutcome {
        let Ok(node) = Uuid::parse_str(node) else { return PostOutcome::UnknownNode };
        let peers = &self.0.peers;
        if !peers.0.membership.others().borrow().contains(&node) {
            let gone = peers.0.membership.is_gone(node) || !peers.0.bus.is_clustered();
            return if gone { PostOutcome::UnknownNode } else { PostOutcome::NoResponse };
        }
        let (responses, _) = peers.request(vec![node], requests::Post { session, frame }).await;
        match responses.first() {
            Some((_, true)) => PostOutcome::Accepted,
            Some((_, false)) => PostOutcome::QueueFull,
            None => PostOutcome::NoResponse,
        }
    }
}
