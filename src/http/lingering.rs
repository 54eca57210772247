//! Lingering close (RFC 9112 §9.6): a connection that ends while its peer may still write, as after a refusal
//! without reading the body, is read for a while. Closed at once, the kernel would answer what still comes with
//! a reset, which destroys the answer on its way; a proxy then takes this node for broken.
//! How many linger, how long and for how many bytes is bounded.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, coop};

use super::Metrics;
use super::metrics::LingeringCut;
use crate::config::LimitsConfig;
use crate::limits::budget::{Budget, Reserved};

/// What is read at once, and thrown away.
const CHUNK: usize = 16 << 10;

/// The lingering connections of a node.
pub struct Lingering {
    size: u64,
    timeout: Duration,
    count: Budget,
    open: Mutex<Open>,
    metrics: Arc<Metrics>,
}

/// By age.
#[derive(Default)]
struct Open {
    tasks: BTreeMap<u64, AbortHandle>,
    begun: u64,
}

impl Lingering {
    pub fn new(limits: &LimitsConfig, count: Budget, metrics: Arc<Metrics>) -> Self {
        Self {
            size: limits.lingering_size.0,
            timeout: limits.lingering_timeout.0,
            count,
            open: Mutex::default(),
            metrics,
        }
    }

    /// Says that nothing more is said on `stream`, and listens until its peer has closed it too, within the
    /// bounds. Where too many linger, the oldest is closed.
    pub fn close(self: &Arc<Self>, stream: TcpStream) {
        let Ok(runtime) = Handle::try_current() else { return };
        // It fails where the peer is gone, which is noticed by reading.
        let _ = socket2::SockRef::from(&stream).shutdown(Shutdown::Write);
        let mut open = self.open();
        let mut reserved = self.count.reserve();
        if !reserved.grow(1) {
            let Some((_, oldest)) = open.tasks.pop_first() else { return };
            oldest.abort();
            self.metrics.lingering_cut.inc(LingeringCut::Evicted);
            reserved = self.count.reserve_beyond(1);
        }
        let id = open.begun;
        open.begun += 1;
        let task = runtime.spawn(self.clone().listen(id, stream, reserved));
        open.tasks.insert(id, task.abort_handle());
    }

    async fn listen(self: Arc<Self>, id: u64, stream: TcpStream, reserved: Reserved) {
        let cut = match tokio::time::timeout(self.timeout, discard(&stream, self.size)).await {
            Ok(true) => None,
            Ok(false) => Some(LingeringCut::Size),
            Err(_) => Some(LingeringCut::Time),
        };
        if let Some(cut) = cut {
            self.metrics.lingering_cut.inc(cut);
        }
        self.open().tasks.remove(&id);
        drop((stream, reserved));
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("the lock is not poisoned")
    }
}

/// Reads until the peer has said everything; `false` if that is more than `most` bytes.
async fn discard(stream: &TcpStream, most: u64) -> bool {
    let mut left = most;
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; CHUNK]) {
            Ok(0) => return true,
            Ok(count) => {
                left = left.saturating_sub(count as u64);
                if left == 0 {
                    return false;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
        // One that writes fast must not keep the thread from others.
        coop::consume_budget().await;
    }
    true
}
