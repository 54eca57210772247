//! The TCP connection under a stream: aborted when its reader is too slow, and noticed at once when its
//! peer closes it. The dispatcher does neither while a body is under way. Also the headers that keep
//! caches and buffers off a stream.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::rc::Rc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// No cache may store a stream.
pub const UNCACHED: (HeaderName, &str) =
    (header::CACHE_CONTROL, "private, no-cache, no-store, must-revalidate, max-age=0");
/// Makes Nginx pass on data at once.
pub const UNBUFFERED: (&str, &str) = ("X-Accel-Buffering", "no");

/// The socket of a connection that the dispatcher accepted.
#[derive(Clone)]
pub struct TcpHandle(pub Rc<socket2::Socket>);

/// Aborts a connection; resolves when its peer has closed it.
pub type AbortAndClosed = (Box<dyn Fn()>, LocalBoxFuture<'static, ()>);

impl TcpHandle {
    /// How to abort the connection under `request`, and a future that resolves when its peer has closed it.
    pub fn of(request: &HttpRequest) -> AbortAndClosed {
        let Some(socket) = request.conn_data::<Self>().cloned() else {
            // Only a request that did not come over a socket has none.
            return (Box::new(|| {}), std::future::pending().boxed_local());
        };
        let watched = socket.clone();
        (Box::new(move || socket.abort()), watched.closed().boxed_local())
    }

    fn abort(&self) {
        // The peer may be gone already; then there is nothing left to abort.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Resolves when the peer has closed its side, or the connection is broken. A second handle on the
    /// socket notices that although the dispatcher, which has the first one, does not read.
    async fn closed(self) {
        let Ok(watched) = self.0.try_clone().and_then(|socket| TcpStream::from_std(socket.into())) else {
            // Out of file descriptors: the next ping that cannot be written ends the stream.
            return std::future::pending().await;
        };
        while let Ok(ready) = watched.ready(Interest::READABLE).await {
            if ready.is_read_closed() || self.is_closed() {
                return;
            }
            // A pipelined request waits behind the stream; the next activity of the peer wakes us.
            let would_block = || Err::<(), _>(ErrorKind::WouldBlock.into());
            let _ = watched.try_io(Interest::READABLE, would_block);
        }
    }

    fn is_closed(&self) -> bool {
        match self.0.peek(&mut [MaybeUninit::uninit()]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}
