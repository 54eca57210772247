//! What lies behind a proxy: one server, or several that take turns. Each can be cut off, refused or
//! in silence, and moved to another address. Where several take turns, one that is not ready, or
//! refuses, is left out, as a load balancer would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::http::Connection;
use crate::target::Target;

/// A reader with little room, so that what it does not read stands in the gateway's own queue.
const SMALL_BUFFER: u32 = 8 * 1024;
/// Between two looks at a server's health, and how long the answer may take.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether bytes get through to a server and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// They do.
    Open,
    /// Connections are reset, and new ones too.
    Refused,
    /// Nothing passes and nobody says so. What was on its way comes late, if the passage opens again.
    Held,
}

/// A server as a proxy knows it.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is reached.
    pub passage: Passage,
}

struct Backend {
    way: watch::Sender<Way>,
    ready: AtomicBool,
}

/// All servers behind a proxy.
#[derive(Clone)]
pub struct Backends(Arc<Pool>);

struct Pool {
    all: Vec<Backend>,
    turn: AtomicUsize,
}

/// Looks after the health of the servers until it is dropped.
pub struct Watchman(Vec<AbortHandle>);

impl Backends {
    /// These, all taken for ready.
    pub fn new(addresses: &[SocketAddr]) -> Self {
        let backend = |address: &SocketAddr| Backend {
            way: watch::Sender::new(Way { address: *address, passage: Passage::Open }),
            ready: AtomicBool::new(true),
        };
        Self(Arc::new(Pool { all: addresses.iter().map(backend).collect(), turn: AtomicUsize::new(0) }))
    }

    /// Opens or closes the way to one.
    pub fn set(&self, index: usize, passage: Passage) {
        self.0.all[index].way.send_modify(|way| way.passage = passage);
    }

    /// Another server takes the place of one. Its connections have to be cut by `set`.
    pub fn lead_to(&self, index: usize, address: SocketAddr) {
        self.0.all[index].way.send_modify(|way| way.address = address);
    }

    /// Connects to the next one that takes it; while none is ready, to any.
    pub async fn connect(&self, small: bool) -> Option<(TcpStream, watch::Receiver<Way>)> {
        let all = &self.0.all;
        let turn = self.0.turn.fetch_add(1, Ordering::Relaxed);
        let any = !all.iter().any(|backend| backend.ready.load(Ordering::Relaxed));
        for backend in (0..all.len()).map(|more| &all[(turn + more) % all.len()]) {
            let way = backend.way.subscribe();
            let Way { address, passage } = *way.borrow();
            if passage == Passage::Refused || !(any || backend.ready.load(Ordering::Relaxed)) {
                continue;
            }
            match connect(address, small).await {
                Ok(stream) => return Some((stream, way)),
                Err(_) => continue,
            }
        }
        None
    }

    /// From now on `/readyz` of each decides whether it gets its turns.
    pub fn watch(&self) -> Watchman {
        let look = |index: usize| {
            let pool = self.0.clone();
            tokio::spawn(async move { pool.all[index].look().await }).abort_handle()
        };
        Watchman((0..self.0.all.len()).map(look).collect())
    }
}

impl Backend {
    async fn look(&self) {
        let target = Target::from(self.way.borrow().address);
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\n\r\n", target.host);
        let (mut connection, mut body) = (Connection::to(&target), Vec::new());
        loop {
            let answer = timeout(PATIENCE, connection.exchange(request.as_bytes(), &mut body)).await;
            let answers = matches!(answer, Ok(Ok(200)));
            if !answers {
                connection = Connection::to(&target);
            }
            let open = self.way.borrow().passage == Passage::Open;
            self.ready.store(answers && open, Ordering::Relaxed);
            sleep(LOOK_AGAIN).await;
        }
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn connect(address: SocketAddr, small: bool) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if small {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn servers_take_turns_and_those_out_of_reach_are_left_out() {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let backends = Backends::new(&addresses);
        let reached = async || {
            let mut reached = Vec::new();
            for _ in 0..4 {
                let connected = backends.connect(false).await;
                let peer = connected.map(|(stream, _)| stream.peer_addr().unwrap());
                reached.push(addresses.iter().position(|address| Some(*address) == peer));
            }
            reached
        };
        assert_eq!(reached().await, [Some(0), Some(1), Some(2), Some(0)]);
        backends.set(1, Passage::Refused);
        assert_eq!(reached().await, [Some(2), Some(2), Some(0), Some(2)], "the turn of 1 goes to 2");
        listeners.truncate(1);
        assert_eq!(reached().await, [Some(0); 4]);
        backends.set(0, Passage::Refused);
        assert_eq!(reached().await, [None; 4]);
    }
}
