//! One connection's interest in one channel. An entry knows its position: it takes what follows,
//! holds back while its connection catches up, and goes on hold by itself when it sees a hole.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::Visitor;
use super::batch::{Batch, Framing, Run};
use super::tailor::{Cut, Tailor};
use crate::bus::Movement;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};
use crate::hub::outbox::{Outbox, Refused};
use crate::hub::presence::{Attendance, Member};
use crate::protocol::form::Form;
use crate::protocol::push::{OnChannel, Push};
use crate::protocol::sse;
use crate::store::log::Bounds;
use crate::telemetry::{Counter, Family, Kind, Metrics, count, counter};

/// Events that an entry on hold keeps; with more it reads the log again instead.
pub(super) const MAX_HELD: usize = 1024;

/// One connection's interest in one channel. What a delivery looks at stands first.
#[repr(C)]
pub struct Entry {
    pub(super) state: RefCell<State>,
    pub(super) outbox: Rc<Outbox>,
    pub(super) tally: Rc<Tally>,
    pub(super) framing: Framing,
    /// For a subscriber that does not take everything as it stands.
    tailor: Option<Box<Tailor>>,
    pub(super) channel: ChannelName,
    /// How it is seen, if at all.
    attendance: Option<Attendance>,
    /// Whether its client is told who comes and leaves.
    hears_others: bool,
}

/// What a worker thread counts while it delivers, told to the metrics once a turn.
pub(super) struct Tally {
    pub(super) metrics: Arc<Metrics>,
    sse: Count,
    websocket: Count,
    websocket_bytes: Count,
    forms: [Count; Form::COUNT],
    /// Of the one other form that goes to a socket; what goes through a body is counted there.
    uni_websocket_bytes: Count,
}

struct Count {
    counter: Counter,
    untold: Cell<u64>,
}

impl Count {
    fn of(family: &Family<Kind, Counter>, kind: &'static str) -> Self {
        Self { counter: counter(family, kind), untold: Cell::new(0) }
    }

    fn add(&self, more: u64) {
        self.untold.set(self.untold.get() + more);
    }

    fn tell(&self) {
        self.counter.inc_by(self.untold.take());
    }
}

impl Tally {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            sse: Count::of(&metrics.deliveries, "sse"),
            websocket: Count::of(&metrics.deliveries, "websocket"),
            websocket_bytes: Count::of(&metrics.delivered_bytes, "websocket"),
            forms: Form::ALL.map(|form| Count::of(&metrics.deliveries, form.name())),
            uni_websocket_bytes: Count::of(&metrics.delivered_bytes, Form::UniWebsocket.name()),
            metrics,
        }
    }

    pub(super) fn tell(&self) {
        [&self.sse, &self.websocket, &self.websocket_bytes, &self.uni_websocket_bytes]
            .into_iter()
            .chain(&self.forms)
            .for_each(Count::tell);
    }
}

pub(super) enum State {
    /// Events wait here until the connection has caught up.
    Hold(Box<Hold>),
    /// Everything up to the position was pushed; `None` where nothing is kept.
    Live(Option<Position>),
    /// The subscription is over: nothing is pushed any more.
    Over,
}

/// One thing that came while an entry was on hold.
pub(super) enum Held {
    Batch(Arc<Batch>),
    Moved(Movement),
}

/// What came while an entry was on hold.
#[derive(Default)]
pub(super) struct Hold {
    pub(super) held: Vec<Held>,
    events: usize,
    bytes: usize,
    /// Something was dropped: the log has it.
    pub(super) incomplete: bool,
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
    /// An entry on hold.
    pub(super) fn new(
        channel: ChannelName,
        outbox: Rc<Outbox>,
        framing: Framing,
        Visitor { attendance, hears_others, tailor }: Visitor,
        tally: Rc<Tally>,
    ) -> Self {
        let state = RefCell::new(State::Hold(Box::default()));
        Self { channel, outbox, framing, tailor, state, attendance, hears_others, tally }
    }

    /// Who it is, if others may ask who is on the channel and find it.
    pub(super) fn member(&self) -> Option<Member> {
        self.attendance.as_ref().filter(|seen| seen.listed).map(Attendance::member)
    }

    /// What others are told when it comes or leaves, if they are.
    pub(super) fn movement(&self, came: bool) -> Option<Movement> {
        let announced = self.attendance.as_ref().filter(|seen| seen.announced)?;
        Some(Movement { came, info: announced.info() })
    }

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
        let mut batch = Arc::new(Batch::new(self.channel.clone(), Some(epoch.clone()), events, None));
        match self.tailor.as_ref().map(|tailor| tailor.cut(&batch, 0)) {
            Some(Cut::Nothing) => return Ok(()),
            Some(Cut::Other(cut)) => batch = cut,
            Some(Cut::AsItStands) | None => {}
        }
        self.count(batch.events.len() as u64);
        self.tally.tell();
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
            State::Hold(hold) => std::mem::take(&mut **hold),
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
        self.tally.tell();
        if matches!(*self.state.borrow(), State::Hold(_)) { Release::Missed } else { Release::Live }
    }

    /// The same for who then does it: there is only one at a time.
    pub fn take_resume_position(&self) -> Option<Position> {
        match &mut *self.state.borrow_mut() {
            State::Hold(hold) => hold.resume.take(),
            State::Live(_) | State::Over => None,
        }
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
        matches!(self.framing, Framing::WebSocket | Framing::Form(_))
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
    pub(super) fn take(&self, batch: &Arc<Batch>) {
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
            // Who has no position takes what comes, also if it is numbered since a reload.
            State::Live(position) if batch.epoch.is_none() || position.is_none() => 0,
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
                    *state = State::Hold(Box::new(hold));
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

    /// Whether a delivery takes what stands and goes straight to the socket. Looks at all that
    /// [`Self::take_run`] will look at then.
    pub(super) fn is_ready(&self) -> bool {
        self.takes_all()
            && matches!(self.state.try_borrow().as_deref(), Ok(State::Live(_)))
            && self.outbox.clear_socket().is_some_and(|socket| socket.as_raw_fd() >= 0)
    }

    /// Whether it gets what all get.
    fn takes_all(&self) -> bool {
        self.tailor.is_none() && self.framing.is_shared()
    }

    /// Moves behind `run`, if the entry stands before it and takes all of it.
    fn pass(&self, run: &Run<'_>) -> bool {
        self.takes_all()
            && match (&mut *self.state.borrow_mut(), run.epoch()) {
                (State::Live(Some(position)), Some(epoch))
                    if position.offset + 1 == run.first() && position.epoch == *epoch =>
                {
                    position.offset = run.last();
                    true
                }
                (State::Live(_), None) => true,
                _ => false,
            }
    }

    /// Takes several batches that follow each other, in one piece if the entry stands before them.
    pub(super) fn take_run(&self, run: &Run<'_>) {
        if !self.pass(run) {
            return run.batches.iter().for_each(|batch| self.take(batch));
        }
        self.count(run.events());
        for piece in run.pieces(&self.framing) {
            if self.hand(piece, run.accepted()).is_err() {
                return;
            }
        }
    }

    /// The same for an entry that is ready, where `run` is one write: it has taken it, and whoever asks
    /// sends these bytes to this socket and tells [`Self::sent`] if not all of them went.
    pub(super) fn take_send<'a>(&'a self, run: &'a Run<'_>) -> Option<(BorrowedFd<'a>, &'a Bytes)> {
        if !self.is_ready() {
            return None;
        }
        let socket = self.outbox.clear_socket()?;
        let [piece] = run.pieces(&self.framing) else { return None };
        if piece.is_empty() || !self.pass(run) {
            return None;
        }
        self.count(run.events());
        self.count_bytes(piece);
        Some((socket, piece))
    }

    /// How many of the bytes of [`Self::take_send`] the socket took; `None` if it was not asked.
    pub(super) fn sent(&self, piece: &Bytes, written: Option<io::Result<usize>>) {
        // A refusal closes the connection, which then lets go of this entry.
        let _ = match written {
            Some(written) => self.outbox.settle(piece, true, written),
            None => self.outbox.push_shared(piece, None),
        };
    }

    /// Somebody else came or left.
    pub(super) fn take_movement(&self, movement: &Movement) {
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
        let what = match movement.came {
            true => OnChannel::Join(&movement.info),
            false => OnChannel::Leave(&movement.info),
        };
        let _ = self.hand(&self.framing.push(&Push::On(&self.channel, what)), None);
    }

    /// The channel's history was replaced, or the channel itself lost its place.
    pub(super) fn reset(&self, bounds: &Bounds) {
        let mut state = self.state.borrow_mut();
        let resume = match &mut *state {
            State::Hold(hold) => {
                **hold = Hold { incomplete: true, resume: hold.resume.take(), ..Hold::default() };
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
            let hold = Hold { incomplete: true, resume, ..Hold::default() };
            *state = State::Hold(Box::new(hold));
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
        self.hand(&Bytes::from(frame), None)
    }

    fn push(&self, batch: &Batch, after: u64) -> Result<(), Refused> {
        match self.tailor.as_ref().map(|tailor| tailor.cut(batch, after)) {
            None | Some(Cut::AsItStands) => self.push_as_it_stands(batch, after),
            Some(Cut::Other(cut)) => self.push_as_it_stands(&cut, 0),
            Some(Cut::Nothing) => Ok(()),
        }
    }

    fn push_as_it_stands(&self, batch: &Batch, after: u64) -> Result<(), Refused> {
        let bytes = self.framing.encode(batch, after);
        let sent = batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after).count();
        self.count(sent as u64);
        self.hand(&bytes, batch.accepted)
    }

    fn hand(&self, bytes: &Bytes, accepted: Option<Instant>) -> Result<(), Refused> {
        self.count_bytes(bytes);
        let done = self.outbox.push_shared(bytes, accepted);
        // The keeper of a socket counts, because replies overflow too.
        if done == Err(Refused::Overflow) && !self.is_told_by_keeper() {
            count(&self.tally.metrics.slow_disconnects, "queue");
            tracing::info!(channel = %self.channel, "a reader is too slow and was disconnected");
        }
        done
    }

    fn count_bytes(&self, bytes: &Bytes) {
        match self.framing {
            Framing::WebSocket => self.tally.websocket_bytes.add(bytes.len() as u64),
            Framing::Form(Form::UniWebsocket) => self.tally.uni_websocket_bytes.add(bytes.len() as u64),
            _ => {}
        }
    }

    fn count(&self, events: u64) {
        let counter = match self.framing {
            Framing::WebSocket => &self.tally.websocket,
            Framing::Form(form) => &self.tally.forms[form.index()],
            Framing::Sse | Framing::SseMany(_) => &self.tally.sse,
        };
        counter.add(events);
    }
}

/// For tests that play the fan-out themselves.
#[cfg(test)]
impl Entry {
    pub(crate) fn alone(channel: ChannelName, outbox: Rc<Outbox>) -> Rc<Self> {
        let tally = Rc::new(Tally::new(Arc::new(Metrics::new())));
        Rc::new(Self::new(channel, outbox, Framing::WebSocket, Visitor::default(), tally))
    }

    pub(crate) fn feed(&self, batches: &[Arc<Batch>]) {
        let Some((first, rest)) = batches.split_first() else { return };
        let mut run = Run::of(first);
        for batch in rest {
            if !run.extend(batch) {
                self.take_run(&run);
                run = Run::of(batch);
            }
        }
        self.take_run(&run);
    }

    pub(crate) fn feed_reset(&self, bounds: &Bounds) {
        self.reset(bounds);
    }

    pub(crate) fn end(&self) {
        *self.state.borrow_mut() = State::Over;
    }

    /// All that decides what it does next.
    pub(crate) fn look(&self) -> String {
        match &*self.state.borrow() {
            State::Over => "over".to_owned(),
            State::Live(position) => format!("live {position:?}"),
            State::Hold(hold) => {
                let offsets = |held: &Held| match held {
                    Held::Batch(batch) => format!("{}-{}", batch.first(), batch.last()),
                    Held::Moved(_) => "moved".to_owned(),
                };
                let held: Vec<String> = hold.held.iter().map(offsets).collect();
                format!("hold {held:?} {} {:?}", hold.incomplete, hold.resume)
            }
        }
    }
}
