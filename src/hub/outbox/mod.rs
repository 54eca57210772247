//! One connection's outgoing bytes: a bounded queue between the fan-out, which never waits, and a
//! reader that may be slow. Over the bound the connection is closed; it comes back with its
//! cursor, so closing loses nothing and bounds memory.
//!
//! An outbox belongs to one worker thread. Its bytes leave in one of two ways: through a response
//! body that the HTTP dispatcher polls ([`Outbox::poll_chunk`]), or over a socket that was upgraded
//! out of the dispatcher, which is written to at once; there the queue and a task that empties it
//! exist only after the socket would have blocked.

pub mod io_uring;
mod socket;

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Mutex, MutexGuard};

use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::domain::server_command::ServerCommand;
use crate::protocol::code::Disconnect;
pub use socket::{SocketOptions, UpgradedSocket};

/// The most that leaves in one chunk.
pub const MERGE: usize = 64 * 1024;

/// Why a push was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// The limit was exceeded just now: whoever sees this closes the connection.
    Overflow,
    /// The connection is over.
    Closed,
}

/// Why an outbox ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The reader is too slow for what its channels bring.
    Slow,
    /// The reader took nothing for too long.
    Stalled,
    /// The connection broke.
    Broken,
}

/// What a connection must react to: its outbox and its subscribers report what they cannot handle
/// themselves. Called in the middle of a delivery, so implementations only send themselves a message.
pub trait ConnectionEvents {
    /// The subscriber of `channel` is paused and has to catch up from the log.
    fn on_lag(&self, channel: &ChannelName);
    /// The events after the subscriber's position are gone; the channel continues after `head`.
    fn on_position_lost(&self, channel: &ChannelName, head: &Position);
    /// Nothing more can be pushed.
    fn on_end(&self, why: EndReason);
    /// The operator disconnects the client. Not called within a delivery.
    fn on_disconnect(&self, disconnect: &Disconnect);
    /// A timer that it set has fired. Not called within a delivery.
    fn on_timer(&self) {}
    /// The operator sends the connection a command. Not called within a delivery. A stream whose channels
    /// and lifetime are fixed ignores it.
    fn on_command(&self, _: &Arc<ServerCommand>) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Sends what is queued, then ends.
    Ending,
    /// Drops what is queued.
    Closed,
}

/// Where the bytes go.
enum Sink {
    /// A response body that the dispatcher polls. The function aborts the connection, so that a peer that
    /// does not read cannot keep it.
    Body(Box<dyn Fn()>),
    /// A socket, which is written to at once.
    Socket(UpgradedSocket, Rc<SocketOptions>),
}

/// The queue of one connection. What a delivery looks at stands first and together: with thousands
/// of connections each line of memory that is touched costs as much as the rest of the code.
#[repr(C)]
pub struct Outbox {
    /// The socket is open and nothing is queued: bytes may be written at once.
    writable: Cell<bool>,
    sink: Sink,
    limit: usize,
    listener: OnceCell<Box<dyn ConnectionEvents>>,
    state: Cell<State>,
    /// On a socket nearly always nothing.
    backlog: RefCell<Option<Box<Backlog>>>,
    /// Replays of several channels follow each other; made for the first one.
    replays: OnceCell<Box<Mutex<()>>>,
}

/// What waits, and who waits for it.
#[derive(Default)]
struct Backlog {
    queue: VecDeque<Chunk>,
    bytes: usize,
    /// Those among `bytes` that are not a replay's: the limit is for them.
    live: usize,
    reader: Option<Waker>,
    capacity_waiters: Vec<Waker>,
    /// Since when the reader has taken nothing; `None` if nothing waited yet.
    progress: Option<Instant>,
    /// A task empties the queue into the socket.
    writing: bool,
    /// Part of the first chunk is written: without the rest the frame would be broken.
    partial: bool,
}

struct Chunk {
    bytes: Bytes,
    accepted: Option<Instant>,
    live: bool,
}

/// A chunk that leaves an outbox.
pub struct OutgoingChunk {
    pub bytes: Bytes,
    /// When the oldest event in it was accepted, if it came live from this node.
    pub accepted: Option<Instant>,
}

impl Outbox {
    /// An empty outbox for a response body that holds at most `limit` bytes. `abort` is called when
    /// the reader is too slow: it cuts the connection under the outbox.
    pub fn new(limit: usize, abort: impl Fn() + 'static) -> Self {
        Self::with(limit, Sink::Body(Box::new(abort)))
    }

    /// An empty outbox that writes to a socket.
    pub fn for_socket(socket: UpgradedSocket, options: Rc<SocketOptions>) -> Self {
        Self::with(options.limit, Sink::Socket(socket, options))
    }

    fn with(limit: usize, sink: Sink) -> Self {
        let writable = Cell::new(matches!(sink, Sink::Socket(..)));
        let state = Cell::new(State::Open);
        let (listener, backlog, replays) = (OnceCell::new(), RefCell::default(), OnceCell::new());
        Self { writable, sink, limit, listener, state, backlog, replays }
    }

    fn backlog(&self) -> RefMut<'_, Backlog> {
        RefMut::map(self.backlog.borrow_mut(), |backlog| &mut **backlog.get_or_insert_default())
    }

    /// Sets the listener of the connection; once, before anything is pushed that can fail.
    pub fn set_listener(&self, listener: impl ConnectionEvents + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }

    pub(super) fn listener(&self) -> Option<&dyn ConnectionEvents> {
        self.listener.get().map(Box::as_ref)
    }

    /// Tells the listener that its timer has fired.
    pub fn wake(&self) {
        if let Some(listener) = self.listener() {
            listener.on_timer();
        }
    }

    /// Asks the listener to end the connection; without a listener it is aborted.
    pub fn disconnect(&self, disconnect: &Disconnect) {
        match self.listener() {
            Some(listener) => listener.on_disconnect(disconnect),
            None => self.abort(),
        }
    }

    /// The upgraded socket, for whoever reads from it.
    pub fn upgraded_socket(&self) -> Option<&UpgradedSocket> {
        match &self.sink {
            Sink::Socket(socket, _) => Some(socket),
            Sink::Body(_) => None,
        }
    }

    /// Passes a server command to the listener.
    pub fn send_command(&self, command: &Arc<ServerCommand>) {
        if let Some(listener) = self.listener() {
            listener.on_command(command);
        }
    }

    /// Whether the bytes go to an upgraded socket, and not through a response body.
    pub fn is_socket(&self) -> bool {
        matches!(self.sink, Sink::Socket(..))
    }

    fn report_end(&self, why: EndReason) {
        if let Some(listener) = self.listener() {
            listener.on_end(why);
        }
    }

    /// Queues `bytes`. An empty queue takes anything, so that a frame above the limit can be sent
    /// to a reader that keeps up. No bytes are no frame: an empty chunk would end an HTTP body.
    pub fn push(self: &Rc<Self>, bytes: Bytes, accepted: Option<Instant>) -> Result<(), PushError> {
        self.push_shared(&bytes, accepted)
    }

    /// Queues bytes that are shared with others, see [`Outbox::push`].
    pub fn push_shared(self: &Rc<Self>, bytes: &Bytes, accepted: Option<Instant>) -> Result<(), PushError> {
        self.push_with(bytes, accepted, true)
    }

    /// Queues a chunk of a replay. It does not count against the limit, because the reader missed it and
    /// did not leave it unread: live events have all of the limit. [`Outbox::wait_for_capacity`] keeps a replay to one
    /// chunk.
    pub fn push_replay(self: &Rc<Self>, bytes: Bytes) -> Result<(), PushError> {
        self.push_with(&bytes, None, false)
    }

    fn push_with(
        self: &Rc<Self>,
        bytes: &Bytes,
        accepted: Option<Instant>,
        live: bool,
    ) -> Result<(), PushError> {
        if bytes.is_empty() {
            return if self.is_closed() { Err(PushError::Closed) } else { Ok(()) };
        }
        match &self.sink {
            Sink::Socket(socket, _) if self.writable.get() => self.write(socket, bytes, live),
            _ => self.queue(Chunk { bytes: bytes.clone(), accepted, live }),
        }
    }

    fn queue(self: &Rc<Self>, chunk: Chunk) -> Result<(), PushError> {
        if self.is_closed() {
            return Err(PushError::Closed);
        }
        let mut backlog = self.backlog();
        if let Sink::Socket(_, options) = &self.sink {
            return self.write_later(backlog, chunk, options);
        }
        if backlog.overflows(&chunk, self.limit) {
            drop(backlog);
            self.abort();
            self.report_end(EndReason::Slow);
            return Err(PushError::Overflow);
        }
        backlog.add(chunk);
        if let Some(reader) = backlog.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Queues a last chunk of bytes and ends after it. Does nothing once it is over.
    pub fn end_with(self: &Rc<Self>, bytes: Bytes) {
        if self.is_closed() {
            return;
        }
        if let Sink::Socket(socket, _) = &self.sink {
            return self.write_last(socket, bytes);
        }
        let mut backlog = self.backlog();
        if !bytes.is_empty() {
            backlog.add(Chunk { bytes, accepted: None, live: true });
        }
        self.state.set(State::Ending);
        backlog.wake_all();
    }

    /// How much may wait for the reader.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Ends at once and drops what is queued.
    pub fn close(&self) {
        self.writable.set(false);
        self.state.set(State::Closed);
        let backlog = self.backlog.take();
        if let Some(mut backlog) = backlog {
            backlog.wake_all();
        }
    }

    /// Aborts the connection, unless all that was queued has been sent.
    pub fn abort_unless_closed(&self) {
        if self.state.get() != State::Closed {
            self.abort();
        }
    }

    /// Ends at once and aborts the connection.
    pub fn abort(&self) {
        self.close();
        match &self.sink {
            Sink::Body(abort) => abort(),
            Sink::Socket(socket, _) => socket.reset(),
        }
    }

    /// The socket, if bytes may be written to it at once.
    pub(super) fn writable_socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.sink {
            Sink::Socket(socket, _) if self.writable.get() => Some(socket.fd()),
            _ => None,
        }
    }

    /// Whether nothing can be pushed any more.
    pub fn is_closed(&self) -> bool {
        self.state.get() != State::Open
    }

    /// For how long the reader has taken nothing although something waits for it.
    pub fn stalled_for(&self) -> Option<Duration> {
        let backlog = self.backlog.borrow();
        backlog.as_deref().filter(|backlog| !backlog.queue.is_empty()).map(Backlog::stalled_for)
    }

    /// Waits for the other replays of the connection, until what it gives is dropped.
    pub async fn replay_turn(&self) -> MutexGuard<'_, ()> {
        self.replays.get_or_init(Box::default).lock().await
    }

    /// Waits until at most half of the limit is in use, or the outbox is over: how a replay keeps
    /// to its reader's pace.
    pub async fn wait_for_capacity(&self) {
        std::future::poll_fn(|cx| {
            let mut backlog = self.backlog.borrow_mut();
            let backlog = match backlog.as_deref_mut() {
                Some(backlog) if !self.is_closed() && backlog.bytes > self.limit / 2 => backlog,
                _ => return Poll::Ready(()),
            };
            // A stream of several channels has a replay for each.
            if !backlog.capacity_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
                backlog.capacity_waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// The next chunk for the reader, merged up to 64 KiB; `None` at the end.
    pub fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<Option<OutgoingChunk>> {
        let mut backlog = self.backlog();
        let Some(Chunk { bytes: mut chunk, mut accepted, .. }) = backlog.take() else {
            if self.state.get() == State::Open {
                backlog.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            self.state.set(State::Closed);
            return Poll::Ready(None);
        };
        let fits = |backlog: &Backlog, length| {
            backlog.queue.front().is_some_and(|next| length + next.bytes.len() <= MERGE)
        };
        if fits(&backlog, chunk.len()) {
            let mut merged = BytesMut::from(&chunk[..]);
            while fits(&backlog, merged.len())
                && let Some(next) = backlog.take()
            {
                merged.extend_from_slice(&next.bytes);
                accepted = accepted.into_iter().chain(next.accepted).min();
            }
            chunk = merged.freeze();
        }
        backlog.progress = Some(Instant::now());
        if backlog.bytes <= self.limit / 2 {
            backlog.capacity_waiters.drain(..).for_each(Waker::wake);
        }
        Poll::Ready(Some(OutgoingChunk { bytes: chunk, accepted }))
    }
}

impl Backlog {
    fn add(&mut self, chunk: Chunk) {
        // Before this nothing was queued, so the reader's time begins now.
        if self.queue.is_empty() {
            self.progress = Some(Instant::now());
        }
        self.bytes += chunk.bytes.len();
        self.live += if chunk.live { chunk.bytes.len() } else { 0 };
        self.queue.push_back(chunk);
    }

    /// Whether `chunk` exceeds the limit. An empty queue takes anything.
    fn overflows(&self, chunk: &Chunk, limit: usize) -> bool {
        chunk.live && self.live > 0 && self.live + chunk.bytes.len() > limit
    }

    fn take(&mut self) -> Option<Chunk> {
        let chunk = self.queue.pop_front()?;
        self.bytes -= chunk.bytes.len();
        self.live -= if chunk.live { chunk.bytes.len() } else { 0 };
        Some(chunk)
    }

    fn stalled_for(&self) -> Duration {
        self.progress.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn wake_all(&mut self) {
        self.reader.take().into_iter().chain(self.capacity_waiters.drain(..)).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
