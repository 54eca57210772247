//! The bus: tells the nodes that have subscribers what was committed, and carries what nodes have to
//! say to each other. Best effort by design: the log is the truth, and a channel that misses an
//! announcement reads the log. It knows neither the hub nor what nodes say; `app` gives it places to
//! deliver.
//!
//! A single node needs none of it: a notice is a call. Nodes that share a PostgreSQL are joined by
//! Redis, and where that fails by NOTIFY ([`shared`]).

mod interests;
mod link;
pub mod shared;
mod understudy;
mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::watch;
use uuid::Uuid;

pub use shared::Shared;

use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::Epoch;

/// The bus message: what one committed unit (or several) added to one channel.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Where.
    pub channel: ChannelName,
    /// What.
    pub content: Content,
    /// When the first of it was accepted by this process; unknown to other nodes.
    pub accepted: Option<Instant>,
}

/// What was added to a channel.
#[derive(Debug, Clone)]
pub enum Content {
    /// Events of the log.
    Logged {
        /// The history they belong to.
        epoch: Epoch,
        /// Ascending offsets without a hole, at least one.
        events: Vec<Event>,
    },
    /// Events that are not kept: no offset (0), no promise.
    Ephemeral(Vec<Event>),
}

/// Somebody came to a channel or left, as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// `false`: they left.
    pub came: bool,
    /// ClientInfo as JSON.
    pub info: Arc<str>,
}

/// What a node is told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// These were committed.
    Appended(Vec<Announcement>),
    /// Something may have been committed on these channels: look at the log.
    Check(Vec<ChannelName>),
    /// The same for all that are followed here.
    CheckAll,
    /// Somebody came or left on another node.
    Moved(ChannelName, Movement),
}

/// Where a node takes notices. Must not block.
pub type Deliver = Arc<dyn Fn(Notice) + Send + Sync>;

/// Where a node hears what another one says, by its id. Must not block.
pub type Hear = Arc<dyn Fn(Uuid, &str) + Send + Sync>;

/// The path between nodes; cheap to clone, and all clones are one.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    node: Uuid,
    deliver: OnceLock<Deliver>,
    shared: Option<Shared>,
    live: watch::Receiver<bool>,
}

impl Bus {
    /// The bus of a single node.
    pub fn local(node: Uuid) -> Self {
        // Its sender may go: there is nothing to say.
        let live = watch::Sender::new(true).subscribe();
        Self(Arc::new(Inner { node, deliver: OnceLock::new(), shared: None, live }))
    }

    /// The bus of a node among others.
    pub fn shared(shared: Shared) -> Self {
        let (node, live) = (shared.node(), shared.live());
        Self(Arc::new(Inner { node, deliver: OnceLock::new(), shared: Some(shared), live }))
    }

    /// This node's id: another one after each start.
    pub fn node(&self) -> Uuid {
        self.0.node
    }

    /// From now on notices go to `deliver`. To be called once.
    pub fn deliver_to(&self, deliver: Deliver) {
        if let Some(shared) = &self.0.shared {
            shared.deliver_to(deliver.clone());
        }
        let _ = self.0.deliver.set(deliver);
    }

    /// From now on what other nodes say goes to `hear`. To be called once.
    pub fn heard_by(&self, hear: Hear) {
        if let Some(shared) = &self.0.shared {
            shared.heard_by(hear);
        }
    }

    /// Tells all nodes, this one included. Returns at once; nothing is promised.
    pub fn tell(&self, notice: Notice) {
        if let Some(shared) = &self.0.shared {
            shared.tell(&notice);
        }
        if let Some(deliver) = self.0.deliver.get() {
            deliver(notice);
        }
    }

    /// Tells the other nodes that somebody came to a channel here, or left.
    pub fn tell_others(&self, channel: &ChannelName, movement: &Movement) {
        if let Some(shared) = &self.0.shared {
            shared.tell(&Notice::Moved(channel.clone(), movement.clone()));
        }
    }

    /// Says something to the other nodes, or to one of them: one JSON value. Returns at once.
    pub fn say(&self, to: Option<Uuid>, text: &str) {
        if let Some(shared) = &self.0.shared {
            shared.say(to, text);
        }
    }

    /// Waits until what was said is on its way.
    pub async fn flush(&self) {
        if let Some(shared) = &self.0.shared {
            shared.flush().await;
        }
    }

    /// This node follows `channel` from now on, until as many calls of [`Bus::leave`]. What other
    /// nodes announce from the end of the answer on reaches this one; `None`: it does already, or
    /// will be looked for in the log.
    pub fn follow(&self, channel: &ChannelName) -> Option<impl Future<Output = ()> + Send + 'static> {
        self.0.shared.as_ref()?.follow(channel)
    }

    /// Ends what [`Bus::follow`] began.
    pub fn leave(&self, channel: &ChannelName) {
        if let Some(shared) = &self.0.shared {
            shared.leave(channel);
        }
    }

    /// Whether other nodes are heard at once, and tells of each change. While they are not, somebody
    /// has to look at the log. Always for a single node.
    pub fn live(&self) -> watch::Receiver<bool> {
        self.0.live.clone()
    }

    /// Whether there may be other nodes.
    pub fn is_shared(&self) -> bool {
        self.0.shared.is_some()
    }

    /// Whether what is not announced goes by NOTIFY besides Redis, because another node says that it
    /// does not hear Redis.
    pub fn speak_up(&self, aloud: bool) {
        if let Some(shared) = &self.0.shared {
            shared.speak_up(aloud);
        }
    }
}
