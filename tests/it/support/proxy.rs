//! A TCP proxy that fails on purpose: cuts after so many bytes, refuses, or goes silent. What it
//! does is decided by the test alone, so a failure can be repeated.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes go through.
    Pass,
    /// Connections are cut, and new ones at once.
    Cut,
    /// Connections stay, and nothing goes through.
    Silent,
}

type Target = Arc<Mutex<SocketAddr>>;

/// A proxy on a port of its own.
pub struct Proxy {
    address: SocketAddr,
    target: Target,
    mode: watch::Sender<Mode>,
    /// What the server may still say before the connection is cut; below 0 is no limit.
    budget: Arc<AtomicI64>,
    task: AbortHandle,
}

impl Proxy {
    /// Leads to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let target = Target::new(Mutex::new(target));
        let mode = watch::Sender::new(Mode::Pass);
        let budget = Arc::new(AtomicI64::new(-1));
        let task = tokio::spawn(serve(listener, target.clone(), mode.clone(), budget.clone())).abort_handle();
        Self { address, target, mode, budget, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections lead to `target`.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().expect("an address") = target;
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts whoever is connected when the server has said `bytes` more, once.
    pub fn cut_after(&self, bytes: u32) {
        self.budget.store(bytes.into(), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: Target, mode: watch::Sender<Mode>, budget: Arc<AtomicI64>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (target, mode, budget) = (target.clone(), mode.subscribe(), budget.clone());
        connections.spawn(async move {
            if *mode.borrow() == Mode::Cut {
                return;
            }
            let target = *target.lock().expect("an address");
            let mut cut = mode.clone();
            tokio::select! {
                () = relay(client, target, mode, &budget) => {}
                _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
            }
        });
    }
}

async fn relay(client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>, budget: &AtomicI64) {
    if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = copy(from_client, to_server, mode.clone(), None) => {}
        () = copy(from_server, to_client, mode, Some(budget)) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    budget: Option<&AtomicI64>,
) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if mode.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
            return;
        }
        let mut allowed = count;
        let mut cut = false;
        if let Some(left) = budget.map(|budget| budget.load(Ordering::SeqCst)).filter(|left| *left >= 0) {
            cut = left <= count as i64;
            allowed = count.min(left as usize);
            budget
                .inspect(|budget| budget.store(if cut { -1 } else { left - count as i64 }, Ordering::SeqCst));
        }
        if to.write_all(&piece[..allowed]).await.is_err() || cut {
            return;
        }
    }
}
