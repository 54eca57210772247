//! What lies between clients and the gateway: a proxy in this process that cuts, throttles and
//! delays, and that lies if it is told to. Bytes pass unchanged otherwise. Each connection draws its
//! own luck from the seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::lie::{Liar, Lie};
use super::random::Random;
use crate::framing::Head;
use crate::http::Connection;
use crate::target::Target;

/// A reader with little room, so that what it does not read stands in the gateway's own queue.
const SMALL_BUFFER: u32 = 8 * 1024;
const PIECE: usize = 16 * 1024;
/// How long a silent connection is silent before it is cut.
const SILENCE: Duration = Duration::from_millis(700);
/// A door that forgets loses every so many requests.
const FORGETS: u64 = 5;

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Closed, perhaps in the middle of a frame.
    Close,
    /// Reset.
    Reset,
    /// Nothing passes any more; then it is reset.
    Silence,
}

/// Which connections are slow; each has a line of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slow {
    /// None.
    No,
    /// Those that stand still. The others are as quick as can be.
    Still,
    /// All of them.
    All,
}

/// What happens to all connections.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// How many cuts there have been.
    cuts: u64,
    cut: Cut,
    slow: Slow,
}

/// The proxy.
pub struct Proxy {
    /// Where clients find it.
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    task: AbortHandle,
}

#[derive(Clone)]
struct Way {
    upstream: SocketAddr,
    small: bool,
    lie: Option<Lie>,
    weather: watch::Receiver<Weather>,
}

impl Proxy {
    /// One that leads to `upstream`; `small` gives it little room for what clients do not read.
    pub async fn start(upstream: SocketAddr, small: bool, lie: Option<Lie>, random: &Random) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather { cuts: 0, cut: Cut::Close, slow: Slow::No });
        let way = Way { upstream, small, lie, weather: weather.subscribe() };
        let random = random.of("proxy", 0);
        let serve = async move {
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(carry(client, way.clone(), random.of("connection", number)));
            }
        };
        Ok(Self { address, weather, task: tokio::spawn(serve).abort_handle() })
    }

    /// Cuts most connections.
    pub fn cut(&self, cut: Cut) {
        self.weather.send_modify(|weather| {
            weather.cuts += 1;
            weather.cut = cut;
        });
    }

    /// Throttles and delays connections, or lets them go.
    pub fn slow(&self, slow: Slow) {
        self.weather.send_modify(|weather| weather.slow = slow);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, way: Way, mut random: Random) {
    let Ok(mut server) = way.connect().await else { return };
    let mut weather = way.weather.clone();
    // Each has a line of its own: from one that stands still, over that of a modem, to a good one.
    let (delay, bytes_per_second) = (random.millis(5..60), random.pick(&[0, 2_000, 20_000, 400_000]));
    let liar = way.lie.map(Liar::new);
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let slowness = Slowness { delay, bytes_per_second, weather: way.weather.clone() };
        tokio::select! {
            _ = pass(from_client, to_server, None, None) => None,
            _ = pass(from_server, to_client, liar, Some(slowness)) => None,
            cut = until_cut(&mut weather, &mut random) => Some(cut),
        }
    };
    if cut == Some(Cut::Silence) {
        sleep(SILENCE).await;
    }
    if matches!(cut, Some(Cut::Reset | Cut::Silence)) {
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

impl Way {
    async fn connect(&self) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if self.small {
            socket.set_recv_buffer_size(SMALL_BUFFER)?;
        }
        let stream = socket.connect(self.upstream).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// The next cut that this connection is not spared.
async fn until_cut(weather: &mut watch::Receiver<Weather>, random: &mut Random) -> Cut {
    let mut seen = weather.borrow().cuts;
    loop {
        if weather.changed().await.is_err() {
            // The run is over, and so are its connections.
            return Cut::Close;
        }
        let now = *weather.borrow_and_update();
        if now.cuts > seen && !random.once_in(4) {
            return now.cut;
        }
        seen = now.cuts;
    }
}

struct Slowness {
    delay: Duration,
    /// None at all: nothing is read while it is slow, until the gateway has more than it may keep.
    bytes_per_second: u32,
    weather: watch::Receiver<Weather>,
}

async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut liar: Option<Liar>,
    mut slowness: Option<Slowness>,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        if let Some(Slowness { bytes_per_second: 0, weather, .. }) = &mut slowness {
            weather.wait_for(|weather| weather.slow == Slow::No).await?;
        }
        let slow = slowness.as_ref().filter(|slowness| slowness.weather.borrow().slow == Slow::All);
        let room = if slow.is_some() { 1024 } else { PIECE };
        let read = from.read(&mut buffer[..room]).await?;
        if read == 0 {
            return Ok(());
        }
        if let Some(Slowness { delay, bytes_per_second, .. }) = slow {
            sleep(*delay + Duration::from_secs(1) * read as u32 / (*bytes_per_second).max(1)).await;
        }
        match &mut liar {
            Some(liar) => to.write_all(&liar.rewrite(&buffer[..read])?).await?,
            None => to.write_all(&buffer[..read]).await?,
        }
    }
}

/// A door for publishers that answers some requests itself, as if they had been committed.
pub struct Forgetful {
    /// Where publishers find it.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Forgetful {
    /// One in front of `upstream`.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let asked = Arc::new(AtomicU64::new(0));
        let serve = async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(answer(client, Target::from(upstream), asked.clone()));
            }
        };
        Ok(Self { address, task: tokio::spawn(serve).abort_handle() })
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut client: TcpStream, upstream: Target, asked: Arc<AtomicU64>) -> Result<()> {
    let mut upstream = Connection::to(&upstream);
    let (mut input, mut body) = (Vec::new(), Vec::new());
    loop {
        let Some(length) = request_length(&input)? else {
            if client.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let request: Vec<u8> = input.drain(..length).collect();
        let forgets = asked.fetch_add(1, Ordering::Relaxed) % FORGETS == FORGETS - 1;
        let status = if forgets {
            let is_webhook = request.starts_with(b"POST /webhooks/");
            let said: &[u8] = if is_webhook { b"{\"received\":true}" } else { b"{\"result\":{}}" };
            body = said.to_vec();
            if is_webhook { 202 } else { 200 }
        } else {
            upstream.exchange(&request, &mut body).await?
        };
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n", body.len());
        client.write_all(&[head.as_bytes(), &body].concat()).await?;
    }
}

/// The length of the request at the start of `input`, once all of it is there.
fn request_length(input: &[u8]) -> Result<Option<usize>> {
    let Some(line) = memchr::memchr(b'\n', input) else { return Ok(None) };
    // Headers are framed alike in both directions.
    let as_answer = [b"HTTP/1.1 200 OK\r\n", &input[line + 1..]].concat();
    let Some((head, length)) = Head::parse(&as_answer)? else { return Ok(None) };
    let crate::framing::Body::Length(body) = head.body else { return Err(anyhow::anyhow!("no length")) };
    let length = length - 17 + line + 1 + usize::try_from(body).context("a large request")?;
    Ok((input.len() >= length).then_some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_its_head_says() {
        let request = b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPOST";
        let whole = request.len() - 4;
        assert_eq!(request_length(request).unwrap(), Some(whole));
        assert_eq!(request_length(&request[..whole - 1]).unwrap(), None);
        assert_eq!(request_length(b"POST ").unwrap(), None);
    }
}
