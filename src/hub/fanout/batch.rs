//! Events on their way to the entries of a worker thread: encoded once for all that take them
//! whole, and merged into few writes when several come together.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::bus::Movement;
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
pub enum Parcel {
    /// These come next.
    Events(Arc<Batch>),
    /// The history was replaced; these are the new one's bounds.
    Reset(ChannelName, Bounds),
    /// Somebody came or left.
    Moved(ChannelName, Movement),
    /// Somebody asks who is on the channel; this thread answers for its own.
    Who(ChannelName, mpsc::Sender<Vec<Member>>),
}

impl Parcel {
    pub(super) fn channel(&self) -> &ChannelName {
        match self {
            Self::Events(batch) => &batch.channel,
            Self::Reset(channel, _) | Self::Moved(channel, _) | Self::Who(channel, _) => channel,
        }
    }
}

/// Events of one channel, encoded once for all that take them whole.
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
    /// For those who do not take it as it stands.
    tailored: Tailored,
}

/// What is made of a batch on first wish.
#[derive(Default)]
struct Tailored {
    /// The event before the first one, where data may come as differences.
    before: Option<Event>,
    /// Whether all events may, and not only those that were published so.
    all: bool,
    tags: OnceLock<Vec<Tags>>,
    deltas: OnceLock<Vec<Option<String>>>,
    /// With texts for data: for those who have nothing yet, and for those who have `before`.
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
            tailored: Tailored::default(),
        }
    }

    /// The same on a channel whose data may come as differences: what came `before`, and whether
    /// `all` events may.
    #[must_use]
    pub fn behind(mut self, before: Option<Event>, all: bool) -> Self {
        (self.tailored.before, self.tailored.all) = (before, all);
        self
    }

    pub(super) fn before(&self) -> Option<&Event> {
        self.tailored.before.as_ref()
    }

    /// The tags of each event.
    pub(super) fn tags(&self) -> &[Tags] {
        self.tailored.tags.get_or_init(|| self.events.iter().map(tags_of).collect())
    }

    /// The event at `i` as the difference to the one before it, where it may be told so and is
    /// shorter.
    pub(super) fn delta(&self, i: usize) -> Option<&str> {
        let between = |i: usize| {
            let before = if i == 0 { self.before() } else { self.events.get(i - 1) }?;
            let event = &self.events[i];
            let may = self.epoch.is_some() && (self.tailored.all || event.delta == Delta::May);
            may.then(|| delta::between(&before.data, &event.data))?
        };
        let deltas = self.tailored.deltas.get_or_init(|| (0..self.events.len()).map(between).collect());
        deltas[i].as_deref()
    }

    /// All of it with texts for data, the first one a difference to `before` if that `follows`.
    pub(super) fn in_deltas(&self, follows: bool) -> &Arc<Self> {
        let made = if follows { &self.tailored.from_before } else { &self.tailored.from_nothing };
        made.get_or_init(|| {
            let text = |(i, event)| as_text(event, self.delta(i).filter(|_| i > 0 || follows));
            let told: Vec<Event> = self.events.iter().enumerate().map(text).collect();
            Arc::new(Self::new(self.channel.clone(), self.epoch.clone(), told, self.accepted))
        })
    }

    /// Some of `events`, as a batch of the same channel and history.
    pub(super) fn made_of(&self, events: &[Event], some: &[usize]) -> Arc<Self> {
        let events = some.iter().map(|i| events[*i].clone()).collect();
        Arc::new(Self::new(self.channel.clone(), self.epoch.clone(), events, self.accepted))
    }

    /// The history they belong to; `None` for events that are not kept.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// The events.
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

/// How an entry's events become bytes.
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

    /// Whether all entries of a channel get the same bytes.
    pub(super) fn is_shared(&self) -> bool {
        !matches!(self, Self::SseMany(_))
    }
}

/// Batches of one channel that came together and follow each other. What each entry asks of them is
/// summed up once.
pub(super) struct Run<'a> {
    pub(super) batches: Vec<&'a Arc<Batch>>,
    first: u64,
    last: u64,
    events: u64,
    accepted: Option<Instant>,
    as_sse: OnceCell<Vec<Bytes>>,
    as_websocket: OnceCell<Vec<Bytes>>,
    as_form: [OnceCell<Vec<Bytes>>; Form::COUNT],
}

impl<'a> Run<'a> {
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

    /// All of it as bytes, in as few writes as [`MERGE`] allows; made once for all entries.
    pub(super) fn pieces(&self, framing: &Framing) -> &[Bytes] {
        let made = match framing {
            Framing::WebSocket => &self.as_websocket,
            Framing::Form(form) => &self.as_form[form.index()],
            Framing::Sse | Framing::SseMany(_) => &self.as_sse,
        };
        made.get_or_init(|| match &self.batches[..] {
            [only] => vec![framing.encode(only, 0)],
            several => {
                let mut pieces = Vec::new();
                let mut open = BytesMut::new();
                for bytes in several.iter().map(|batch| framing.encode(batch, 0)) {
                    if !open.is_empty() && open.len() + bytes.len() > MERGE {
                        pieces.push(std::mem::take(&mut open).freeze());
                    }
                    open.extend_from_slice(&bytes);
                }
                pieces.push(open.freeze());
                pieces
            }
        })
    }
}
