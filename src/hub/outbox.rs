//! One connection's outgoing bytes: a bounded queue between the fan-out, which never waits, and a
//! reader that may be slow. Over the bound the connection is closed; it comes back with its
//! cursor, so closing loses nothing and bounds memory.
//!
//! An outbox belongs to one worker thread. Its bytes leave in one of two ways: through a response
//! body that the HTTP dispatcher polls ([`Outbox::poll_take`]), or over a socket that was upgraded
//! out of the dispatcher, which is written to at once; there the queue and a task that empties it
//! exist only after the socket would have blocked.

pub mod ring;
mod socket;

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::position::Position;
use crate::protocol::code::Disconnect;
pub use socket::{SocketOptions, Wire};

/// The most that leaves in one piece.
pub const MERGE: usize = 64 * 1024;

/// Why a push was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The bound was hit just now: whoever sees this closes the connection.
    Overflow,
    /// The connection is over.
    Closed,
}

/// Why an outbox ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The reader is too slow for what its channels bring.
    Slow,
    /// The reader took nothing for too long.
    Stalled,
    /// The connection broke.
    Broken,
}

/// Whoever keeps a connection: hears what its outbox and its entries cannot settle themselves.
/// Called in the middle of a delivery, so it only takes a note.
pub trait Keeper {
    /// The entry of `channel` is on hold and has to catch up from the log.
    fn fell_behind(&self, channel: &ChannelName);
    /// The events after the entry's place are gone; the channel goes on behind `head`.
    fn lost(&self, channel: &ChannelName, head: &Position);
    /// Nothing more can be pushed.
    fn ended(&self, why: Ended);
    /// Who runs the server wants the connection to end. Not called within a delivery.
    fn dismissed(&self, disconnect: &Disconnect);
    /// A time has come that it asked for. Not called within a delivery.
    fn due(&self) {}
    /// Who runs the server wants the connection to do this. Not called within a delivery. A stream
    /// whose channels and life are fixed has nothing to do.
    fn directed(&self, _: &Arc<Directive>) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Sends what is queued, then ends.
    Ending,
    /// Drops what is queued.
    Closed,
}

/// How bytes leave.
enum Way {
    /// The dispatcher polls a body. The function cuts the connection, so that a peer that does not
    /// read cannot keep it.
    Body(Box<dyn Fn()>),
    /// They are written at once.
    Socket(Wire, Rc<SocketOptions>),
}

/// The queue of one connection. What a delivery looks at stands first and together: with thousands
/// of connections each line of memory that is touched costs as much as the rest of the code.
#[repr(C)]
pub struct Outbox {
    /// A socket that is open and has nothing queued: bytes may go out at once.
    clear: Cell<bool>,
    way: Way,
    limit: usize,
    keeper: OnceCell<Box<dyn Keeper>>,
    state: Cell<State>,
    /// On a socket nearly always nothing.
    backlog: RefCell<Option<Box<Backlog>>>,
}

/// What waits, and who waits for it.
#[derive(Default)]
struct Backlog {
    queue: VecDeque<Piece>,
    bytes: usize,
    /// Those among `bytes` that are not a replay's: the limit is for them.
    live: usize,
    reader: Option<Waker>,
    room: Vec<Waker>,
    /// Since when the reader has taken nothing; `None` if nothing waited yet.
    progress: Option<Instant>,
    /// A task empties the queue into the socket.
    writing: bool,
    /// Part of the first piece is on the socket: without the rest the frame would be broken.
    half: bool,
}

struct Piece {
    bytes: Bytes,
    accepted: Option<Instant>,
    live: bool,
}

/// What left an outbox in one piece.
pub struct Taken {
    /// The bytes.
    pub bytes: Bytes,
    /// When the oldest event in it was accepted, if it came live from this node.
    pub accepted: Option<Instant>,
}

impl Outbox {
    /// An empty outbox for a response body that holds at most `limit` bytes. `abort` is called when
    /// the reader is too slow: it cuts the connection under the outbox.
    pub fn new(limit: usize, abort: impl Fn() + 'static) -> Self {
        Self::with(limit, Way::Body(Box::new(abort)))
    }

    /// An empty outbox that writes to a socket.
    pub fn socket(wire: Wire, options: Rc<SocketOptions>) -> Self {
        Self::with(options.limit, Way::Socket(wire, options))
    }

    fn with(limit: usize, way: Way) -> Self {
        let clear = Cell::new(matches!(way, Way::Socket(..)));
        let state = Cell::new(State::Open);
        Self { clear, way, limit, keeper: OnceCell::new(), state, backlog: RefCell::default() }
    }

    fn backlog(&self) -> RefMut<'_, Backlog> {
        RefMut::map(self.backlog.borrow_mut(), |backlog| &mut **backlog.get_or_insert_default())
    }

    /// Says who keeps the connection; once, before anything is pushed that can fail.
    pub fn kept_by(&self, keeper: impl Keeper + 'static) {
        let _ = self.keeper.set(Box::new(keeper));
    }

    pub(super) fn keeper(&self) -> Option<&dyn Keeper> {
        self.keeper.get().map(Box::as_ref)
    }

    /// Tells the keeper that the time it waited for has come.
    pub fn ring(&self) {
        if let Some(keeper) = self.keeper() {
            keeper.due();
        }
    }

    /// Asks the keeper to end the connection; one that is not kept yet ends without a word.
    pub fn dismiss(&self, disconnect: &Disconnect) {
        match self.keeper() {
            Some(keeper) => keeper.dismissed(disconnect),
            None => self.abort(),
        }
    }

    /// The upgraded socket, for whoever reads from it.
    pub fn wire(&self) -> Option<&Wire> {
        match &self.way {
            Way::Socket(wire, _) => Some(wire),
            Way::Body(_) => None,
        }
    }

    /// Hands a directive to the keeper.
    pub fn direct(&self, directive: &Arc<Directive>) {
        if let Some(keeper) = self.keeper() {
            keeper.directed(directive);
        }
    }

    /// Whether the bytes go to an upgraded socket, and not through a response body.
    pub fn is_socket(&self) -> bool {
        matches!(self.way, Way::Socket(..))
    }

    fn tell_ended(&self, why: Ended) {
        if let Some(keeper) = self.keeper() {
            keeper.ended(why);
        }
    }

    /// Queues `bytes`. An empty queue takes anything, so that a frame above the limit can be sent
    /// to a reader that keeps up. No bytes are no frame: an empty chunk would end an HTTP body.
    pub fn push(self: &Rc<Self>, bytes: Bytes, accepted: Option<Instant>) -> Result<(), Refused> {
        self.push_shared(&bytes, accepted)
    }

    /// The same with bytes that others get too.
    pub fn push_shared(self: &Rc<Self>, bytes: &Bytes, accepted: Option<Instant>) -> Result<(), Refused> {
        self.hand(bytes, accepted, true)
    }

    /// Queues a piece of a replay. It was missed, not left lying, so it does not count against the
    /// limit: what comes live meanwhile has all of it. [`Outbox::room`] keeps it to one piece.
    pub fn push_replay(self: &Rc<Self>, bytes: Bytes) -> Result<(), Refused> {
        self.hand(&bytes, None, false)
    }

    fn hand(self: &Rc<Self>, bytes: &Bytes, accepted: Option<Instant>, live: bool) -> Result<(), Refused> {
        if bytes.is_empty() {
            return if self.is_over() { Err(Refused::Closed) } else { Ok(()) };
        }
        match &self.way {
            Way::Socket(wire, _) if self.clear.get() => self.write(wire, bytes, live),
            _ => self.queue(Piece { bytes: bytes.clone(), accepted, live }),
        }
    }

    fn queue(self: &Rc<Self>, piece: Piece) -> Result<(), Refused> {
        if self.is_over() {
            return Err(Refused::Closed);
        }
        let mut backlog = self.backlog();
        if let Way::Socket(_, options) = &self.way {
            return self.write_later(backlog, piece, options);
        }
        if backlog.overflows(&piece, self.limit) {
            drop(backlog);
            self.abort();
            self.tell_ended(Ended::Slow);
            return Err(Refused::Overflow);
        }
        backlog.add(piece);
        if let Some(reader) = backlog.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// Queues a last piece of bytes and ends after it. Does nothing once it is over.
    pub fn end_with(self: &Rc<Self>, bytes: Bytes) {
        if self.is_over() {
            return;
        }
        if let Way::Socket(wire, _) = &self.way {
            return self.write_last(wire, bytes);
        }
        let mut backlog = self.backlog();
        if !bytes.is_empty() {
            backlog.add(Piece { bytes, accepted: None, live: true });
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
        self.clear.set(false);
        self.state.set(State::Closed);
        let backlog = self.backlog.take();
        if let Some(mut backlog) = backlog {
            backlog.wake_all();
        }
    }

    /// Cuts the connection, unless all that was queued is on its way.
    pub fn give_up(&self) {
        if self.state.get() != State::Closed {
            self.abort();
        }
    }

    /// Ends at once and cuts the connection.
    pub fn abort(&self) {
        self.close();
        match &self.way {
            Way::Body(abort) => abort(),
            Way::Socket(wire, _) => wire.reset(),
        }
    }

    /// The open socket, where bytes may go straight to it.
    pub(super) fn clear_socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.way {
            Way::Socket(wire, _) if self.clear.get() => Some(wire.socket()),
            _ => None,
        }
    }

    /// Whether nothing can be pushed any more.
    pub fn is_over(&self) -> bool {
        self.state.get() != State::Open
    }

    /// For how long the reader has taken nothing although something waits for it.
    pub fn stalled_for(&self) -> Option<Duration> {
        let backlog = self.backlog.borrow();
        backlog.as_deref().filter(|backlog| !backlog.queue.is_empty()).map(Backlog::stalled_for)
    }

    /// Waits until at most half of the limit is in use, or the outbox is over: how a replay keeps
    /// to its reader's pace.
    pub async fn room(&self) {
        std::future::poll_fn(|cx| {
            let mut backlog = self.backlog.borrow_mut();
            let backlog = match backlog.as_deref_mut() {
                Some(backlog) if !self.is_over() && backlog.bytes > self.limit / 2 => backlog,
                _ => return Poll::Ready(()),
            };
            // A stream of several channels has a replay for each.
            if !backlog.room.iter().any(|waker| waker.will_wake(cx.waker())) {
                backlog.room.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// The next piece for the reader, merged up to 64 KiB; `None` at the end.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Taken>> {
        let mut backlog = self.backlog();
        let Some(Piece { bytes: mut piece, mut accepted, .. }) = backlog.take() else {
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
        if fits(&backlog, piece.len()) {
            let mut merged = BytesMut::from(&piece[..]);
            while fits(&backlog, merged.len())
                && let Some(next) = backlog.take()
            {
                merged.extend_from_slice(&next.bytes);
                accepted = accepted.into_iter().chain(next.accepted).min();
            }
            piece = merged.freeze();
        }
        backlog.progress = Some(Instant::now());
        if backlog.bytes <= self.limit / 2 {
            backlog.room.drain(..).for_each(Waker::wake);
        }
        Poll::Ready(Some(Taken { bytes: piece, accepted }))
    }
}

impl Backlog {
    fn add(&mut self, piece: Piece) {
        // Before this nobody was waited for, so the reader's time begins now.
        if self.queue.is_empty() {
            self.progress = Some(Instant::now());
        }
        self.bytes += piece.bytes.len();
        self.live += if piece.live { piece.bytes.len() } else { 0 };
        self.queue.push_back(piece);
    }

    /// Whether the queue has no room for `piece`. An empty one has room for anything.
    fn overflows(&self, piece: &Piece, limit: usize) -> bool {
        piece.live && self.live > 0 && self.live + piece.bytes.len() > limit
    }

    fn take(&mut self) -> Option<Piece> {
        let piece = self.queue.pop_front()?;
        self.bytes -= piece.bytes.len();
        self.live -= if piece.live { piece.bytes.len() } else { 0 };
        Some(piece)
    }

    fn stalled_for(&self) -> Duration {
        self.progress.map(|since| since.elapsed()).unwrap_or_default()
    }

    fn wake_all(&mut self) {
        self.reader.take().into_iter().chain(self.room.drain(..)).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
