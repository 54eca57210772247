//! The TCP connection under a request: aborted when the reader of a stream is too slow, and noticed at once when
//! its peer closes it; the dispatcher does neither while a body is under way. Also what answers say to caches and
//! buffers, and to peers whose body nobody wants.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::rc::Rc;

use actix_web::HttpRequest;
use actix_web::dev::{Extensions, ServiceResponse};

use actix_web::http::header::{self, CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};
use actix_web::http::{ConnectionType, Method};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::accepted::{Accepted, Shared};

/// No cache may store a stream.
pub const UNCACHED: (HeaderName, &str) =
    (header::CACHE_CONTROL, "private, no-cache, no-store, must-revalidate, max-age=0");
/// Makes Nginx pass on data at once.
pub const UNBUFFERED: (&str, &str) = ("X-Accel-Buffering", "no");

/// The socket of a connection that the dispatcher accepted.
#[derive(Clone)]
pub struct TcpHandle(pub(super) Rc<Shared>);

/// Keeps the connection under a request from making way for others, until dropped.
pub struct Busy(Option<TcpHandle>);

impl Busy {
    pub fn of(request: &HttpRequest) -> Self {
        let handle = request.conn_data::<TcpHandle>().cloned();
        handle.iter().for_each(|handle| handle.set_busy(true));
        Self(handle)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.iter().for_each(|handle| handle.set_busy(false));
    }
}

/// Aborts a connection; resolves when its peer has closed it.
pub type AbortAndClosed = (Box<dyn Fn()>, LocalBoxFuture<'static, ()>);

impl TcpHandle {
    /// Gives handlers a handle on an accepted socket.
    pub fn keep(socket: &Accepted, extensions: &mut Extensions) {
        extensions.insert(Self(socket.shared().clone()));
    }

    /// Whether a request is under way on it.
    pub fn set_busy(&self, busy: bool) {
        if let Some(slot) = &*self.0.slot.borrow()
            && !self.0.streaming.get()
        {
            slot.set_busy(busy);
        }
    }

    /// How to abort the connection under `request`, and a future that resolves when its peer has closed it.
    pub fn of(request: &HttpRequest) -> AbortAndClosed {
        let Some(socket) = request.conn_data::<Self>().cloned() else {
            // Only a request that did not come over a socket has none.
            return (Box::new(|| {}), std::future::pending().boxed_local());
        };
        socket.0.streaming.set(true);
        let watched = socket.clone();
        (Box::new(move || socket.abort()), watched.closed().boxed_local())
    }

    fn abort(&self) {
        // The peer may be gone already; then there is nothing left to abort.
        if let Some(stream) = &*self.0.stream.borrow() {
            let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Both);
        }
    }

    /// Resolves when the peer has closed its side, or the connection is broken. A second handle on the
    /// socket notices that although the dispatcher, which has the first one, does not read.
    async fn closed(self) {
        let watched =
            self.0.stream.borrow().as_ref().map(|stream| socket2::SockRef::from(stream).try_clone());
        let watched = watched.and_then(|copy| TcpStream::from_std(copy.ok()?.into()).ok());
        drop(self);
        let Some(watched) = watched else {
            // Out of file descriptors: the next ping that cannot be written ends the stream.
            return std::future::pending().await;
        };
        while let Ok(ready) = watched.ready(Interest::READABLE).await {
            if ready.is_read_closed() || is_closed(&watched) {
                return;
            }
            // A pipelined request waits behind the stream; the next activity of the peer wakes us.
            let would_block = || Err::<(), _>(ErrorKind::WouldBlock.into());
            let _ = watched.try_io(Interest::READABLE, would_block);
        }
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    match socket2::SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
    }
}

/// Notes that an answer may have left a part of the body unread. The dispatcher then closes the connection where
/// the body has a length; one without it would read to its end, however long that takes.
pub fn note_unread<B>(response: &mut ServiceResponse<B>) {
    let request = response.request();
    let Some(TcpHandle(shared)) = request.conn_data() else { return };
    let has = |name| request.headers().contains_key(name);
    let (chunked, refused) = (has(TRANSFER_ENCODING), !response.status().is_success());
    shared.unread.set(refused && (chunked || has(CONTENT_LENGTH)));
    if chunked && (refused || *request.method() != Method::POST) {
        shared.ended.set(true);
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
}
