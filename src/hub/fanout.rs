//! A worker thread's subscribers by channel: the loop that delivers. Lives on one thread, locks
//! nothing and never waits. Every entry knows its position, so whatever happens on the way here
//! (a parcel that did not fit, a history that was replaced) an entry that sees a hole goes back on
//! hold and catches up from the log; it can neither skip nor repeat an event.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::outbox::{MERGE, Outbox, Refused};
use super::presence::{Attendance, Movement};
use super::{CannotFollow, Hub, Worker};
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};
use crate::protocol::frames::Frames;
use crate::protocol::push::{OnChannel, Push, channel_json, write_publication_push};
use crate::protocol::{sse, websocket};
use crate::store::log::Bounds;
use crate::telemetry::{Counter, Family, Kind, Metrics, count};
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
    /// Somebody came or left.
    Moved(ChannelName, Movement),
}

impl Parcel {
    fn channel(&self) -> &ChannelName {
        match self {
            Self::Events(batch) => &batch.channel,
            Self::Reset(channel, _) | Self::Moved(channel, _) => channel,
        }
    }
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
    as_websocket: OnceLock<Bytes>,
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
        }
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
    /// The client protocol in frames of WebSocket.
    WebSocket,
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
            Self::Sse | Self::WebSocket => position.to_string(),
            Self::SseMany(cursors) => cursors.advance(channel, position.clone()),
        }
    }

    /// The events of `batch` after the offset `after`.
    fn encode(&self, batch: &Batch, after: u64) -> Bytes {
        let whole = after < batch.first() || batch.epoch.is_none();
        let shared = match self {
            Self::Sse if whole => &batch.as_sse,
            Self::WebSocket if whole => &batch.as_websocket,
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

    /// Whether all entries of a channel get the same bytes.
    fn is_shared(&self) -> bool {
        !matches!(self, Self::SseMany(_))
    }
}

/// One connection's interest in one channel.
pub struct Entry {
    channel: ChannelName,
    outbox: Rc<Outbox>,
    framing: Framing,
    state: RefCell<State>,
    /// Whether its client is told who comes and leaves.
    hears_others: bool,
    tally: Rc<Tally>,
}

/// What a worker thread counts while it delivers.
struct Tally {
    metrics: Arc<Metrics>,
    sse: Counter,
    websocket: Counter,
    websocket_bytes: Counter,
}

impl Tally {
    fn new(metrics: Arc<Metrics>) -> Self {
        let of = |family: &Family<Kind, Counter>, kind| family.get_or_create(&Kind { kind }).clone();
        Self {
            sse: of(&metrics.deliveries, "sse"),
            websocket: of(&metrics.deliveries, "websocket"),
            websocket_bytes: of(&metrics.delivered_bytes, "websocket"),
            metrics,
        }
    }
}

enum State {
    /// Events wait here until the connection has caught up.
    Hold(Hold),
    /// Everything up to the position was pushed; `None` where nothing is kept.
    Live(Option<Position>),
    /// The subscription is over: nothing is pushed any more.
    Over,
}

/// One thing that came while an entry was on hold.
enum Held {
    Batch(Arc<Batch>),
    Moved(Movement),
}

/// What came while an entry was on hold.
#[derive(Default)]
struct Hold {
    held: Vec<Held>,
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
            self.held.clear();
            self.incomplete = true;
        }
        if !self.incomplete {
            self.held.push(Held::Batch(batch.clone()));
        }
    }
}

/// Whether what came follows what was there.
#[derive(PartialEq, Eq)]
enum Continuity {
    Whole,
    /// Something is missing in between; the entry is on hold.
    Broken,
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
        if matches!(*self.state.borrow(), State::Over) {
            return Err(Refused::Closed);
        }
        let batch = Batch::new(self.channel.clone(), Some(epoch.clone()), events, None);
        self.count(batch.events.len() as u64);
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
            State::Live(_) | State::Over => return Release::Live,
        };
        if hold.incomplete && position.is_some() {
            return Release::Missed;
        }
        *self.state.borrow_mut() = State::Live(position);
        for held in &hold.held {
            match held {
                // Whoever releases it hears by the answer that it fell behind.
                Held::Batch(batch) => drop(self.accept(batch)),
                Held::Moved(movement) => self.take_movement(movement),
            }
        }
        if matches!(*self.state.borrow(), State::Hold(_)) { Release::Missed } else { Release::Live }
    }

    /// From where an entry that fell behind has to catch up.
    pub fn resume_position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Hold(hold) => hold.resume.clone(),
            State::Live(_) | State::Over => None,
        }
    }

    /// Whether the keeper tells the client of a loss, and not the entry.
    pub fn is_told_by_keeper(&self) -> bool {
        matches!(self.framing, Framing::WebSocket)
    }

    /// Waits until the connection can take more, see [`Outbox::room`].
    pub async fn room(&self) {
        self.outbox.room().await;
    }

    /// Whether the connection or the subscription is over.
    pub fn is_over(&self) -> bool {
        matches!(*self.state.borrow(), State::Over) || self.outbox.is_over()
    }

    /// Up to where everything was pushed, if the entry is live.
    pub fn position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Live(position) => position.clone(),
            State::Hold(_) | State::Over => None,
        }
    }

    /// Takes a batch from the channel.
    fn take(&self, batch: &Arc<Batch>) {
        if self.accept(batch) == Continuity::Broken {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(keeper) = self.outbox.keeper() {
            keeper.fell_behind(&self.channel);
        }
    }

    fn accept(&self, batch: &Arc<Batch>) -> Continuity {
        let mut state = self.state.borrow_mut();
        let after = match &mut *state {
            State::Hold(hold) => {
                hold.add(batch, self.piece());
                return Continuity::Whole;
            }
            State::Over => return Continuity::Whole,
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
                    return Continuity::Broken;
                };
                let after = joined.offset;
                if batch.last() <= after {
                    return Continuity::Whole;
                }
                *position = Some(Position::new(joined.epoch.clone(), batch.last()));
                after
            }
        };
        drop(state);
        // A refusal closes the connection, which then lets go of this entry.
        let _ = self.push(batch, after);
        Continuity::Whole
    }

    /// Takes several batches that follow each other, in one piece if the entry stands before them.
    fn take_run(&self, run: &Run<'_>) {
        let at_start = self.framing.is_shared()
            && match (&mut *self.state.borrow_mut(), run.epoch()) {
                (State::Live(Some(position)), Some(epoch))
                    if position.epoch == *epoch && position.offset + 1 == run.first() =>
                {
                    position.offset = run.last();
                    true
                }
                (State::Live(_), None) => true,
                _ => false,
            };
        if !at_start {
            return run.batches.iter().for_each(|batch| self.take(batch));
        }
        self.count(run.events());
        for piece in run.pieces(&self.framing) {
            if self.hand(piece.clone(), run.accepted()).is_err() {
                return;
            }
        }
    }

    /// Somebody else came or left.
    fn take_movement(&self, movement: &Movement) {
        if !self.hears_others {
            return;
        }
        match &mut *self.state.borrow_mut() {
            State::Hold(hold) => {
                hold.events += 1;
                if hold.events <= MAX_HELD {
                    hold.held.push(Held::Moved(movement.clone()));
                }
                return;
            }
            State::Over => return,
            State::Live(_) => {}
        }
        let mut text = String::new();
        let what = match movement.came {
            true => OnChannel::Join(&movement.info),
            false => OnChannel::Leave(&movement.info),
        };
        Push::On(&self.channel, what).write(&mut text);
        let _ = self.hand(websocket::text(&text), None);
    }

    /// The channel's history was replaced, or the channel itself lost its place.
    fn reset(&self, bounds: &Bounds) {
        let mut state = self.state.borrow_mut();
        let resume = match &mut *state {
            State::Hold(hold) => {
                *hold = Hold { incomplete: true, resume: hold.resume.take(), ..Hold::default() };
                return;
            }
            State::Live(Some(position)) if position.epoch == bounds.head.epoch => {
                // By a read of its own it may be further than the channel was, and has lost nothing.
                if position.offset >= bounds.head.offset {
                    return;
                }
                bounds.covers(position).then(|| position.clone())
            }
            State::Live(_) => None,
            State::Over => return,
        };
        if resume.is_some() || self.is_told_by_keeper() {
            let fell_behind = resume.is_some();
            *state = State::Hold(Hold { incomplete: true, resume, ..Hold::default() });
            drop(state);
            if fell_behind {
                return self.ring();
            }
        } else {
            *state = State::Live(Some(bounds.head.clone()));
            drop(state);
        }
        let _ = self.push_reset(bounds);
    }

    /// Tells the reader that its place is gone and where it is now. On a socket that is for its
    /// keeper to say, and the entry is on hold until then.
    pub fn push_reset(&self, bounds: &Bounds) -> Result<(), Refused> {
        if self.is_told_by_keeper() {
            if let Some(keeper) = self.outbox.keeper() {
                keeper.lost(&self.channel, &bounds.head);
            }
            return Ok(());
        }
        let id = self.cursor(&bounds.head);
        let frame = sse::reset(&self.channel, &bounds.oldest(), &bounds.head, Some(&id));
        self.hand(Bytes::from(frame), None)
    }

    fn push(&self, batch: &Batch, after: u64) -> Result<(), Refused> {
        let bytes = self.framing.encode(batch, after);
        let sent = batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after).count();
        self.count(sent as u64);
        self.hand(bytes, batch.accepted)
    }

    fn hand(&self, bytes: Bytes, accepted: Option<Instant>) -> Result<(), Refused> {
        if let Framing::WebSocket = self.framing {
            self.tally.websocket_bytes.inc_by(bytes.len() as u64);
        }
        let done = self.outbox.push(bytes, accepted);
        if done == Err(Refused::Overflow) {
            count(&self.tally.metrics.slow_disconnects, "queue");
            tracing::info!(channel = %self.channel, "a reader is too slow and was disconnected");
        }
        done
    }

    fn count(&self, events: u64) {
        let counter =
            if let Framing::WebSocket = self.framing { &self.tally.websocket } else { &self.tally.sse };
        counter.inc_by(events);
    }
}

/// Batches of one channel that came together and follow each other.
struct Run<'a> {
    batches: Vec<&'a Arc<Batch>>,
    as_sse: OnceCell<Vec<Bytes>>,
    as_websocket: OnceCell<Vec<Bytes>>,
}

impl<'a> Run<'a> {
    fn of(batch: &'a Arc<Batch>) -> Self {
        Self { batches: vec![batch], as_sse: OnceCell::new(), as_websocket: OnceCell::new() }
    }

    /// Takes one more batch, if it follows.
    fn extend(&mut self, next: &'a Arc<Batch>) -> bool {
        let follows =
            next.epoch.as_ref() == self.epoch() && (next.epoch.is_none() || next.first() == self.last() + 1);
        if follows {
            self.batches.push(next);
        }
        follows
    }

    fn epoch(&self) -> Option<&Epoch> {
        self.batches.first().and_then(|batch| batch.epoch.as_ref())
    }

    fn first(&self) -> u64 {
        self.batches.first().map_or(0, |batch| batch.first())
    }

    fn last(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.last())
    }

    fn events(&self) -> u64 {
        self.batches.iter().map(|batch| batch.events.len() as u64).sum()
    }

    fn accepted(&self) -> Option<Instant> {
        self.batches.iter().filter_map(|batch| batch.accepted).min()
    }

    /// All of it as bytes, in as few writes as [`MERGE`] allows; made once for all entries.
    fn pieces(&self, framing: &Framing) -> &[Bytes] {
        let made = if let Framing::WebSocket = framing { &self.as_websocket } else { &self.as_sse };
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

/// The subscribers of one worker thread.
pub struct Fanout {
    worker: Worker,
    hub: Hub,
    routes: RefCell<HashMap<ChannelName, Route>>,
    tally: Rc<Tally>,
}

/// One channel's entries on this thread.
#[derive(Default)]
struct Route {
    entries: Vec<Rc<Entry>>,
    /// This thread follows the channel, and everything up to here has come through its inbox
    /// (`None`: nothing is kept of it).
    reached: Option<Option<Position>>,
}

impl Route {
    fn reach(&mut self, position: Option<Position>) {
        match (&mut self.reached, position) {
            (Some(Some(old)), Some(new)) if old.epoch == new.epoch && old.offset > new.offset => {}
            (reached, position) => *reached = Some(position),
        }
    }
}

impl Fanout {
    /// A fan-out for the calling thread, with the task that empties its inbox.
    pub fn start(hub: Hub, metrics: Arc<Metrics>) -> Rc<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let (inbox, parcels) = mpsc::channel(hub.0.options.inbox);
        let worker = Worker { id: NEXT.fetch_add(1, Ordering::Relaxed), inbox };
        let tally = Rc::new(Tally::new(metrics));
        let fanout = Rc::new(Self { worker, hub, routes: RefCell::default(), tally });
        actix_rt::spawn(vital::part(fanout.clone().run(parcels)));
        fanout
    }

    async fn run(self: Rc<Self>, mut parcels: mpsc::Receiver<Parcel>) {
        let mut turn = Vec::with_capacity(TURN);
        while parcels.recv_many(&mut turn, TURN).await > 0 {
            // What came for one channel leaves together; between channels there is no order.
            turn.sort_by(|a, b| a.channel().cmp(b.channel()));
            for parcels in turn.chunk_by(|a, b| a.channel() == b.channel()) {
                self.deliver(parcels);
            }
            turn.clear();
            tokio::task::yield_now().await;
        }
    }

    /// Delivers parcels of one channel, in their order.
    fn deliver(&self, parcels: &[Parcel]) {
        let mut routes = self.routes.borrow_mut();
        let Some(route) = parcels.first().and_then(|parcel| routes.get_mut(parcel.channel())) else { return };
        let mut parcels = parcels.iter().peekable();
        while let Some(parcel) = parcels.next() {
            match parcel {
                Parcel::Events(batch) => {
                    let mut run = Run::of(batch);
                    while let Some(Parcel::Events(next)) = parcels.peek()
                        && run.extend(next)
                    {
                        parcels.next();
                    }
                    route.entries.iter().for_each(|entry| entry.take_run(&run));
                    if let Some(epoch) = run.epoch() {
                        route.reach(Some(Position::new(epoch.clone(), run.last())));
                    }
                    if let Some(accepted) = run.accepted() {
                        self.tally.metrics.event_latency_seconds.observe(accepted.elapsed().as_secs_f64());
                    }
                }
                Parcel::Reset(_, bounds) => {
                    route.entries.iter().for_each(|entry| entry.reset(bounds));
                    route.reached = Some(Some(bounds.head.clone()));
                }
                Parcel::Moved(_, movement) => {
                    route.entries.iter().for_each(|entry| entry.take_movement(movement));
                }
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
        visitor: Visitor,
    ) -> Result<(Subscription, Option<Position>), CannotFollow> {
        let entry = Rc::new(Entry {
            channel: channel.clone(),
            outbox,
            framing,
            state: RefCell::new(State::Hold(Hold::default())),
            hears_others: visitor.hears_others,
            tally: self.tally.clone(),
        });
        let reached = {
            let mut routes = self.routes.borrow_mut();
            let route = routes.entry(channel.clone()).or_default();
            route.entries.push(entry.clone());
            route.reached.clone()
        };
        self.tally.metrics.subscriptions.inc();
        let mut subscription = Subscription { fanout: self.clone(), entry, attending: None };
        let position = match reached {
            // What is under way to this thread comes after it.
            Some(reached) => reached,
            None => {
                let position = self.hub.join(&channel, &self.worker).await?;
                if let Some(route) = self.routes.borrow_mut().get_mut(&channel) {
                    route.reach(position.clone());
                }
                position
            }
        };
        if let Some(attendance) = visitor.attendance {
            subscription.attending = Some(attendance.member.client);
            self.hub.attend(&channel, attendance);
        }
        Ok((subscription, position))
    }
}

/// What an entry is to others on its channel.
#[derive(Debug, Default)]
pub struct Visitor {
    /// How it is seen, if at all.
    pub attendance: Option<Attendance>,
    /// Whether it is told who comes and leaves.
    pub hears_others: bool,
}

/// An entry that is there as long as this is.
pub struct Subscription {
    fanout: Rc<Fanout>,
    entry: Rc<Entry>,
    attending: Option<Uuid>,
}

impl Subscription {
    /// The entry.
    pub fn entry(&self) -> &Rc<Entry> {
        &self.entry
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        *self.entry.state.borrow_mut() = State::Over;
        let hub = &self.fanout.hub;
        let channel = &self.entry.channel;
        if let Some(client) = self.attending {
            hub.depart(channel, client);
        }
        let mut routes = self.fanout.routes.borrow_mut();
        let Some(route) = routes.get_mut(channel) else { return };
        if let Some(index) = route.entries.iter().position(|entry| Rc::ptr_eq(entry, &self.entry)) {
            route.entries.swap_remove(index);
            self.fanout.tally.metrics.subscriptions.dec();
        }
        if route.entries.is_empty() {
            routes.remove(channel);
            hub.leave(channel, self.fanout.worker.id);
        }
    }
}

#[cfg(test)]
mod tests;
