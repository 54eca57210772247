//! A TCP proxy that fails on purpose: between clients and gateways, or a gateway and its database or its
//! Redis. It leads to one server, or shares connections out among several; it cuts, throttles, delays and
//! stalls, and may filter what a server sends. Otherwise bytes pass unchanged. What happens by chance is
//! drawn from a seed, for each connection by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::http::{self, RequestBuilder as _};
use crate::random::Random;

const BUFFER: usize = 16 * 1024;
/// A receive buffer with little room, so that what a client does not read stays in the gateway's queue.
const SMALL_BUFFER: u32 = 8 * 1024;
/// How long a connection stalls before it is reset.
const STALL: Duration = Duration::from_millis(700);
/// Between two health checks, and how long the answer may take.
const HEALTH_INTERVAL: Duration = Duration::from_millis(100);
const HEALTH_DEADLINE: Duration = Duration::from_secs(3);

/// Whether bytes get through to a server and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// They do.
    Open,
    /// Connections are reset, and new ones too.
    Refused,
    /// Nothing passes and no connection ends. What was on its way arrives late, if the link opens again.
    Stalled,
}

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Closed, perhaps in the middle of a frame.
    Close,
    /// Reset.
    Reset,
    /// Nothing passes any more; then it is reset.
    Stall,
}

/// Which connections are slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// None.
    None,
    /// Those that nothing is read from. The others are as quick as can be.
    Stopped,
    /// All of them, each at a speed of its own.
    All,
}

/// Rewrites what a server sends on one connection.
pub trait Filter: Send {
    /// What to pass on instead of `input`; an error ends the connection.
    fn rewrite(&mut self, input: &[u8]) -> Result<Vec<u8>>;
}

/// Makes the filter of a new connection.
pub type NewFilter = Arc<dyn Fn() -> Box<dyn Filter> + Send + Sync>;

/// How a proxy treats its connections from the start.
#[derive(Clone)]
pub struct Options {
    /// Leaves little room for what clients do not read.
    pub small_buffers: bool,
    /// Filters what servers send.
    pub filter: Option<NewFilter>,
    /// What each connection's luck is drawn from.
    pub random: Random,
}

impl Default for Options {
    fn default() -> Self {
        Self { small_buffers: false, filter: None, random: Random::new(0) }
    }
}

/// The proxy.
pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    state: Arc<State>,
    _accepting: Task,
    health_checks: Vec<Task>,
}

struct State {
    servers: Vec<Server>,
    next: AtomicUsize,
    options: Options,
    conditions: watch::Sender<Conditions>,
    /// What servers may still send before the connection is closed; below 0 is no limit.
    budget: AtomicI64,
}

struct Server {
    route: watch::Sender<Route>,
    ready: AtomicBool,
}

#[derive(Clone, Copy)]
struct Route {
    address: SocketAddr,
    link: Link,
}

/// What happens to all connections.
#[derive(Clone, Copy)]
struct Conditions {
    /// How many cuts there have been.
    cuts: u64,
    cut: Cut,
    slow: Slow,
}

/// A task that ends when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Proxy {
    /// One that leads to a single server.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        Self::start(&[server], Options::default()).await
    }

    /// One that shares connections out among these servers in turn.
    pub async fn start(servers: &[SocketAddr], options: Options) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = |address: &SocketAddr| Server {
            route: watch::Sender::new(Route { address: *address, link: Link::Open }),
            ready: AtomicBool::new(true),
        };
        let state = Arc::new(State {
            servers: servers.iter().map(server).collect(),
            next: AtomicUsize::new(0),
            options,
            conditions: watch::Sender::new(Conditions { cuts: 0, cut: Cut::Close, slow: Slow::None }),
            budget: AtomicI64::new(-1),
        });
        let address = listener.local_addr()?;
        let accepting = Task(tokio::spawn(accept(listener, state.clone())));
        Ok(Self { address, state, _accepting: accepting, health_checks: Vec::new() })
    }

    /// From now on `/readyz` of each server decides whether it gets its turns, as with a load balancer.
    pub fn check_health(&mut self) {
        let check = |index: usize| {
            let state = self.state.clone();
            Task(tokio::spawn(async move { state.servers[index].check_health().await }))
        };
        self.health_checks = (0..self.state.servers.len()).map(check).collect();
    }

    /// Opens or closes the link to the first server.
    pub fn set(&self, link: Link) {
        self.set_server(0, link);
    }

    /// Opens or closes the link to one of several servers.
    pub fn set_server(&self, index: usize, link: Link) {
        self.state.servers[index].route.send_modify(|route| route.link = link);
    }

    /// New connections to the first server lead to `address`; those that are open stay.
    pub fn lead_to(&self, address: SocketAddr) {
        self.state.servers[0].route.send_modify(|route| route.address = address);
    }

    /// Cuts three of four connections.
    pub fn cut(&self, cut: Cut) {
        self.state.conditions.send_modify(|now| (now.cuts, now.cut) = (now.cuts + 1, cut));
    }

    /// Closes the connection on which a server has sent `bytes` more, once, whichever it is.
    pub fn cut_after(&self, bytes: u32) {
        self.state.budget.store(bytes.into(), Ordering::SeqCst);
    }

    /// Throttles and delays connections, or lets them go.
    pub fn slow(&self, slow: Slow) {
        self.state.conditions.send_modify(|now| now.slow = slow);
    }
}

impl Server {
    async fn check_health(&self) {
        loop {
            let Route { address, link } = *self.route.borrow();
            let request = http::get("/readyz").with("");
            let answer = timeout(HEALTH_DEADLINE, http::send(address, request)).await;
            let ready = matches!(answer, Ok(Ok(answer)) if answer.status == 200);
            self.ready.store(ready && link == Link::Open, Ordering::Relaxed);
            sleep(HEALTH_INTERVAL).await;
        }
    }
}

impl State {
    /// Connects to the next server that takes it; while none is ready, to any.
    async fn connect(&self) -> Option<(TcpStream, watch::Receiver<Route>)> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let is_ready = |server: &Server| server.ready.load(Ordering::Relaxed);
        let any = !self.servers.iter().any(is_ready);
        let count = self.servers.len();
        for server in (0..count).map(|more| &self.servers[(turn + more) % count]) {
            let route = server.route.subscribe();
            let Route { address, link } = *route.borrow();
            if link == Link::Refused || !(any || is_ready(server)) {
                continue;
            }
            if let Ok(stream) = connect(address, self.options.small_buffers).await {
                return Some((stream, route));
            }
        }
        None
    }

    /// How many of these bytes may pass, and whether the connection ends behind them.
    fn spend(&self, count: usize) -> (usize, bool) {
        let left = self.budget.load(Ordering::SeqCst);
        let Ok(left) = usize::try_from(left) else { return (count, false) };
        let ends = left <= count;
        self.budget.store(if ends { -1 } else { (left - count) as i64 }, Ordering::SeqCst);
        (count.min(left), ends)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, state.clone(), state.options.random.derive("connection", number)));
    }
}

async fn connect(address: SocketAddr, small_buffer: bool) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if small_buffer {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn carry(mut client: TcpStream, state: Arc<State>, mut random: Random) {
    let Some((mut server, mut route)) = state.connect().await else {
        // No server takes it, and that is what the client is to notice.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let mut conditions = state.conditions.subscribe();
    // Each has a speed of its own: none at all, that of a modem, and better.
    let throttle = Throttle {
        delay: random.millis(5..60),
        bytes_per_second: random.pick(&[0, 2_000, 20_000, 400_000]),
        conditions: conditions.clone(),
    };
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            _ = upstream(from_client, to_server, route.clone()) => None,
            _ = downstream(from_server, to_client, route.clone(), throttle, &state) => None,
            cut = until_cut(&mut conditions, &mut random) => Some(cut),
            _ = route.wait_for(|route| route.link == Link::Refused) => Some(Cut::Reset),
        }
    };
    if cut == Some(Cut::Stall) {
        sleep(STALL).await;
    }
    if matches!(cut, Some(Cut::Reset | Cut::Stall)) {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

/// The next cut that this connection is not spared.
async fn until_cut(conditions: &mut watch::Receiver<Conditions>, random: &mut Random) -> Cut {
    let mut seen = conditions.borrow().cuts;
    loop {
        if conditions.changed().await.is_err() {
            return Cut::Close;
        }
        let now = *conditions.borrow_and_update();
        if now.cuts > seen && !random.once_in(4) {
            return now.cut;
        }
        seen = now.cuts;
    }
}

struct Throttle {
    delay: Duration,
    /// None at all: nothing is read while it is slow, until the gateway has more than it may keep.
    bytes_per_second: u32,
    conditions: watch::Receiver<Conditions>,
}

async fn upstream(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut route: watch::Receiver<Route>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        route.wait_for(|route| route.link != Link::Stalled).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn downstream(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut route: watch::Receiver<Route>,
    mut throttle: Throttle,
    state: &State,
) -> Result<()> {
    let (mut buffer, mut filter) = (vec![0; BUFFER], state.options.filter.as_ref().map(|new| new()));
    loop {
        if throttle.bytes_per_second == 0 {
            throttle.conditions.wait_for(|now| now.slow == Slow::None).await?;
        }
        let is_slow = throttle.conditions.borrow().slow == Slow::All;
        let room = if is_slow { 1024 } else { BUFFER };
        let read = from.read(&mut buffer[..room]).await?;
        route.wait_for(|route| route.link != Link::Stalled).await?;
        if read == 0 {
            return Ok(());
        }
        if is_slow {
            let speed = throttle.bytes_per_second.max(1);
            sleep(throttle.delay + Duration::from_secs(1) * read as u32 / speed).await;
        }
        let (count, ends) = state.spend(read);
        match &mut filter {
            None => to.write_all(&buffer[..count]).await?,
            Some(filter) => {
                let kept =
                    filter.rewrite(&buffer[..count]).inspect_err(|error| eprintln!("proxy: {error:#}"));
                to.write_all(&kept?).await?;
            }
        }
        if ends {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_take_turns_and_those_out_of_reach_are_left_out() {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<SocketAddr> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let proxy = Proxy::start(&addresses, Options::default()).await.unwrap();
        let reached = async || {
            let mut reached = Vec::new();
            for _ in 0..4 {
                let connected = proxy.state.connect().await;
                let peer = connected.map(|(stream, _)| stream.peer_addr().unwrap());
                reached.push(addresses.iter().position(|address| Some(*address) == peer));
            }
            reached
        };
        assert_eq!(reached().await, [Some(0), Some(1), Some(2), Some(0)]);
        proxy.set_server(1, Link::Refused);
        assert_eq!(reached().await, [Some(2), Some(2), Some(0), Some(2)], "the turn of 1 goes to 2");
        listeners.truncate(1);
        assert_eq!(reached().await, [Some(0); 4]);
        proxy.set_server(0, Link::Refused);
        assert_eq!(reached().await, [None; 4]);
    }
}
