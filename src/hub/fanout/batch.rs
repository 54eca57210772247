//! Events on their way to the subscribers of a worker thread: encoded once for all who take them
//! unchanged, and merged into few writes when several come together.

use std::cell::OnceCell;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::bus::PresenceChange;
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Epoch;
use crate::domain::presence::Member;
use crate::hub::outbox::MERGE;
use crate::protocol::delta;
use crate::protocol::encoding::Framing;
use crate::protocol::filter::{Tags, tags_of};
use crate::protocol::reply::as_text;
use crate::store::log::Bounds;

/// What a channel actor sends to worker threads.
#[derive(Clone)]
pub enum FanoutMessage {
    /// The next events.
    Events(Arc<Batch>),
    /// The history was replaced; these are the new one's bounds.
    Reset(ChannelName, Bounds),
    /// A client joined or left.
    Presence(ChannelName, PresenceChange),
    /// A request for the clients on the channel; each thread answers for its own.
    ListMembers(ChannelName, mpsc::Sender<Vec<Member>>),
}

impl FanoutMessage {
    pub(super) fn channel(&self) -> &ChannelName {
        match self {
            Self::Events(batch) => &batch.channel,
            Self::Reset(channel, _) | Self::Presence(channel, _) | Self::ListMembers(channel, _) => channel,
        }
    }
}

/// Events of one channel, encoded once for all who take them unchanged.
pub struct Batch {
    pub(super) channel: ChannelName,
    /// `None` for events that are not kept.
    pub(super) epoch: Option<Epoch>,
    pub(super) events: Vec<Event>,
    pub(super) accepted: Option<Instant>,
    /// As bytes, by [`Framing::index`].
    encoded: [OnceLock<Bytes>; Framing::COUNT],
    /// For subscribers with a filter or deltas.
    variants: Variants,
}

/// Variants of a batch, made when the first subscriber needs them.
#[derive(Default)]
struct Variants {
    /// The event before the first one, where data may be sent as deltas.
    before: Option<Event>,
    /// Whether deltas are allowed for all events, and not only for those published with them.
    all: bool,
    tags: OnceLock<Vec<Tags>>,
    deltas: OnceLock<Vec<Option<String>>>,
    /// With data as strings: for subscribers that have nothing yet, and for those that have `before`.
    from_nothing: OnceLock<Arc<Batch>>,
    from_before: OnceLock<Arc<Batch>>,
}

impl Batch {
    /// `events` are contiguous and ascending, unless they are not kept.
    pub fn new(
        channel: ChannelName,
        epoch: Option<Epoch>,
        events: Vec<Event>,
        accepted: Option<Instant>,
    ) -> Self {
        Self { channel, epoch, events, accepted, encoded: Default::default(), variants: Variants::default() }
    }

    /// Makes this the batch of a channel whose data may be sent as deltas: `before` is the event before
    /// it, and `all` says whether all events may be deltas.
    #[must_use]
    pub fn with_previous(mut self, before: Option<Event>, all: bool) -> Self {
        (self.variants.before, self.variants.all) = (before, all);
        self
    }

    pub(super) fn before(&self) -> Option<&Event> {
        self.variants.before.as_ref()
    }

    /// The tags of each event.
    pub(super) fn tags(&self) -> &[Tags] {
        self.variants.tags.get_or_init(|| self.events.iter().map(tags_of).collect())
    }

    /// The event at `i` as a delta to the one before it, where that is allowed and shorter.
    pub(super) fn delta(&self, i: usize) -> Option<&str> {
        let between = |i: usize| {
            let before = if i == 0 { self.before() } else { self.events.get(i - 1) }?;
            let event = &self.events[i];
            let may = self.epoch.is_some() && (self.variants.all || event.delta == Delta::May);
            may.then(|| delta::between(&before.data, &event.data))?
        };
        let deltas = self.variants.deltas.get_or_init(|| (0..self.events.len()).map(between).collect());
        deltas[i].as_deref()
    }

    /// All events with strings for data, the first one a delta to `before` if that `follows`.
    pub(super) fn in_deltas(&self, follows: bool) -> &Arc<Self> {
        let made = if follows { &self.variants.from_before } else { &self.variants.from_nothing };
        made.get_or_init(|| {
            let text = |(i, event)| as_text(event, self.delta(i).filter(|_| i > 0 || follows));
            let encoded: Vec<Event> = self.events.iter().enumerate().map(text).collect();
            Arc::new(Self::new(self.channel.clone(), self.epoch.clone(), encoded, self.accepted))
        })
    }

    /// Some of `events`, as a batch of the same channel and history.
    pub(super) fn subset(&self, events: &[Event], some: &[usize]) -> Arc<Self> {
        let events = some.iter().map(|i| events[*i].clone()).collect();
        Arc::new(Self::new(self.channel.clone(), self.epoch.clone(), events, self.accepted))
    }

    /// The events after the offset `after` as bytes, which are made once for all who get the same.
    pub(super) fn encode(&self, framing: &Framing, after: u64) -> Bytes {
        let encode = || {
            let new = self.events.iter().filter(|event| self.epoch.is_none() || event.offset > after);
            framing.encode(&self.channel, self.epoch.as_ref(), new)
        };
        let whole = after < self.first() || self.epoch.is_none();
        match whole && framing.is_shared() {
            true => self.encoded[framing.index()].get_or_init(encode).clone(),
            false => encode(),
        }
    }

    /// The history they belong to; `None` for events that are not kept.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub(super) fn first(&self) -> u64 {
        self.events.first().map_or(0, |event| event.offset)
    }

    pub(super) fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.offset)
    }
}

/// Consecutive batches of one channel, merged. What every subscriber needs of them is computed once.
pub(super) struct MergedBatch<'a> {
    pub(super) batches: Vec<&'a Arc<Batch>>,
    first: u64,
    last: u64,
    events: u64,
    accepted: Option<Instant>,
    /// By [`Framing::index`].
    encoded: [OnceCell<Vec<Bytes>>; Framing::COUNT],
}

impl<'a> MergedBatch<'a> {
    pub(super) fn of(batch: &'a Arc<Batch>) -> Self {
        Self {
            batches: vec![batch],
            first: batch.first(),
            last: batch.last(),
            events: batch.events.len() as u64,
            accepted: batch.accepted,
            encoded: Default::default(),
        }
    }

    /// Takes one more batch, if it follows.
    pub(super) fn extend(&mut self, next: &'a Arc<Batch>) -> bool {
        let follows =
            next.epoch.as_ref() == self.epoch() && (next.epoch.is_none() || next.first() == self.last + 1);
        if follows {
            self.batches.push(next);
            self.last = next.last();
            self.events += next.events.len() as u64;
            self.accepted = self.accepted.into_iter().chain(next.accepted).min();
        }
        follows
    }

    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.batches.first().and_then(|batch| batch.epoch.as_ref())
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// When the oldest of it was accepted.
    pub(super) fn accepted(&self) -> Option<Instant> {
        self.accepted
    }

    /// All of it as bytes, in as few writes as [`MERGE`] allows; made once for all subscribers.
    pub(super) fn chunks(&self, framing: &Framing) -> &[Bytes] {
        self.encoded[framing.index()].get_or_init(|| match &self.batches[..] {
            [only] => vec![only.encode(framing, 0)],
            several => {
                let mut chunks = Vec::new();
                let mut open = BytesMut::new();
                for bytes in several.iter().map(|batch| batch.encode(framing, 0)) {
                    if !open.is_empty() && open.len() + bytes.len() > MERGE {
                        chunks.push(std::mem::take(&mut open).freeze());
                    }
                    open.extend_from_slice(&bytes);
                }
                chunks.push(open.freeze());
                chunks
            }
        })
    }
}
