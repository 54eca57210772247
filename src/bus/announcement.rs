//! What the bus carries for the hubs of all nodes, as values.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::Epoch;

/// What one committed unit of work (or several) added to one channel.
#[derive(Debug, Clone)]
pub struct Announcement {
    pub channel: ChannelName,
    /// What was added.
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

/// A client joined a channel or left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceChange {
    /// `true` if the client joined, `false` if it left.
    pub joined: bool,
    /// ClientInfo as JSON.
    pub info: Arc<str>,
}

/// An event for the hub of a node.
#[derive(Debug, Clone)]
pub enum HubEvent {
    /// Announcements of committed events.
    Appended(Vec<Announcement>),
    /// Something may have been committed on these channels: the log must be read.
    Check(Vec<ChannelName>),
    /// Something may have been committed on any channel that is followed here.
    CheckAll,
    /// A client of another node joined a channel or left it.
    PresenceChanged(ChannelName, PresenceChange),
}

/// Handles hub events. Must not block.
pub type EventHandler = Arc<dyn Fn(HubEvent) + Send + Sync>;

/// Handles a message of another node, whose id comes first. Must not block.
pub type MessageHandler = Arc<dyn Fn(Uuid, &str) + Send + Sync>;

/// What handles that which arrives from other nodes.
#[derive(Clone)]
pub struct BusHandlers {
    pub on_event: EventHandler,
    pub on_message: MessageHandler,
}
