//! One connection's subscription to one channel. A subscriber knows its position: it takes what follows,
//! pauses while its connection catches up, and pauses by itself when it sees a gap.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::SubscriberOptions;
use super::batch::{Batch, MergedBatch};
use super::counters::DeliveryCounters;
use super::pause_buffer::{Buffered, MAX_BUFFERED, PauseBuffer};
use super::per_subscriber::{Filtered, PerSubscriber};
use crate::bus::PresenceChange;
use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::{Epoch, Position};
use crate::domain::presence::{Member, PresenceInfo};
use crate::hub::metrics::SlowReason;
use crate::hub::outbox::{Outbox, PushError};
use crate::protocol::encoding::Framing;
use crate::protocol::presence::{info_of, member};
use crate::store::log::Bounds;

/// One connection's subscription to one channel. What a delivery reads stands first.
#[repr(C)]
pub struct Subscriber {
    pub(super) state: RefCell<State>,
    pub(super) outbox: Rc<Outbox>,
    pub(super) counters: Rc<DeliveryCounters>,
    pub(super) framing: Framing,
    /// Its filter by tags and deltas, if it has any.
    per_subscriber: Option<Box<PerSubscriber>>,
    pub(super) channel: ChannelName,
    /// How presence shows it, if at all.
    presence_info: Option<PresenceInfo>,
    /// Whether its client gets join and leave messages.
    receives_join_leave: bool,
}

pub(super) enum State {
    /// Events wait here until the connection has caught up.
    Paused(Box<PauseBuffer>),
    /// Everything up to the position was pushed; `None` where nothing is kept.
    Live(Option<Position>),
    /// The subscription is over: nothing is pushed any more.
    Closed,
}

/// Whether what came follows what was there.
#[derive(PartialEq, Eq)]
enum Continuity {
    Whole,
    /// Something is missing in between; the subscriber is paused.
    Broken,
}

/// The result of an attempt to go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// The subscriber is live.
    Live,
    /// There is a gap before the buffered events: read the log once more.
    Gap,
}

impl Subscriber {
    /// A paused subscriber.
    pub(super) fn new(
        channel: ChannelName,
        outbox: Rc<Outbox>,
        framing: Framing,
        SubscriberOptions { presence_info, receives_join_leave, per_subscriber }: SubscriberOptions,
        counters: Rc<DeliveryCounters>,
    ) -> Self {
        let state = RefCell::new(State::Paused(Box::default()));
        Self { channel, outbox, framing, per_subscriber, state, presence_info, receives_join_leave, counters }
    }

    /// Who it is, if presence lists it.
    pub(super) fn member(&self) -> Option<Member> {
        self.presence_info.as_ref().filter(|seen| seen.listed).map(member)
    }

    /// The join or leave message for others, if there is one.
    pub(super) fn presence_change(&self, joined: bool) -> Option<PresenceChange> {
        let announced = self.presence_info.as_ref().filter(|seen| seen.announced)?;
        Some(PresenceChange { joined, info: info_of(announced) })
    }

    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The cursor after `position`, for frames that the connection makes itself.
    pub fn cursor(&self, position: &Position) -> String {
        self.framing.cursor(&self.channel, position)
    }

    /// Pushes events that were read from the log; only while the subscriber is paused.
    pub fn replay(&self, epoch: &Epoch, events: Vec<Event>) -> Result<(), PushError> {
        if matches!(*self.state.borrow(), State::Closed) {
            return Err(PushError::Closed);
        }
        let mut batch = Arc::new(Batch::new(self.channel.clone(), Some(epoch.clone()), events, None));
        match self.per_subscriber.as_ref().map(|per_subscriber| per_subscriber.apply(&batch, 0)) {
            Some(Filtered::Nothing) => return Ok(()),
            Some(Filtered::Replaced(replaced)) => batch = replaced,
            Some(Filtered::Unchanged) | None => {}
        }
        self.counters.count_events(&self.framing, batch.events.len() as u64);
        self.counters.flush();
        self.outbox.push_replay(batch.encode(&self.framing, 0))
    }

    /// How many bytes of events are best pushed at once.
    pub fn chunk_size(&self) -> usize {
        self.outbox.limit() / 4
    }

    /// Goes live after `position`: pushes what was buffered beyond it. If that leaves a gap, the
    /// subscriber stays paused, and [`Subscriber::resume_position`] says from where to read.
    pub fn resume(&self, position: Option<Position>) -> Resume {
        let buffer = match &mut *self.state.borrow_mut() {
            State::Paused(buffer) => std::mem::take(&mut **buffer),
            State::Live(_) | State::Closed => return Resume::Live,
        };
        if buffer.incomplete && position.is_some() {
            return Resume::Gap;
        }
        *self.state.borrow_mut() = State::Live(position);
        for item in &buffer.items {
            match item {
                // The caller learns from the result that it fell behind.
                Buffered::Batch(batch) => drop(self.accept(batch)),
                Buffered::PresenceChange(presence_change) => self.deliver_presence(presence_change),
            }
        }
        self.counters.flush();
        if matches!(*self.state.borrow(), State::Paused(_)) { Resume::Gap } else { Resume::Live }
    }

    /// Takes the position from which to catch up, so that only one task does it.
    pub fn take_resume_position(&self) -> Option<Position> {
        match &mut *self.state.borrow_mut() {
            State::Paused(buffer) => buffer.resume_from.take(),
            State::Live(_) | State::Closed => None,
        }
    }

    /// The position from which a subscriber that fell behind has to catch up.
    pub fn resume_position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Paused(buffer) => buffer.resume_from.clone(),
            State::Live(_) | State::Closed => None,
        }
    }

    /// Whether the connection's listener tells the client of a loss, and not the subscriber.
    pub fn listener_reports_loss(&self) -> bool {
        self.framing.has_session()
    }

    /// Waits for the other replays of the connection, until what it gives is dropped.
    pub async fn replay_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.outbox.replay_turn().await
    }

    /// Waits until the connection can take more, see [`Outbox::wait_for_capacity`].
    pub async fn wait_for_capacity(&self) {
        self.outbox.wait_for_capacity().await;
    }

    /// Whether the connection or the subscription is over.
    pub fn is_closed(&self) -> bool {
        matches!(*self.state.borrow(), State::Closed) || self.outbox.is_closed()
    }

    /// Up to where everything was pushed, if the subscriber is live.
    pub fn position(&self) -> Option<Position> {
        match &*self.state.borrow() {
            State::Live(position) => position.clone(),
            State::Paused(_) | State::Closed => None,
        }
    }

    /// Delivers a batch from the channel.
    pub(super) fn deliver(&self, batch: &Arc<Batch>) {
        if self.accept(batch) == Continuity::Broken {
            self.report_lag();
        }
    }

    fn report_lag(&self) {
        if let Some(listener) = self.outbox.listener() {
            listener.on_lag(&self.channel);
        }
    }

    fn accept(&self, batch: &Arc<Batch>) -> Continuity {
        let mut state = self.state.borrow_mut();
        let after = match &mut *state {
            State::Paused(buffer) => {
                buffer.add(batch, self.chunk_size());
                return Continuity::Whole;
            }
            State::Closed => return Continuity::Whole,
            // A subscriber without a position takes what comes, even if it is numbered since a reload.
            State::Live(position) if batch.epoch.is_none() || position.is_none() => 0,
            State::Live(position) => {
                let joins = position.as_ref().filter(|position| {
                    Some(&position.epoch) == batch.epoch.as_ref() && batch.first() <= position.offset + 1
                });
                let Some(joined) = joins else {
                    // Everything from this batch on is buffered; the log has what is missing before it. A
                    // batch of another history is dropped: buffered, it could never be joined on.
                    let resume_from = position.take();
                    let same = resume_from.as_ref().map(|position| &position.epoch) == batch.epoch.as_ref();
                    let mut buffer = PauseBuffer { resume_from, incomplete: !same, ..PauseBuffer::default() };
                    buffer.add(batch, self.chunk_size());
                    *state = State::Paused(Box::new(buffer));
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
        // A refusal closes the connection, which then lets go of this subscriber.
        let _ = self.push(batch, after);
        Continuity::Whole
    }

    /// Whether a delivery goes unchanged and straight to the socket. Reads all the memory that
    /// [`Self::deliver_merged`] will read then.
    pub(super) fn is_ready(&self) -> bool {
        self.takes_all()
            && matches!(self.state.try_borrow().as_deref(), Ok(State::Live(_)))
            && self.outbox.writable_socket().is_some_and(|socket| socket.as_raw_fd() >= 0)
    }

    /// Whether it gets the same bytes as all others.
    fn takes_all(&self) -> bool {
        self.per_subscriber.is_none() && self.framing.is_shared()
    }

    /// Advances past `merged`, if the subscriber stands right before it and takes all of it.
    fn advance(&self, merged: &MergedBatch<'_>) -> bool {
        self.takes_all()
            && match (&mut *self.state.borrow_mut(), merged.epoch()) {
                (State::Live(Some(position)), Some(epoch))
                    if position.offset + 1 == merged.first() && position.epoch == *epoch =>
                {
                    position.offset = merged.last();
                    true
                }
                (State::Live(_), None) => true,
                _ => false,
            }
    }

    /// Delivers consecutive batches, in as few writes as possible if the subscriber stands right before
    /// them.
    pub(super) fn deliver_merged(&self, merged: &MergedBatch<'_>) {
        if !self.advance(merged) {
            return merged.batches.iter().for_each(|batch| self.deliver(batch));
        }
        self.counters.count_events(&self.framing, merged.events());
        for chunk in merged.chunks(&self.framing) {
            if self.push_bytes(chunk, merged.accepted()).is_err() {
                return;
            }
        }
    }

    /// Prepares the write of `merged` to a writable socket, if it is a single write. The subscriber
    /// counts it as delivered: the caller writes these bytes to this socket and calls
    /// [`Self::finish_write`] if not all of them were written.
    pub(super) fn prepare_write<'a>(
        &'a self,
        merged: &'a MergedBatch<'_>,
    ) -> Option<(BorrowedFd<'a>, &'a Bytes)> {
        if !self.is_ready() {
            return None;
        }
        let socket = self.outbox.writable_socket()?;
        let [chunk] = merged.chunks(&self.framing) else { return None };
        if chunk.is_empty() || !self.advance(merged) {
            return None;
        }
        self.counters.count_events(&self.framing, merged.events());
        self.counters.count_bytes(&self.framing, chunk.len());
        Some((socket, chunk))
    }

    /// How many of the bytes of [`Self::prepare_write`] the socket took; `None` if it was not tried.
    pub(super) fn finish_write(&self, chunk: &Bytes, written: Option<io::Result<usize>>) {
        // A refusal closes the connection, which then lets go of this subscriber.
        let _ = match written {
            Some(written) => self.outbox.finish_write(chunk, true, written),
            None => self.outbox.push_shared(chunk, None),
        };
    }

    /// Another client joined or left.
    pub(super) fn deliver_presence(&self, presence_change: &PresenceChange) {
        if !self.receives_join_leave {
            return;
        }
        match &mut *self.state.borrow_mut() {
            State::Paused(buffer) => {
                buffer.events += 1;
                if buffer.events <= MAX_BUFFERED {
                    buffer.items.push(Buffered::PresenceChange(presence_change.clone()));
                }
                return;
            }
            State::Closed => return,
            State::Live(_) => {}
        }
        let PresenceChange { joined, info } = presence_change;
        let _ = self.push_bytes(&self.framing.presence(&self.channel, *joined, info), None);
    }

    /// The channel's history was replaced, or the channel itself lost its position.
    pub(super) fn reset(&self, bounds: &Bounds) {
        let mut state = self.state.borrow_mut();
        let resume_from = match &mut *state {
            State::Paused(buffer) => {
                **buffer = PauseBuffer::incomplete(buffer.resume_from.take());
                return;
            }
            State::Live(Some(position)) if position.epoch == bounds.head.epoch => {
                // After a read of its own it may be further than the channel was, and has lost nothing.
                if position.offset >= bounds.head.offset {
                    return;
                }
                bounds.covers(position).then(|| position.clone())
            }
            State::Live(_) => None,
            State::Closed => return,
        };
        if resume_from.is_some() || self.listener_reports_loss() {
            let lagging = resume_from.is_some();
            *state = State::Paused(Box::new(PauseBuffer::incomplete(resume_from)));
            drop(state);
            if lagging {
                return self.report_lag();
            }
        } else {
            *state = State::Live(Some(bounds.head.clone()));
            drop(state);
        }
        let _ = self.push_reset(bounds);
    }

    /// Tells the reader that its position is gone and where it is now. On a socket the listener says
    /// that, and the subscriber is paused until then.
    pub fn push_reset(&self, bounds: &Bounds) -> Result<(), PushError> {
        if self.listener_reports_loss() {
            if let Some(listener) = self.outbox.listener() {
                listener.on_position_lost(&self.channel, &bounds.head);
            }
            return Ok(());
        }
        self.push_bytes(&self.framing.reset(&self.channel, &bounds.oldest(), &bounds.head), None)
    }

    fn push(&self, batch: &Batch, after: u64) -> Result<(), PushError> {
        match self.per_subscriber.as_ref().map(|per_subscriber| per_subscriber.apply(batch, after)) {
            None | Some(Filtered::Unchanged) => self.push_unfiltered(batch, after),
            Some(Filtered::Replaced(replaced)) => self.push_unfiltered(&replaced, 0),
            Some(Filtered::Nothing) => Ok(()),
        }
    }

    fn push_unfiltered(&self, batch: &Batch, after: u64) -> Result<(), PushError> {
        let bytes = batch.encode(&self.framing, after);
        let sent = batch.events.iter().filter(|event| batch.epoch.is_none() || event.offset > after).count();
        self.counters.count_events(&self.framing, sent as u64);
        self.push_bytes(&bytes, batch.accepted)
    }

    fn push_bytes(&self, bytes: &Bytes, accepted: Option<Instant>) -> Result<(), PushError> {
        self.counters.count_bytes(&self.framing, bytes.len());
        let done = self.outbox.push_shared(bytes, accepted);
        // The listener of a socket counts, because replies overflow too.
        if done == Err(PushError::Overflow) && !self.listener_reports_loss() {
            self.counters.metrics.slow_disconnects.inc(SlowReason::Queue);
            tracing::info!(channel = %self.channel, "a client was too slow and was disconnected");
        }
        done
    }
}
