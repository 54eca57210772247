//! The accepted socket under the HTTP dispatcher. What ends while its peer may still write lingers, whichever
//! door refused it: that is decided here, where every socket is closed, and not at the doors.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::HttpState;
use super::lingering::Lingering;
use super::metrics::TurnedAwayBy;
use crate::limits::address_budget::TurnedAway;
use crate::limits::connections::{LastingSlot, Slot};

/// What who finds no room is told, before it has asked anything.
const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n";

/// The socket, and what is known about its end. The dispatcher owns it, handlers borrow it by
/// [`TcpHandle`](super::tcp::TcpHandle).
#[derive(Default)]
pub(super) struct Shared {
    pub(super) stream: RefCell<Option<TcpStream>>,
    pub(super) slot: RefCell<Option<Slot>>,
    /// An answer that lasts is under way: it stays busy.
    pub(super) streaming: Cell<bool>,
    /// A refusal may have left a part of a body unread.
    pub(super) unread: Cell<bool>,
    /// The dispatcher shall read no further.
    pub(super) ended: Cell<bool>,
    /// The dispatcher knows that.
    told: Cell<bool>,
    /// The peer has said everything, or nothing can be read any more.
    over: Cell<bool>,
}

/// An accepted socket. Dropped, it lingers unless its peer has nothing more to say.
pub struct Accepted {
    shared: Rc<Shared>,
    lingering: Arc<Lingering>,
}

/// Says that what has been refused may not have been read.
pub struct UnreadMark(Rc<Shared>);

impl Accepted {
    fn new(stream: TcpStream, slot: Slot, lingering: Arc<Lingering>) -> Self {
        let (stream, slot) = (RefCell::new(Some(stream)), RefCell::new(Some(slot)));
        let shared = Shared { stream, slot, ..Shared::default() };
        Self { shared: Rc::new(shared), lingering }
    }

    /// The socket, if there is room for it.
    pub fn accept(stream: TcpStream, peer: Option<SocketAddr>, node: &HttpState) -> Option<Self> {
        let turned_away = &node.metrics.connections_turned_away;
        let address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
        match node.connections.open(address) {
            Ok((slot, evicted)) => {
                if evicted {
                    turned_away.inc(TurnedAwayBy::Evicted);
                }
                Some(Self::new(stream, slot, node.lingering.clone()))
            }
            Err(error) => {
                turned_away.inc(match error {
                    TurnedAway::Address => TurnedAwayBy::Address,
                    TurnedAway::Full => TurnedAwayBy::Full,
                });
                // A new socket takes that much at once; if not, its peer sees the end alone.
                let _ = SockRef::from(&stream).send(NO_ROOM);
                None
            }
        }
    }

    pub(super) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub fn unread_mark(&self) -> UnreadMark {
        UnreadMark(self.shared.clone())
    }

    /// Keeps it from making way for others, for good.
    pub fn set_busy(&self) {
        self.shared.slot.borrow().iter().for_each(|slot| slot.set_busy(true));
    }

    /// The socket and its place among the connections, for who carries it on.
    pub fn into_stream(self) -> io::Result<(TcpStream, LastingSlot)> {
        let slot = self.shared.slot.take().and_then(Slot::into_lasting);
        let parts = self.shared.stream.take().zip(slot);
        parts.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn with<T>(
        &self,
        act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
        gone: impl FnOnce() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        match self.shared.stream.borrow_mut().as_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(gone()),
        }
    }
}

impl UnreadMark {
    pub fn set(&self) {
        self.0.unread.set(true);
    }
}

impl Shared {
    /// Whether the peer may be writing: the kernel answers what comes after the close with a reset.
    fn may_be_writing(&self, stream: &TcpStream) -> bool {
        let unread = || SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|count| count > 0);
        !self.over.get() && (self.unread.get() || unread())
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let stream = self.shared.stream.take();
        if let Some(stream) = stream.filter(|stream| self.shared.may_be_writing(stream)) {
            self.lingering.close(stream);
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.shared.ended.get() {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = self.with(|stream| stream.poll_read(cx, buf), || Ok(()));
        if read.is_pending() && self.shared.slot.borrow().as_ref().is_some_and(|slot| slot.is_evicted(cx)) {
            // The dispatcher ends a connection without a request under way.
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(done) = &read
            && (done.is_err() || buf.filled().len() == before)
        {
            self.shared.over.set(true);
        }
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes), || Err(io::ErrorKind::NotConnected.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.ended.get() && !self.shared.told.replace(true) {
            // The dispatcher waits for the socket, and shall find it at its end.
            cx.waker().wake_by_ref();
        }
        self.with(|stream| stream.poll_flush(cx), || Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx), || Ok(()))
    }
}
