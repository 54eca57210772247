//! The bus: announces what was committed to the nodes that have subscribers, and carries the messages
//! that nodes send to each other. Best effort by design: the log is the truth, and a channel that
//! misses an announcement reads the log. It does not read the messages; what arrives from other nodes
//! goes to [`BusHandlers`], without which a bus does not run.
//!
//! On a single node an event is a function call. Nodes that share a PostgreSQL are connected through
//! Redis, and by NOTIFY where Redis fails (`cluster_bus`).

mod announcement;
mod cluster_bus;
mod dedup;
mod message;
mod metrics;
mod notify;
mod packet;
mod peers;
mod redis;
mod subscriptions;

use std::sync::Arc;

use tokio::sync::watch;
use uuid::Uuid;

pub use announcement::{
    Announcement, BusHandlers, Content, EventHandler, HubEvent, MessageHandler, PresenceChange,
};
pub use cluster_bus::{ClusterBus, ClusterBusLoop};
pub use metrics::Metrics;
pub use packet::BusKeys;
pub use redis::RedisOptions;

use crate::domain::channel::ChannelName;

/// A handle on the bus; cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    node: Uuid,
    cluster: Option<ClusterBus>,
    live: watch::Receiver<bool>,
}

impl Bus {
    /// The bus of a single node.
    pub fn local(node: Uuid) -> Self {
        // The sender may be dropped: the value never changes.
        let live = watch::Sender::new(true).subscribe();
        Self(Arc::new(Inner { node, cluster: None, live }))
    }

    /// The bus of a node in a cluster.
    pub fn clustered(cluster: ClusterBus) -> Self {
        let (node, live) = (cluster.node(), cluster.live());
        Self(Arc::new(Inner { node, cluster: Some(cluster), live }))
    }

    /// This node's id, which is new after each start.
    pub fn node(&self) -> Uuid {
        self.0.node
    }

    /// Publishes an event to the other nodes. Returns at once; delivery is best effort.
    pub fn publish(&self, event: &HubEvent) {
        if let Some(cluster) = &self.0.cluster {
            cluster.publish(event);
        }
    }

    /// Publishes to the other nodes that a client of this one joined a channel, or left it.
    pub fn publish_presence(&self, channel: &ChannelName, change: &PresenceChange) {
        if let Some(cluster) = &self.0.cluster {
            cluster.publish(&HubEvent::PresenceChanged(channel.clone(), change.clone()));
        }
    }

    /// Sends a message, one JSON value, to the other nodes or to one of them. Returns at once.
    pub fn send(&self, to: Option<Uuid>, text: &str) {
        if let Some(cluster) = &self.0.cluster {
            cluster.send(to, text);
        }
    }

    /// Waits until everything that was queued has been sent.
    pub async fn flush(&self) {
        if let Some(cluster) = &self.0.cluster {
            cluster.flush().await;
        }
    }

    /// Subscribes this node to `channel`, until [`Bus::leave`] was called as often. What other nodes
    /// announce after the returned future has completed reaches this one. `None`: the node is
    /// subscribed already, or will find the events in the log.
    pub fn follow(&self, channel: &ChannelName) -> Option<impl Future<Output = ()> + Send + 'static> {
        self.0.cluster.as_ref()?.follow(channel)
    }

    /// Undoes one call of [`Bus::follow`].
    pub fn leave(&self, channel: &ChannelName) {
        if let Some(cluster) = &self.0.cluster {
            cluster.leave(channel);
        }
    }

    /// Whether messages of other nodes arrive without delay, with change notification. While they do
    /// not, the log has to be polled. Always `true` on a single node.
    pub fn live(&self) -> watch::Receiver<bool> {
        self.0.live.clone()
    }

    /// Whether there may be other nodes.
    pub fn is_clustered(&self) -> bool {
        self.0.cluster.is_some()
    }

    /// Sets whether messages that are not in the log are sent by NOTIFY in addition to Redis, because
    /// another node reports that it receives nothing from Redis.
    pub fn mirror_to_notify(&self, mirroring: bool) {
        if let Some(cluster) = &self.0.cluster {
            cluster.mirror_to_notify(mirroring);
        }
    }
}
