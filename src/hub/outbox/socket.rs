//! Output over an upgraded socket: bytes are written at once, and only what the socket does not take is
//! queued, for a task that waits until it is writable. A reader that lets the queue overflow loses what
//! is queued, but not the rest of a frame that it has part of: that is written, then the reason, and if
//! even this is not taken in time the connection is reset.

use std::cell::RefMut;
use std::io::{self, ErrorKind, IoSlice, Read as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_rt::net::TcpStream;
use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::io::Interest;

use super::{Backlog, Chunk, EndReason, MERGE, Outbox, PushError, Sink, State};

/// Chunks in one write.
const SLICES: usize = 64;

/// A connection that can be written to without waiting.
pub enum UpgradedSocket {
    /// TCP as it is.
    Plain(TcpStream),
}

impl UpgradedSocket {
    /// Writes without asking the reactor first whether the socket is writable: it nearly always is,
    /// and asking costs as much as all the rest here. Who is told that it would block asks then.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => SockRef::from(stream).send(bytes),
        }
    }

    /// Reads what has come; no bytes are the end. With less than there is room for everything was
    /// taken, and nobody has to ask once more to hear that it would block.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self::Plain(stream) = self;
        let mut part = None;
        let read = stream.try_io(Interest::READABLE, || match (&*SockRef::from(stream)).read(buffer)? {
            count if count == 0 || count == buffer.len() => Ok(count),
            count => {
                part = Some(count);
                Err(ErrorKind::WouldBlock.into())
            }
        });
        part.map_or(read, Ok)
    }

    /// Waits until something has come.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Plain(stream) = self;
        stream.poll_read_ready(cx)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(stream) => stream.as_fd(),
        }
    }

    fn try_write_all(&self, chunks: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.try_write_vectored(chunks),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.writable().await,
        }
    }

    /// Says that nothing more is written.
    fn finish(&self) {
        let Self::Plain(stream) = self;
        // The peer may be gone already.
        let _ = SockRef::from(stream).shutdown(Shutdown::Write);
    }

    /// Ends the connection at once, whatever is under way.
    pub(super) fn reset(&self) {
        let Self::Plain(stream) = self;
        let socket = SockRef::from(stream);
        let _ = socket.set_linger(Some(Duration::ZERO));
        // Whoever reads from it hears of the end now; the reset itself goes with the last handle.
        let _ = socket.shutdown(Shutdown::Read);
    }
}

/// How outboxes of sockets behave.
#[derive(Debug, Clone)]
pub struct SocketOptions {
    /// Bytes that may wait.
    pub limit: usize,
    /// How long the peer may take nothing although something waits.
    pub write_timeout: Duration,
    /// How long the final message may take.
    pub close_timeout: Duration,
    /// The final message to a reader that is too slow: a whole frame.
    pub slow: Bytes,
}

impl Outbox {
    /// What happens in nearly every delivery: the socket takes all of it at once.
    pub(super) fn write(
        self: &Rc<Self>,
        socket: &UpgradedSocket,
        bytes: &Bytes,
        live: bool,
    ) -> Result<(), PushError> {
        self.finish_write(bytes, live, socket.try_write(bytes))
    }

    /// Handles the result of a write that the caller has tried already.
    pub(in crate::hub) fn finish_write(
        self: &Rc<Self>,
        bytes: &Bytes,
        live: bool,
        written: io::Result<usize>,
    ) -> Result<(), PushError> {
        debug_assert!(self.writable.get(), "only to a socket that has nothing else to come");
        let written = match written {
            Ok(count) if count == bytes.len() => return Ok(()),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.close();
                self.report_end(EndReason::Broken);
                return Err(PushError::Closed);
            }
        };
        let mut backlog = self.backlog();
        backlog.partial = written > 0;
        self.wait(&mut backlog, Chunk { bytes: bytes.slice(written..), accepted: None, live });
        Ok(())
    }

    /// Something is queued already: this is queued too, if the limit allows it.
    pub(super) fn write_later(
        self: &Rc<Self>,
        mut backlog: RefMut<'_, Backlog>,
        chunk: Chunk,
        options: &SocketOptions,
    ) -> Result<(), PushError> {
        if backlog.overflows(&chunk, self.limit) {
            backlog.keep_partial();
            self.state.set(State::Ending);
            backlog.add(Chunk { bytes: options.slow.clone(), accepted: None, live: true });
            backlog.wake_all();
            drop(backlog);
            self.report_end(EndReason::Slow);
            return Err(PushError::Overflow);
        }
        self.wait(&mut backlog, chunk);
        Ok(())
    }

    fn wait(self: &Rc<Self>, backlog: &mut Backlog, chunk: Chunk) {
        backlog.add(chunk);
        self.writable.set(false);
        if !std::mem::replace(&mut backlog.writing, true) {
            actix_rt::spawn(self.clone().empty());
        }
    }

    pub(super) fn write_last(self: &Rc<Self>, socket: &UpgradedSocket, bytes: Bytes) {
        let _ = self.push(bytes, None);
        if self.is_closed() {
            return;
        }
        self.writable.set(false);
        let mut backlog = self.backlog.borrow_mut();
        match backlog.as_deref_mut() {
            Some(backlog) if !backlog.queue.is_empty() => {
                self.state.set(State::Ending);
                backlog.wake_all();
            }
            _ => {
                drop(backlog);
                self.close();
                socket.finish();
            }
        }
    }

    /// Writes what is queued as the peer takes it, until nothing is left.
    async fn empty(self: Rc<Self>) {
        let Sink::Socket(socket, options) = &self.sink else { return };
        let mut ending: Option<Instant> = None;
        loop {
            let state = self.state.get();
            let patience = match state {
                State::Closed => return,
                State::Open => options.write_timeout.saturating_sub(self.backlog().stalled_for()),
                State::Ending => {
                    let since = *ending.get_or_insert_with(Instant::now);
                    options.close_timeout.saturating_sub(since.elapsed())
                }
            };
            let writable = tokio::time::timeout(patience, self.writable_in(state, socket)).await;
            // Whoever still holds the socket keeps it open.
            if self.state.get() == State::Closed {
                return;
            }
            let written = writable.map(|ready| {
                let mut backlog = self.backlog();
                ready.and_then(|()| backlog.write_queued(socket))?;
                self.wake_capacity_waiters(&mut backlog);
                Ok::<_, io::Error>(backlog.queue.is_empty())
            });
            match written {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) if self.state.get() == State::Ending => {
                    self.close();
                    return socket.finish();
                }
                Ok(Ok(true)) => {
                    *self.backlog.borrow_mut() = None;
                    return self.writable.set(true);
                }
                Ok(Err(_)) => {
                    self.close();
                    return self.report_end(EndReason::Broken);
                }
                // It began to end during a wait with an older timeout.
                Err(_) if self.state.get() == State::Ending && ending.is_none() => {}
                Err(_) => {
                    let stalled = self.state.get() == State::Open;
                    self.close();
                    socket.reset();
                    if stalled {
                        self.report_end(EndReason::Stalled);
                    }
                    return;
                }
            }
        }
    }

    /// Waits until the socket takes bytes, or is in another state.
    async fn writable_in(&self, state: State, socket: &UpgradedSocket) -> io::Result<()> {
        let mut writable = pin!(socket.writable());
        std::future::poll_fn(|cx| {
            if self.state.get() != state {
                return Poll::Ready(Ok(()));
            }
            self.backlog().reader = Some(cx.waker().clone());
            writable.as_mut().poll(cx)
        })
        .await
    }

    fn wake_capacity_waiters(&self, backlog: &mut Backlog) {
        if backlog.bytes <= self.limit / 2 {
            backlog.capacity_waiters.drain(..).for_each(std::task::Waker::wake);
        }
    }
}

impl Backlog {
    /// Writes until the socket takes no more or nothing is left.
    fn write_queued(&mut self, socket: &UpgradedSocket) -> io::Result<()> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let (mut count, mut length) = (0, 0);
            for (slice, chunk) in slices.iter_mut().zip(&self.queue) {
                if count > 0 && length + chunk.bytes.len() > MERGE {
                    break;
                }
                *slice = IoSlice::new(&chunk.bytes);
                count += 1;
                length += chunk.bytes.len();
            }
            match socket.try_write_all(&slices[..count]) {
                Ok(written) => self.written(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn written(&mut self, mut count: usize) {
        self.progress = Some(Instant::now());
        while let Some(chunk) = self.queue.front_mut() {
            if count < chunk.bytes.len() {
                chunk.bytes.advance(count);
                self.bytes -= count;
                self.live -= if chunk.live { count } else { 0 };
                self.partial |= count > 0;
                return;
            }
            count -= chunk.bytes.len();
            self.partial = false;
            self.take();
        }
    }

    /// Drops all whole frames of the queue and keeps the rest of the half-sent one.
    fn keep_partial(&mut self) {
        self.queue.truncate(usize::from(self.partial));
        self.bytes = self.queue.iter().map(|chunk| chunk.bytes.len()).sum();
        self.live = self.queue.iter().filter(|chunk| chunk.live).map(|chunk| chunk.bytes.len()).sum();
    }
}
