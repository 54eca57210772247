//! The connections: opened with a bounded number under way, then read as their sockets become
//! readable, pings answered on the way. Owns the epoll instance, and lends it to the publishers'
//! doors. A connection that hears anything unexpected fails the run; so does one that the server
//! closes, unless the caller asks for the news of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use super::dialect::{self, Dialect, Step};
use super::frame::{self, Kind};
use super::line::{self, Line, Reply};
use crate::port;

/// Tokens from here on belong to others.
pub const FOREIGN: usize = 1 << 24;
/// Nothing at all heard for so long is a failure while something is expected.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Holds what a saturated socket has received at once.
const BUFFER: usize = 512 * 1024;
const EVENTS: usize = 1024;
const PUSH: &[u8] = b"{\"push\":";

/// The key of RFC 6455's example, and what a server must make of it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// See [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The first frame of a connection, and how many commands it holds.
#[derive(Debug, Default)]
pub struct First {
    frame: Vec<u8>,
    commands: u32,
}

/// What a connection says to whoever asks for all of it.
#[derive(Debug)]
pub enum News<'a> {
    /// A publication of ours with its number, pushed or recovered.
    Publication(u32),
    /// Any other push, as a line of JSON.
    Push(&'a [u8]),
    /// A subscription is there; what it missed comes right after this.
    Subscribed(&'a Reply<'a>),
    /// The server closed it with this code, or 0 without a word.
    Closed(u16),
}

/// A set of connections to one server.
pub struct Swarm {
    poll: Poll,
    events: Option<Events>,
    buffer: Vec<u8>,
    address: SocketAddr,
    upgrade: Vec<u8>,
    dialect: Dialect,
    members: Vec<Member>,
    live: usize,
    /// Those on their way to being live.
    coming: usize,
}

struct Member {
    socket: TcpStream,
    stage: Stage,
    /// The beginning of a frame, or of the handshake's answer.
    rest: Vec<u8>,
    /// It does not read what comes.
    deaf: bool,
    dialect: Dialect,
}

enum Stage {
    Connecting(First),
    Upgrading(First),
    /// So many replies have come, and so many are owing.
    Joining(u32, u32),
    /// Holds the frame that subscribes, for when the server has greeted.
    Greeting(Vec<u8>),
    Live,
    /// Closed by either side.
    Gone,
}

impl Swarm {
    /// Nobody yet.
    pub fn new(address: SocketAddr, host: &str) -> Result<Self> {
        Self::speaking(Dialect::Centrifuge, address, host, "")
    }

    /// Nobody yet, for a server that may be another one. The channel is that of all connections,
    /// where the path names it.
    pub fn speaking(dialect: Dialect, address: SocketAddr, host: &str, channel: &str) -> Result<Self> {
        let path = dialect.path(channel);
        let upgrade = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        Ok(Self {
            poll: Poll::new()?,
            events: Some(Events::with_capacity(EVENTS)),
            buffer: vec![0; BUFFER],
            address,
            upgrade: upgrade.into_bytes(),
            dialect,
            members: Vec::new(),
            live: 0,
            coming: 0,
        })
    }

    /// How many are live.
    pub fn live(&self) -> usize {
        self.live
    }

    /// How many are on their way to being live.
    pub fn coming(&self) -> usize {
        self.coming
    }

    /// Closes a connection from this side, without a word, as a network that breaks does.
    pub fn cut(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        ensure!(matches!(member.stage, Stage::Live), "connection {index} is not live");
        member.end()?;
        self.live -= 1;
        Ok(())
    }

    /// Opens one connection more.
    pub fn add(&mut self, first: impl Into<First>) -> Result<()> {
        let member = self.connect(self.members.len(), first.into())?;
        self.members.push(member);
        Ok(())
    }

    /// Opens a connection in the place of one that is gone.
    pub fn replace(&mut self, index: usize, first: impl Into<First>) -> Result<()> {
        ensure!(matches!(self.members[index].stage, Stage::Gone), "connection {index} is still there");
        self.members[index] = self.connect(index, first.into())?;
        Ok(())
    }

    /// Lets a connection stop reading, or read again what has come meanwhile.
    pub fn set_deaf(&mut self, index: usize, deaf: bool) -> Result<()> {
        let member = &mut self.members[index];
        member.deaf = deaf;
        // To register anew makes epoll report once more what is there.
        let interest = if deaf { Interest::WRITABLE } else { Interest::READABLE | Interest::WRITABLE };
        Ok(self.poll.registry().reregister(&mut member.socket, Token(index), interest)?)
    }

    /// Where others register their sockets, with tokens from [`FOREIGN`] on.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Opens a connection for each first frame, `window` at a time: TCP, upgrade, the frame, both
    /// replies. Gives the time from the first step to the last.
    pub fn open(&mut self, firsts: Vec<impl Into<First>>, window: usize) -> Result<Duration> {
        self.open_with(firsts, window, &mut expect_nothing)
    }

    /// Like [`Self::open`], with what the connections say on the way.
    pub fn open_with(
        &mut self,
        firsts: Vec<impl Into<First>>,
        window: usize,
        hear: &mut impl FnMut(usize, News<'_>, Instant) -> Result<()>,
    ) -> Result<Duration> {
        let goal = self.live + self.coming + firsts.len();
        let mut firsts = firsts.into_iter();
        let began = Instant::now();
        let mut progress = (self.live, began);
        while self.live < goal {
            while self.coming < window
                && let Some(first) = firsts.next()
            {
                self.add(first)?;
            }
            self.follow(Duration::from_secs(1), hear, &mut Vec::new())?;
            if self.live != progress.0 {
                progress = (self.live, Instant::now());
            }
            ensure!(progress.1.elapsed() < PATIENCE, "{} of {goal} connected, then nothing more", self.live);
        }
        Ok(began.elapsed())
    }

    /// Stays for a while and expects nothing but pings.
    pub fn listen(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.follow(left, &mut expect_nothing, &mut Vec::new())?;
        }
    }

    /// The same without sleeping, so that nobody has to wake this side.
    pub fn spin(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.follow(Duration::ZERO, &mut expect_nothing, &mut Vec::new())?;
        }
        Ok(())
    }

    fn connect(&mut self, index: usize, first: First) -> Result<Member> {
        let mut socket = port::connect(self.address, index)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry().register(&mut socket, Token(index), interest)?;
        self.coming += 1;
        let (stage, dialect) = (Stage::Connecting(first), self.dialect);
        Ok(Member { socket, stage, rest: Vec::new(), deaf: false, dialect })
    }

    /// Waits for something to come, at most for `timeout`, and handles it. Publications go to `hear`
    /// with the connection's index and the time of reading; others' tokens to `foreign`.
    pub fn turn(
        &mut self,
        timeout: Duration,
        hear: &mut impl FnMut(usize, u32, Instant) -> Result<()>,
        foreign: &mut Vec<Token>,
    ) -> Result<()> {
        let mut hear = |index: usize, news: News<'_>, at: Instant| match news {
            News::Publication(number) => hear(index, number, at),
            news => expect_nothing(index, news, at),
        };
        self.follow(timeout, &mut hear, foreign)
    }

    /// Like [`Self::turn`], with all that the connections say.
    pub fn follow(
        &mut self,
        timeout: Duration,
        hear: &mut impl FnMut(usize, News<'_>, Instant) -> Result<()>,
        foreign: &mut Vec<Token>,
    ) -> Result<()> {
        let mut events = self.events.take().context("a turn within a turn")?;
        if let Err(error) = self.poll.poll(&mut events, Some(timeout)) {
            ensure!(error.kind() == ErrorKind::Interrupted, error);
        }
        for event in &events {
            let index = event.token().0;
            if index >= FOREIGN {
                foreign.push(event.token());
                continue;
            }
            let member = &mut self.members[index];
            let before = member.standing();
            member
                .serve(&mut self.buffer, &self.upgrade, &mut |news, at| hear(index, news, at))
                .with_context(|| format!("connection {index}"))?;
            let after = member.standing();
            self.coming = self.coming + usize::from(after.coming) - usize::from(before.coming);
            self.live = self.live + usize::from(after.live) - usize::from(before.live);
        }
        self.events = Some(events);
        Ok(())
    }
}

struct Standing {
    coming: bool,
    live: bool,
}

impl Member {
    fn standing(&self) -> Standing {
        let live = matches!(self.stage, Stage::Live);
        Standing { coming: !live && !matches!(self.stage, Stage::Gone), live }
    }

    /// The server sees the end at once; the socket itself goes when it is replaced.
    fn end(&mut self) -> Result<()> {
        self.stage = Stage::Gone;
        self.rest = Vec::new();
        match self.socket.shutdown(Shutdown::Both) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn serve(
        &mut self,
        buffer: &mut Vec<u8>,
        upgrade: &[u8],
        hear: &mut impl FnMut(News<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        if self.deaf || matches!(self.stage, Stage::Gone) {
            return Ok(());
        }
        if let Stage::Connecting(first) = &mut self.stage {
            if let Some(error) = self.socket.take_error()? {
                bail!("cannot connect: {error}");
            }
            self.socket.set_nodelay(true)?;
            self.stage = Stage::Upgrading(First { frame: std::mem::take(&mut first.frame), ..*first });
            return self.send(upgrade);
        }
        loop {
            let kept = self.rest.len();
            if kept == buffer.len() {
                // A reply to somebody who missed much; frames beyond reason are refused before this.
                buffer.resize(kept * 2, 0);
            }
            buffer[..kept].copy_from_slice(&self.rest);
            let read = match self.socket.read(&mut buffer[kept..]) {
                Ok(0) => {
                    self.end()?;
                    return hear(News::Closed(0), Instant::now());
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading failed"),
            };
            let filled = kept + read;
            let used = self.take(&buffer[..filled], hear)?;
            if matches!(self.stage, Stage::Gone) {
                return Ok(());
            }
            self.rest.clear();
            self.rest.extend_from_slice(&buffer[used..filled]);
            // Less than there was room for: the socket is empty, and epoll reports what comes next.
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handles what is whole, and says how many bytes that was.
    fn take(
        &mut self,
        input: &[u8],
        hear: &mut impl FnMut(News<'_>, Instant) -> Result<()>,
    ) -> Result<usize> {
        let now = Instant::now();
        let mut used = 0;
        if let Stage::Upgrading(first) = &mut self.stage {
            let Some(end) = memmem::find(input, b"\r\n\r\n") else { return Ok(0) };
            let answer = &input[..end + 4];
            let upgraded = answer.starts_with(b"HTTP/1.1 101 ")
                && memmem::find(answer, format!(": {ACCEPT}\r\n").as_bytes()).is_some();
            let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
            ensure!(upgraded, "the upgrade was answered {}", line::shown(status));
            let First { frame, commands } = std::mem::take(first);
            match self.dialect {
                Dialect::Centrifuge => {
                    self.stage = Stage::Joining(0, commands);
                    self.send(&frame)?;
                }
                Dialect::Nchan => self.stage = Stage::Live,
                Dialect::SocketIo => self.stage = Stage::Greeting(frame),
            }
            used = end + 4;
        }
        while let Some((kind, payload, length)) = frame::split(&input[used..])? {
            used += length;
            match kind {
                Kind::Text => {
                    for line in line::lines(payload) {
                        let line = line?;
                        if self.dialect == Dialect::SocketIo {
                            self.step(dialect::socket_io(line)?, now, hear)?;
                            continue;
                        }
                        match line {
                            Line::Publication(number) => hear(News::Publication(number), now)?,
                            Line::Ping => self.send(&frame::masked(Kind::Text, b"{}"))?,
                            Line::Other(line) if line.starts_with(PUSH) => hear(News::Push(line), now)?,
                            Line::Other(line) => self.reply(line, now, hear)?,
                        }
                    }
                }
                Kind::Ping => self.send(&frame::masked(Kind::Pong, payload))?,
                Kind::Close => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    self.end()?;
                    hear(News::Closed(code), now)?;
                    return Ok(used);
                }
                Kind::Binary | Kind::Pong => bail!("an unexpected frame, {kind:?}"),
            }
        }
        Ok(used)
    }

    fn step(
        &mut self,
        step: Step,
        now: Instant,
        hear: &mut impl FnMut(News<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        match (step, &mut self.stage) {
            (Step::Publication(number), _) => hear(News::Publication(number), now),
            (Step::Answer(answer), _) => self.send(&frame::masked(Kind::Text, answer)),
            (Step::Subscribe, Stage::Greeting(subscription)) => {
                let subscription = std::mem::take(subscription);
                self.send(&subscription)
            }
            (Step::Subscribed, Stage::Greeting(_)) => {
                self.stage = Stage::Live;
                Ok(())
            }
            (step, _) => bail!("out of turn: {step:?}"),
        }
    }

    fn reply(
        &mut self,
        line: &[u8],
        now: Instant,
        hear: &mut impl FnMut(News<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        let reply = Reply::read(line)?;
        let Stage::Joining(done, owing) = self.stage else { bail!("unexpected: {}", line::shown(line)) };
        ensure!(reply.id == u64::from(done + 1), "out of turn: {}", line::shown(line));
        self.stage = if owing > 1 { Stage::Joining(done + 1, owing - 1) } else { Stage::Live };
        if done > 0 {
            hear(News::Subscribed(&reply), now)?;
            for number in reply.missed() {
                hear(News::Publication(number?), now)?;
            }
        }
        Ok(())
    }

    /// All that a client says here is small and finds room in the socket.
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.socket.write(bytes).context("writing failed")?;
        ensure!(written == bytes.len(), "the server does not read");
        Ok(())
    }
}

/// For times when nothing is published.
pub fn expect_nothing(_: usize, news: News<'_>, _: Instant) -> Result<()> {
    match news {
        News::Subscribed(_) => Ok(()),
        News::Publication(number) => bail!("message {number} came, and nobody published"),
        News::Push(line) => bail!("unexpected: {}", line::shown(line)),
        News::Closed(code) => bail!("the server closed it: {code}"),
    }
}

/// The first frame: connect with the token, and subscribe.
pub fn first_frame(token: &str, channel: &str) -> Vec<u8> {
    First::new(token, [format!("\"channel\":\"{channel}\"")]).frame
}

impl First {
    /// Connect with the token, and subscribe to each of these.
    pub fn subscribing<'a>(token: &str, channels: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(token, channels.into_iter().map(|channel| format!("\"channel\":\"{channel}\"")))
    }

    /// Connect with the token, and subscribe from a position on.
    pub fn recovering(token: &str, channel: &str, epoch: &str, offset: u64) -> Self {
        Self::new(
            token,
            [format!("\"channel\":\"{channel}\",\"recover\":true,\"epoch\":\"{epoch}\",\"offset\":{offset}")],
        )
    }

    fn new(token: &str, subscriptions: impl IntoIterator<Item = String>) -> Self {
        let mut text = format!("{{\"id\":1,\"connect\":{{\"token\":\"{token}\"}}}}");
        let mut commands = 1;
        for subscription in subscriptions {
            commands += 1;
            text.push_str(&format!("\n{{\"id\":{commands},\"subscribe\":{{{subscription}}}}}"));
        }
        Self { frame: frame::masked(Kind::Text, text.as_bytes()), commands }
    }
}

impl From<Vec<u8>> for First {
    /// As [`first_frame`] makes it.
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, commands: 2 }
    }
}
