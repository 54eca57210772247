//! A worker thread's subscribers by channel: the loop that delivers. Lives on one thread, locks
//! nothing and never waits. Every entry knows its position, so whatever happens on the way here
//! (a parcel that did not fit, a history that was replaced) an entry that sees a hole goes back on
//! hold and catches up from the log; it can neither skip nor repeat an event.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::outbox::{Outbox, Refused};
use super::{CannotFollow, Hub, Worker};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};
use crate::protocol::sse;
use crate::store::log::Bounds;
use crate::telemetry::{Metrics, count};
use crate::vital;

/// Events that an entry on hold keeps; with more it reads the log again instead.
const MAX_HELD: usize = 1024;
/// Parcels that are handled before other tasks of the thread get a turn.
const TURN: usize = 64;

/// What a channel actor sends to worker threads.
#[derive(Clone)]
pub enum Parcel {
    /// These come next.
    Events(Arc<Batch>),
    /// The history was replaced; these are the new one's bounds.
    Reset(ChannelName, Bounds),
}

/// Events of one channel, encoded once for all that take them whole.
pub struct Batch {
    channel: ChannelName,
    built_in: bool,
    /// `None` for events that are not kept.
    epoch: Option<Epoch>,
    events: Vec<Event>,
    accepted: Option<Instant>,
    as_sse: OnceLock<Bytes>,
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
        Self { channel, built_in, epoch, events, accepted, as_sse: OnceLock::new() }
    }

    /// The history they belong to; `None` for events that are not kept.
    pub fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    fn first(&self) -> u64 {
        self.events.first().map_or(0, |event| event.offset)
    }

    fn last(&self) -> u64 {
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
            Self::Sse => position.to_string(),
            Self::SseMany(cursors) => cursors.advance(channel, position.clone()),
        }
    }

    fn encode(&self, batch: &Batch, after: u64) -> Bytes {
        let whole = after < batch.first() || batch.epoch.is_none();
        match self {
            Self::Sse if whole => batch.as_sse.get_or_init(|| self.encode_after(batch, after)).clone(),
            Self::Sse | Self::SseMany(_) => self.encode_after(batch, after),
        }
    }

    fn encode_after(&self, batch: &Batch, after: u64) -> Bytes {
        let mut text = String::new();
        for event in batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after) {
            let id = batch
                .epoch
                .as_ref()
                .map(|epoch| self.cursor(&batch.channel, &Position::new(epoch.clone(), event.offset)));
            sse::write_event(&mut text, batch.built_in, event, id.as_deref());
        }
        Bytes::from(text)
    }
}

/// One connection's interest in one channel.
pub struct Entry {
    channel: ChannelName,
    outbox: Rc<Outbox>,
    framing: Framing,
    state: RefCell<State>,
    /// Rings when the entry went back on hold.
    held: Notify,
    metrics: Arc<Metrics>,
}

enum State {
    /// Events wait here until the connection has caught up.
    Hold(Hold),
    /// Everything up to the position was pushed; `None` where nothing is kept.
    Live(Option<Position>),
}

/// What came while an entry was on hold.
#[derive(Default)]
struct Hold {
    batches: Vec<Arc<Batch>>,
    events: usize,
    bytes: usize,
    /// Something was dropped: the log has it.
    incomplete: bool,
    /// Up to where everything had been pushed when the entry fell behind.
    resume: Option<Position>,
}

impl Hold {
    /// Keeps `batch`, unless with it there are too many events or more than `most` bytes: they are
    /// all pushed at once in the end, and must not look like a reader's leavings.
    fn add(&mut self, batch: &Arc<Batch>, most: usize) {
        self.events += batch.events.len();
        self.bytes += batch.events.iter().map(|event| event.data.len()).sum::<usize>();
        if self.events > MAX_HELD || self.bytes > most {
            self.batches.clear();
            self.incomplete = true;
        }
        if !self.incomplete {
            self.batches.push(batch.clone());
        }
    }
}

/// What became of an attempt to go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The entry is live.
    Live,
    /// What was held does not join on: read the log once more.
    Missed,
}

impl Entry {
    /// The channel.
    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The cursor after `position`, for frames that the connection makes itself.
    pub fn cursor(&self, position: &Position) -> String {
        self.framing.cursor(&self.channel, position)
    }

    /// Pushes events that were read from the log; only while the entry is on hold.
    pub fn replay(&self, epoch: &Epoch, events: Vec<Event>) -> Result<(), Refused> {
        let batch = Batch::new(self.channel.clone(), Some(epoch.clone()), events, None);
        count_by(&self.metrics, batch.events.len() as u64);
        self.outbox.push_replay(self.framing.encode(&batch, 0))
    }

    /// How many bytes of events are best pushed at once.
    pub fn piece(&self) -> usize {
        self.outbox.limit() / 4
    }

    /// Goes live behind `position`: pushes what was held beyond it. If that leaves a hole the
    /// entry stays on hold, and [`Entry::resume_position`] says from where to read on.
    pub fn release(&self, position: Option<Position>) -> Release {
        let hold = match &mut *self.state.borrow_mut() {
            State::Hold(hold) => std::mem::take(hold),
            State::Live(_) => return Release::Live,
        };
        if hold.incomplete && position.is_some() {
            return Release::Missed;
        }
        *self.state.borrow_mut() = State::Live(position);
        hold.batches.iter().for_each(|batch| self.take(batch));
        if matches!(*self.state.borrow(), State::Hold(_)) { Release::Missed } else { Release::Live }
    }

    /// Resolves when the entry is on hold again, with the position from which it has to catch up.
    pub async fn fell_behind(&self) -> Position {
        loop {
            if let Some(position) = self.resume_position() {
                return position;
            }
            self.held.notified().await;
        }
    }

    /// From where an entry that fell behind has to catch up.
    pub fn resume_position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Hold(hold) => hold.resume.clone(),
            State::Live(_) => None,
        }
    }

    /// Waits until the connection can take more, see [`Outbox::room`].
    pub async fn room(&self) {
        self.outbox.room().await;
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        self.outbox.is_over()
    }

    /// Up to where everything was pushed, if the entry is live.
    pub fn position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Live(position) => position.clone(),
            State::Hold(_) => None,
        }
    }

    /// Takes a batch from the channel.
    fn take(&self, batch: &Arc<Batch>) {
        let mut state = self.state.borrow_mut();
        let after = match &mut *state {
            State::Hold(hold) => return hold.add(batch, self.piece()),
            State::Live(_) if batch.epoch.is_none() => 0,
            State::Live(position) => {
                let joins = position.as_ref().filter(|position| {
                    Some(&position.epoch) == batch.epoch.as_ref() && batch.first() <= position.offset + 1
                });
                let Some(joined) = joins else {
                    // Everything from this batch on is held; the log has what is missing before it.
                    // A batch of another history is dropped: held, it would never join.
                    let resume = position.take();
                    let same = resume.as_ref().map(|resume| &resume.epoch) == batch.epoch.as_ref();
                    let mut hold = Hold { resume, incomplete: !same, ..Hold::default() };
                    hold.add(batch, self.piece());
                    *state = State::Hold(hold);
                    self.held.notify_one();
                    return;
                };
                let after = joined.offset;
                if batch.last() <= after {
                    return;
                }
                *position = Some(Position::new(joined.epoch.clone(), batch.last()));
                after
            }
        };
        drop(state);
        // A refusal closes the connection, which then lets go of this entry.
        let _ = self.push(batch, after);
    }

    /// The channel's history was replaced.
    fn reset(&self, bounds: &Bounds) {
        let mut state = self.state.borrow_mut();
        match &mut *state {
            State::Hold(hold) => {
                *hold = Hold { incomplete: true, resume: hold.resume.take(), ..Hold::default() };
                return;
            }
            State::Live(Some(position)) if position.epoch == bounds.head.epoch => {
                // By a read of its own it may be further than the channel was, and has lost nothing.
                if position.offset >= bounds.head.offset {
                    return;
                }
                if bounds.covers(position) {
                    let resume = Some(position.clone());
                    *state = State::Hold(Hold { incomplete: true, resume, ..Hold::default() });
                    self.held.notify_one();
                    return;
                }
                *position = bounds.head.clone();
            }
            State::Live(position) => *position = Some(bounds.head.clone()),
        }
        drop(state);
        let _ = self.push_reset(bounds);
    }

    /// Tells the reader that its place is gone and where it is now.
    pub fn push_reset(&self, bounds: &Bounds) -> Result<(), Refused> {
        let id = self.cursor(&bounds.head);
        let frame = sse::reset(&self.channel, &bounds.oldest(), &bounds.head, Some(&id));
        self.hand(Bytes::from(frame), None)
    }

    fn push(&self, batch: &Batch, after: u64) -> Result<(), Refused> {
        let bytes = self.framing.encode(batch, after);
        let sent = batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after).count();
        count_by(&self.metrics, sent as u64);
        self.hand(bytes, batch.accepted)
    }

    fn hand(&self, bytes: Bytes, accepted: Option<Instant>) -> Result<(), Refused> {
        let done = self.outbox.push(bytes, accepted);
        if done == Err(Refused::Overflow) {
            count(&self.metrics.slow_disconnects, "queue");
            tracing::info!(channel = %self.channel, "a reader is too slow and was disconnected");
        }
        done
    }
}

fn count_by(metrics: &Metrics, events: u64) {
    metrics.deliveries.get_or_create(&crate::telemetry::Kind { kind: "sse" }).inc_by(events);
}

/// The subscribers of one worker thread.
pub struct Fanout {
    worker: Worker,
    hub: Hub,
    routes: RefCell<HashMap<ChannelName, Vec<Rc<Entry>>>>,
    metrics: Arc<Metrics>,
}

impl Fanout {
    /// A fan-out for the calling thread, with the task that empties its inbox.
    pub fn start(hub: Hub, metrics: Arc<Metrics>) -> Rc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let (inbox, parcels) = mpsc::channel(hub.0.options.inbox);
        let worker = Worker { id: NEXT.fetch_add(1, Ordering::Relaxed), inbox };
        let fanout = Rc::new(Self { worker, hub, routes: RefCell::default(), metrics });
        actix_rt::spawn(vital::part(fanout.clone().run(parcels)));
        fanout
    }

    async fn run(self: Rc<Self>, mut parcels: mpsc::Receiver<Parcel>) {
        let mut turn = Vec::with_capacity(TURN);
        while parcels.recv_many(&mut turn, TURN).await > 0 {
            for parcel in turn.drain(..) {
                self.deliver(&parcel);
            }
            // What was pushed leaves merged, before the next turn.
            tokio::task::yield_now().await;
        }
    }

    fn deliver(&self, parcel: &Parcel) {
        let channel = match parcel {
            Parcel::Events(batch) => &batch.channel,
            Parcel::Reset(channel, _) => channel,
        };
        let routes = self.routes.borrow();
        for entry in routes.get(channel).into_iter().flatten() {
            match parcel {
                Parcel::Events(batch) => entry.take(batch),
                Parcel::Reset(_, bounds) => entry.reset(bounds),
            }
        }
    }

    /// Adds an entry on hold, and then makes this thread follow the channel. Everything after the
    /// answered position reaches the entry; what is before it is in the log.
    pub async fn subscribe(
        self: &Rc<Self>,
        channel: ChannelName,
        outbox: Rc<Outbox>,
        framing: Framing,
    ) -> Result<(Subscription, Option<Position>), CannotFollow> {
        let entry = Rc::new(Entry {
            channel: channel.clone(),
            outbox,
            framing,
            state: RefCell::new(State::Hold(Hold::default())),
            held: Notify::new(),
            metrics: self.metrics.clone(),
        });
        self.routes.borrow_mut().entry(channel.clone()).or_default().push(entry.clone());
        self.metrics.subscriptions.inc();
        let subscription = Subscription { fanout: self.clone(), entry };
        let position = self.hub.join(&channel, &self.worker).await?;
        Ok((subscription, position))
    }
}

/// An entry that is there as long as this is.
pub struct Subscription {
    fanout: Rc<Fanout>,
    entry: Rc<Entry>,
}

impl Subscription {
    /// The entry.
    pub fn entry(&self) -> &Rc<Entry> {
        &self.entry
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut routes = self.fanout.routes.borrow_mut();
        let Some(entries) = routes.get_mut(&self.entry.channel) else { return };
        if let Some(index) = entries.iter().position(|entry| Rc::ptr_eq(entry, &self.entry)) {
            entries.swap_remove(index);
            self.fanout.metrics.subscriptions.dec();
        }
        if entries.is_empty() {
            routes.remove(&self.entry.channel);
            self.fanout.hub.leave(&self.entry.channel, self.fanout.worker.id);
        }
    }
}

#[cfg(test)]
mod tests;
