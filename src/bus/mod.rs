//! The bus: tells the nodes that have subscribers what was committed. Best effort by design: the
//! log is the truth, and a channel that misses an announcement reads the log. It does not know
//! the hub; `app` gives it a place to deliver.

mod local;

use std::sync::Arc;
use std::time::Instant;

pub use local::LocalBus;

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

/// What a node is told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// These were committed.
    Appended(Vec<Announcement>),
    /// Something may have been committed on these channels: look at the log.
    Check(Vec<ChannelName>),
}

/// Where a node takes notices. Must not block.
pub type Deliver = Arc<dyn Fn(Notice) + Send + Sync>;

/// The path between nodes.
#[derive(Clone)]
pub enum Bus {
    /// One node, in process.
    Local(LocalBus),
}

impl Bus {
    /// Tells all nodes, this one included. Returns at once; nothing is promised.
    pub fn tell(&self, notice: Notice) {
        match self {
            Self::Local(bus) => bus.tell(notice),
        }
    }
}
