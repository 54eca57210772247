//! What lies between two that speak TCP: clients and the gateways, a gateway and its database or its
//! Redis. A proxy in this process that takes turns, cuts, throttles, delays and holds, loses single
//! messages, and lies if it is told to. Bytes pass unchanged otherwise. Each connection draws its own
//! luck from the seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::backend::{Backends, Passage, Way};
use super::lie::{Liar, Lie};
use super::random::Random;
use super::resp::{Losses, Tap};

const PIECE: usize = 16 * 1024;
/// How long a silent connection is silent before it is cut.
const SILENCE: Duration = Duration::from_millis(700);

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

/// What becomes of the bytes on their way back.
#[derive(Debug, Clone, Default)]
pub enum Change {
    /// Nothing.
    #[default]
    None,
    /// They lie.
    Lie(Lie),
    /// They are Redis's, and single messages are lost.
    Lose(Arc<Losses>),
}

/// The proxy.
pub struct Proxy {
    /// Where clients find it.
    pub address: SocketAddr,
    /// What is behind it.
    pub backends: Backends,
    weather: watch::Sender<Weather>,
    task: AbortHandle,
}

#[derive(Clone)]
struct Line {
    backends: Backends,
    small: bool,
    change: Change,
    weather: watch::Receiver<Weather>,
}

impl Proxy {
    /// One that leads to `backends`; `small` gives it little room for what clients do not read.
    pub async fn start(backends: Backends, small: bool, change: Change, random: &Random) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let weather = watch::Sender::new(Weather { cuts: 0, cut: Cut::Close, slow: Slow::No });
        let line = Line { backends: backends.clone(), small, change, weather: weather.subscribe() };
        let random = random.of("proxy", 0);
        let serve = async move {
            for number in 0.. {
                let Ok((client, _)) = listener.accept().await else { continue };
                tokio::spawn(carry(client, line.clone(), random.of("connection", number)));
            }
        };
        Ok(Self { address, backends, weather, task: tokio::spawn(serve).abort_handle() })
    }

    /// One that leads to a single server.
    pub async fn to(server: SocketAddr, change: Change, random: &Random) -> Result<Self> {
        Self::start(Backends::new(&[server]), false, change, random).await
    }

    /// Opens or closes the way, where there is but one.
    pub fn set(&self, passage: Passage) {
        self.backends.set(0, passage);
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

async fn carry(mut client: TcpStream, line: Line, mut random: Random) {
    let Some((mut server, way)) = line.backends.connect(line.small).await else {
        // Nobody takes it, and that is what the client is to feel.
        let _ = client.set_zero_linger();
        return;
    };
    let _ = client.set_nodelay(true);
    let (mut weather, mut fate) = (line.weather.clone(), way.clone());
    // Each has a line of its own: from one that stands still, over that of a modem, to a good one.
    let (delay, bytes_per_second) = (random.millis(5..60), random.pick(&[0, 2_000, 20_000, 400_000]));
    let filter = match line.change {
        Change::None => Filter::None,
        Change::Lie(lie) => Filter::Liar(Box::new(Liar::new(lie))),
        Change::Lose(losses) => Filter::Tap(Tap::new(losses)),
    };
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let slowness = Slowness { delay, bytes_per_second, weather: line.weather.clone() };
        tokio::select! {
            _ = pass(from_client, to_server, Filter::None, None, way.clone()) => None,
            _ = pass(from_server, to_client, filter, Some(slowness), way) => None,
            cut = until_cut(&mut weather, &mut random) => Some(cut),
            _ = fate.wait_for(|way| way.passage == Passage::Refused) => Some(Cut::Reset),
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

enum Filter {
    None,
    Liar(Box<Liar>),
    Tap(Tap),
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
    mut filter: Filter,
    mut slowness: Option<Slowness>,
    mut way: watch::Receiver<Way>,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        if let Some(Slowness { bytes_per_second: 0, weather, .. }) = &mut slowness {
            weather.wait_for(|weather| weather.slow == Slow::No).await?;
        }
        let slow = slowness.as_ref().filter(|slowness| slowness.weather.borrow().slow == Slow::All);
        let room = if slow.is_some() { 1024 } else { PIECE };
        let read = from.read(&mut buffer[..room]).await?;
        way.wait_for(|way| way.passage != Passage::Held).await?;
        if read == 0 {
            return Ok(());
        }
        if let Some(Slowness { delay, bytes_per_second, .. }) = slow {
            sleep(*delay + Duration::from_secs(1) * read as u32 / (*bytes_per_second).max(1)).await;
        }
        match &mut filter {
            Filter::None => to.write_all(&buffer[..read]).await?,
            Filter::Liar(liar) => to.write_all(&liar.rewrite(&buffer[..read])?).await?,
            Filter::Tap(tap) => {
                let kept = tap.rewrite(&buffer[..read]).inspect_err(|error| eprintln!("check: {error:#}"))?;
                to.write_all(&kept).await?;
            }
        }
    }
}
