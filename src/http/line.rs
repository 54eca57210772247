//! The TCP connection under a stream: cut when its reader is too slow, and heard of at once when
//! its peer leaves. The dispatcher does neither while a body is under way. Also the headers that
//! keep caches and buffers off a stream.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::rc::Rc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderName};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A stream is nobody's to keep.
pub const UNCACHED: (HeaderName, &str) =
    (header::CACHE_CONTROL, "private, no-cache, no-store, must-revalidate, max-age=0");
/// Nginx passes on at once what comes.
pub const UNBUFFERED: (&str, &str) = ("X-Accel-Buffering", "no");

/// A socket as the dispatcher accepted it.
#[derive(Clone)]
pub struct Socket(pub Rc<socket2::Socket>);

/// How a connection is cut, and what resolves when its peer leaves.
pub type Ends = (Box<dyn Fn()>, LocalBoxFuture<'static, ()>);

impl Socket {
    /// Both ends of the connection under `request`.
    pub fn of(request: &HttpRequest) -> Ends {
        let Some(socket) = request.conn_data::<Self>().cloned() else {
            // Only a request that came over no socket has none.
            return (Box::new(|| {}), std::future::pending().boxed_local());
        };
        let watched = socket.clone();
        (Box::new(move || socket.cut()), watched.left().boxed_local())
    }

    fn cut(&self) {
        // The peer may be gone already; then there is nothing left to cut.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    /// Resolves when the peer has closed its side, or the connection is broken. A second handle on
    /// the socket hears of that although the dispatcher, which has the first one, does not listen.
    async fn left(self) {
        let Ok(watched) = self.0.try_clone().and_then(|socket| TcpStream::from_std(socket.into())) else {
            // No more files: the next ping that is not taken ends the stream.
            return std::future::pending().await;
        };
        while let Ok(ready) = watched.ready(Interest::READABLE).await {
            if ready.is_read_closed() || self.is_left() {
                return;
            }
            // A request waits behind the stream; the next sign of the peer wakes us.
            let asleep = || Err::<(), _>(ErrorKind::WouldBlock.into());
            let _ = watched.try_io(Interest::READABLE, asleep);
        }
    }

    fn is_left(&self) -> bool {
        match self.0.peek(&mut [MaybeUninit::uninit()]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}
