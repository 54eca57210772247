//! Events on their way to the subscribers of a worker thread: encoded once for all who take them
//! unchanged, and merged into few writes when several come together.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::bus::PresenceChange;
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::event::{Delta, Event};
use crate::domain::position::{Epoch, Position};
use crate::hub::outbox::MERGE;
use crate::hub::presence::Member;
use crate::protocol::delta;
use crate::protocol::filter::{Tags, tags_of};
use crate::protocol::form::Form;
use crate::protocol::frames::Frames;
use crate::protocol::push::{Push, channel_json, write_publication_push, write_publication_uni};
use crate::protocol::reply::as_text;
use crate::protocol::{sse, websocket};
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
    built_in: bool,
    /// `None` for events that are not kept.
    pub(super) epoch: Option<Epoch>,
    pub(super) events: Vec<Event>,
    pub(super) accepted: Option<Instant>,
    as_sse: OnceLock<Bytes>,
    as_websocket: OnceLock<Bytes>,
    as_form: [OnceLock<Bytes>; Form::COUNT],
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
        let built_in = channel.is_built_in();
        Self {
            channel,
            built_in,
            epoch,
            events,
            accepted,
            as_sse: OnceLock::new(),
            as_websocket: OnceLock::new(),
            as_form: Default::default(),
            variants: Variants::default(),
        }
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

/// How a subscriber's events become bytes.
#[derive(Clone)]
pub enum Framing {
    /// SSE of one channel: the cursor is the event's own position, so all share the bytes.
    Sse,
    /// SSE of several channels: the cursor holds the positions of all of them.
    SseMany(Rc<Cursors>),
    /// The client protocol in frames of WebSocket.
    WebSocket,
    /// The client protocol in another form.
    Form(Form),
}

/// The positions of a stream of several channels.
#[derive(Default)]
pub struct Cursors(RefCell<BTreeMap<ChannelName, Position>>);

impl Cursors {
    /// Moves one channel and answers the cursor of all.
    pub fn advance(&self, channel: &ChannelName, position: Position) -> String {
        let mut positions = self.0.borrow_mut();
        positions.insert(channel.clone(), position);
        Cursor::Many(positions.clone()).to_string()
    }
}

impl Framing {
    /// The cursor after `position` on `channel`, as it is written into a frame.
    pub fn cursor(&self, channel: &ChannelName, position: &Position) -> String {
        match self {
            Self::Sse | Self::WebSocket | Self::Form(_) => position.to_string(),
            Self::SseMany(cursors) => cursors.advance(channel, position.clone()),
        }
    }

    /// The events of `batch` after the offset `after`.
    pub(super) fn encode(&self, batch: &Batch, after: u64) -> Bytes {
        let whole = after < batch.first() || batch.epoch.is_none();
        let shared = match self {
            Self::Sse if whole => &batch.as_sse,
            Self::WebSocket if whole => &batch.as_websocket,
            Self::Form(form) if whole => &batch.as_form[form.index()],
            _ => return self.encode_after(batch, after),
        };
        shared.get_or_init(|| self.encode_after(batch, after)).clone()
    }

    fn encode_after(&self, batch: &Batch, after: u64) -> Bytes {
        let events = batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after);
        if let Self::WebSocket = self {
            let channel = channel_json(&batch.channel);
            let mut frames = Frames::new();
            events.for_each(|event| frames.add(|out| write_publication_push(out, &channel, event)));
            let mut bytes = BytesMut::new();
            frames.take().iter().for_each(|frame| websocket::push_text(&mut bytes, frame));
            return bytes.freeze();
        }
        if let Self::Form(form) = self {
            let channel = channel_json(&batch.channel);
            let (mut text, mut bytes) = (String::new(), BytesMut::new());
            for event in events {
                text.clear();
                if form.is_uni() {
                    write_publication_uni(&mut text, &channel, event);
                } else {
                    write_publication_push(&mut text, &channel, event);
                }
                form.add(&mut bytes, &text);
            }
            return bytes.freeze();
        }
        let mut text = String::new();
        for event in events {
            let id = batch
                .epoch
                .as_ref()
                .map(|epoch| self.cursor(&batch.channel, &Position::new(epoch.clone(), event.offset)));
            sse::write_event(&mut text, batch.built_in, event, id.as_deref());
        }
        Bytes::from(text)
    }

    /// One push about a channel, as the client protocol has it.
    pub(super) fn push(&self, push: &Push<'_>) -> Bytes {
        let mut text = String::new();
        if let Self::Form(form) = self {
            form.write_push(&mut text, push);
            return form.message(&text);
        }
        push.write(&mut text);
        websocket::text(&text)
    }

    /// Whether all subscribers of a channel get the same bytes.
    pub(super) fn is_shared(&self) -> bool {
        !matches!(self, Self::SseMany(_))
    }
}

/// Consecutive batches of one channel, merged. What every subscriber needs of them is computed once.
pub(super) struct MergedBatch<'a> {
    pub(super) batches: Vec<&'a Arc<Batch>>,
    first: u64,
    last: u64,
    events: u64,
    accepted: Option<Instant>,
    as_sse: OnceCell<Vec<Bytes>>,
    as_websocket: OnceCell<Vec<Bytes>>,
    as_form: [OnceCell<Vec<Bytes>>; Form::COUNT],
}

impl<'a> MergedBatch<'a> {
    pub(super) fn of(batch: &'a Arc<Batch>) -> Self {
        Self {
            batches: vec![batch],
            first: batch.first(),
            last: batch.last(),
            events: batch.events.len() as u64,
            accepted: batch.accepted,
            as_sse: OnceCell::new(),
            as_websocket: OnceCell::new(),
            as_form: Default::default(),
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
        let made = match framing {
            Framing::WebSocket => &self.as_websocket,
            Framing::Form(form) => &self.as_form[form.index()],
            Framing::Sse | Framing::SseMany(_) => &self.as_sse,
        };
        made.get_or_init(|| match &self.batches[..] {
            [only] => vec![framing.encode(only, 0)],
            several => {
                let mut chunks = Vec::new();
                let mut open = BytesMut::new();
                for bytes in several.iter().map(|batch| framing.encode(batch, 0)) {
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
