//! What a subscriber follows and how far it is, what all subscribers share, and how a connection ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::history::{Digest, Entry, Transport};
use crate::plan::Scenario;

/// An event of a configured namespace, as event streams and polls bring it.
#[derive(Deserialize)]
pub struct ConfiguredEvent<'a> {
    pub offset: u32,
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// A channel, and where it begins.
#[derive(Debug, Clone)]
pub struct Channel {
    pub name: String,
    /// The epoch of its positions, until it gets another one.
    pub epoch: String,
    /// Configured namespaces shape their events differently from built-in ones.
    pub built_in: bool,
}

#[derive(Debug, Clone)]
pub enum Phase {
    Publishing,
    /// No more will come: these are the epochs and heads, by channel.
    Settling(Arc<Vec<(String, u32)>>),
    /// Nobody waits any longer.
    Over,
}

/// What subscribers have in common.
#[derive(Clone)]
pub struct Context {
    pub address: SocketAddr,
    pub channels: Arc<Vec<Channel>>,
    pub scenario: Scenario,
    /// How many times longer than usual their connections last.
    pub patience: u32,
    pub transports: Vec<Transport>,
    pub phase: watch::Receiver<Phase>,
    pub counters: Arc<Counters>,
}

/// What happened to subscribers, over all of them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections and polls that began.
    pub connections: AtomicU64,
    pub events: AtomicU64,
    /// Connections that were closed as slow (3008).
    pub slow: AtomicU64,
}

/// A cursor on one channel, and what it has passed.
#[derive(Debug)]
pub struct Subscription {
    /// Which of the channels.
    pub channel: usize,
    pub epoch: String,
    /// The last offset seen.
    pub offset: u32,
    pub etag: Option<String>,
    /// Left out by a signal and not read yet: the offset before, and the last.
    pub unread: Vec<(u32, u32)>,
    pub history: Vec<Entry>,
}

impl Subscription {
    /// At the beginning of a channel.
    pub fn new(channel: usize, epoch: &str) -> Self {
        let (epoch, unread, history) = (epoch.to_owned(), Vec::new(), Vec::new());
        Self { channel, epoch, offset: 0, etag: None, unread, history }
    }

    pub fn event(&mut self, offset: u32, data: &str) {
        self.history.push(Entry::Event { offset, digest: Digest::of(data) });
        self.offset = self.offset.max(offset);
    }

    /// The server goes on behind `head`, wherever this was.
    pub fn signal(&mut self, head: u32) {
        self.history.push(Entry::Signal { head });
        if head > self.offset {
            self.unread.push((self.offset, head));
        }
        self.offset = head;
    }

    /// Everything up to `to` is gone, and nothing before it is left to be read.
    pub fn gone(&mut self, to: u32, head: u32) {
        self.history.extend([Entry::Signal { head: to }, Entry::Gone { to, head }]);
        self.offset = to;
    }

    /// The channel has another history, of which nothing is known yet.
    pub fn change_epoch(&mut self, epoch: &str) {
        self.history.push(Entry::EpochChanged(Box::new(epoch.to_owned())));
        epoch.clone_into(&mut self.epoch);
        (self.offset, self.etag) = (0, None);
        self.unread.clear();
    }

    /// The server did what it never should.
    pub fn unexpected(&mut self, what: impl Into<String>) {
        self.history.push(Entry::Unexpected(Box::new(what.into())));
    }
}

/// Why a connection is over, without a violation or with one that is in the history already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Ended(pub &'static str);
