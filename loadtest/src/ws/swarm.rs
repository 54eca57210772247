//! Many WebSocket connections on one epoll loop: opened with a bounded number under way, then read as
//! their sockets become readable, with pings answered. Lends the loop to publishers. A connection that
//! receives anything unexpected fails the run, and so does one that the server closes, unless the
//! caller handles it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use super::frame::{self, Kind};
use super::message::{self, Message, Reply};
use crate::port;
use crate::progress::Progress;

/// Tokens from here on belong to others.
pub const OTHER_TOKENS: usize = 1 << 24;
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
pub struct FirstFrame {
    frame: Vec<u8>,
    commands: u32,
}

#[derive(Debug)]
pub enum Received<'a> {
    /// A publication of ours with its number, pushed or recovered.
    Publication(u32),
    /// Any other push, as a line of JSON.
    Push(&'a [u8]),
    /// A subscription is active, so long after the connection was begun; the publications that it
    /// recovers follow.
    Subscribed(&'a Reply<'a>, Duration),
    /// The server closed it with this code, or 0 without a Close frame.
    Closed(u16),
}

/// A set of connections to one server.
pub struct Swarm {
    poll: Poll,
    events: Option<Events>,
    buffer: Vec<u8>,
    address: SocketAddr,
    upgrade: Vec<u8>,
    members: Vec<Member>,
    live: usize,
    /// Connections that are being opened.
    connecting: usize,
}

struct Member {
    socket: TcpStream,
    stage: Stage,
    started: Instant,
    /// The beginning of a frame, or of the handshake's answer.
    rest: Vec<u8>,
    /// It does not read.
    paused: bool,
}

enum Stage {
    Connecting(FirstFrame),
    Upgrading(FirstFrame),
    /// This many replies have arrived, and this many are outstanding.
    Joining(u32, u32),
    Live,
    /// Closed by either side.
    Gone,
}

impl Swarm {
    pub fn new(address: SocketAddr, host: &str) -> Result<Self> {
        let upgrade = format!(
            "GET /connection/websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        Ok(Self {
            poll: Poll::new()?,
            events: Some(Events::with_capacity(EVENTS)),
            buffer: vec![0; BUFFER],
            address,
            upgrade: upgrade.into_bytes(),
            members: Vec::new(),
            live: 0,
            connecting: 0,
        })
    }

    pub fn live(&self) -> usize {
        self.live
    }

    /// Closes a connection from this side without a Close frame, as when the network breaks.
    pub fn disconnect(&mut self, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        ensure!(matches!(member.stage, Stage::Live), "connection {index} is not live");
        member.end()?;
        self.live -= 1;
        Ok(())
    }

    /// Lets a connection stop reading, or go on with what has arrived meanwhile.
    pub fn set_paused(&mut self, index: usize, paused: bool) -> Result<()> {
        let member = &mut self.members[index];
        member.paused = paused;
        // Registering again makes epoll report once more what is there.
        let interest = if paused { Interest::WRITABLE } else { Interest::READABLE | Interest::WRITABLE };
        Ok(self.poll.registry().reregister(&mut member.socket, Token(index), interest)?)
    }

    /// Where others register their sockets, with tokens from [`OTHER_TOKENS`] on.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Opens a connection for each first frame, `window` at a time: TCP, upgrade, the frame, all replies.
    /// Gives the time from the first step to the last.
    pub fn open(&mut self, frames: Vec<FirstFrame>, window: usize) -> Result<Duration> {
        self.open_with(frames, window, &mut expect_nothing)
    }

    /// Like [`Self::open`], with what the connections receive meanwhile.
    pub fn open_with(
        &mut self,
        frames: Vec<FirstFrame>,
        window: usize,
        on_received: &mut impl FnMut(usize, Received<'_>, Instant) -> Result<()>,
    ) -> Result<Duration> {
        let frames = (self.members.len()..).zip(frames).collect();
        let turn = |swarm: &mut Self| swarm.poll(Duration::from_secs(1), on_received, &mut Vec::new());
        connect(self, frames, window, |swarm| swarm, turn)
    }

    /// Stays for a while and expects nothing but pings. With `spin` it never sleeps, so that the server
    /// need not wake this side.
    pub fn listen(&mut self, time: Duration, spin: bool) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let timeout = if spin { Duration::ZERO } else { left };
            self.poll(timeout, &mut expect_nothing, &mut Vec::new())?;
        }
    }

    /// Begins a connection: a new one, or in the place of one that is gone.
    fn begin(&mut self, index: usize, first: FirstFrame) -> Result<()> {
        let mut socket = port::connect(self.address, index)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry().register(&mut socket, Token(index), interest)?;
        self.connecting += 1;
        let (stage, started) = (Stage::Connecting(first), Instant::now());
        let member = Member { socket, stage, started, rest: Vec::new(), paused: false };
        match self.members.get_mut(index) {
            Some(old) => {
                ensure!(matches!(old.stage, Stage::Gone), "connection {index} is still there");
                *old = member;
            }
            None => self.members.push(member),
        }
        Ok(())
    }

    /// Waits for something to arrive, at most for `timeout`, and passes it to `on_received` with the
    /// connection's index and the time of reading. The tokens of others go to `other`.
    pub fn poll(
        &mut self,
        timeout: Duration,
        on_received: &mut impl FnMut(usize, Received<'_>, Instant) -> Result<()>,
        other: &mut Vec<Token>,
    ) -> Result<()> {
        let mut events = self.events.take().context("polled while polling")?;
        if let Err(error) = self.poll.poll(&mut events, Some(timeout)) {
            ensure!(error.kind() == ErrorKind::Interrupted, error);
        }
        for event in &events {
            let index = event.token().0;
            if index >= OTHER_TOKENS {
                other.push(event.token());
                continue;
            }
            let member = &mut self.members[index];
            let before = member.standing();
            member
                .serve(&mut self.buffer, &self.upgrade, &mut |received, at| on_received(index, received, at))
                .with_context(|| format!("connection {index}"))?;
            let after = member.standing();
            self.connecting =
                self.connecting + usize::from(after.connecting) - usize::from(before.connecting);
            self.live = self.live + usize::from(after.live) - usize::from(before.live);
        }
        self.events = Some(events);
        Ok(())
    }
}

struct Standing {
    connecting: bool,
    live: bool,
}

impl Member {
    fn standing(&self) -> Standing {
        let live = matches!(self.stage, Stage::Live);
        Standing { connecting: !live && !matches!(self.stage, Stage::Gone), live }
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
        on_received: &mut impl FnMut(Received<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        if self.paused || matches!(self.stage, Stage::Gone) {
            return Ok(());
        }
        if let Stage::Connecting(first) = &mut self.stage {
            if let Some(error) = self.socket.take_error()? {
                bail!("cannot connect: {error}");
            }
            self.socket.set_nodelay(true)?;
            self.stage = Stage::Upgrading(FirstFrame { frame: std::mem::take(&mut first.frame), ..*first });
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
                    return on_received(Received::Closed(0), Instant::now());
                }
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading failed"),
            };
            let filled = kept + read;
            let used = self.take(&buffer[..filled], on_received)?;
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

    /// Handles what is complete, and gives how many bytes that was.
    fn take(
        &mut self,
        input: &[u8],
        on_received: &mut impl FnMut(Received<'_>, Instant) -> Result<()>,
    ) -> Result<usize> {
        let now = Instant::now();
        let mut used = 0;
        if let Stage::Upgrading(first) = &mut self.stage {
            let Some(end) = memmem::find(input, b"\r\n\r\n") else { return Ok(0) };
            let answer = &input[..end + 4];
            let upgraded = answer.starts_with(b"HTTP/1.1 101 ")
                && memmem::find(answer, format!(": {ACCEPT}\r\n").as_bytes()).is_some();
            let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
            ensure!(upgraded, "the upgrade was answered {}", message::excerpt(status));
            let FirstFrame { frame, commands } = std::mem::take(first);
            self.stage = Stage::Joining(0, commands);
            self.send(&frame)?;
            used = end + 4;
        }
        while let Some((kind, payload, length)) = frame::split(&input[used..])? {
            used += length;
            match kind {
                Kind::Text => {
                    for message in message::messages(payload) {
                        match message? {
                            Message::Publication(number) => on_received(Received::Publication(number), now)?,
                            Message::Ping => self.send(&frame::masked(Kind::Text, b"{}"))?,
                            Message::Other(line) if line.starts_with(PUSH) => {
                                on_received(Received::Push(line), now)?
                            }
                            Message::Other(line) => self.reply(line, now, on_received)?,
                        }
                    }
                }
                Kind::Ping => self.send(&frame::masked(Kind::Pong, payload))?,
                Kind::Close => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    self.end()?;
                    on_received(Received::Closed(code), now)?;
                    return Ok(used);
                }
                Kind::Binary | Kind::Pong => bail!("an unexpected frame, {kind:?}"),
            }
        }
        Ok(used)
    }

    fn reply(
        &mut self,
        line: &[u8],
        now: Instant,
        on_received: &mut impl FnMut(Received<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        let reply = Reply::read(line)?;
        let Stage::Joining(done, outstanding) = self.stage else {
            bail!("unexpected: {}", message::excerpt(line))
        };
        ensure!(reply.id == u64::from(done + 1), "out of order: {}", message::excerpt(line));
        self.stage = if outstanding > 1 { Stage::Joining(done + 1, outstanding - 1) } else { Stage::Live };
        if done > 0 {
            on_received(Received::Subscribed(&reply, now - self.started), now)?;
            for number in reply.recovered() {
                on_received(Received::Publication(number?), now)?;
            }
        }
        Ok(())
    }

    /// All that a client sends here is small and fits into the socket's buffer.
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.socket.write(bytes).context("writing failed")?;
        ensure!(written == bytes.len(), "the server does not read");
        Ok(())
    }
}

/// For times when nothing but the replies to subscriptions may arrive.
pub fn expect_nothing(_: usize, received: Received<'_>, _: Instant) -> Result<()> {
    match received {
        Received::Subscribed(..) => Ok(()),
        Received::Publication(number) => bail!("message {number} arrived, and nobody published"),
        Received::Push(line) => bail!("unexpected: {}", message::excerpt(line)),
        Received::Closed(code) => bail!("the server closed it: {code}"),
    }
}

/// Opens a connection for each of these frames, `window` at a time, at its place in the swarm of `state`,
/// which `turn` lets do its work meanwhile. Gives the time from the first step to the last.
pub fn connect<S>(
    state: &mut S,
    frames: Vec<(usize, FirstFrame)>,
    window: usize,
    swarm: impl Fn(&mut S) -> &mut Swarm,
    mut turn: impl FnMut(&mut S) -> Result<()>,
) -> Result<Duration> {
    let goal = swarm(state).live + swarm(state).connecting + frames.len();
    let mut frames = frames.into_iter();
    let began = Instant::now();
    let mut progress = Progress::new(swarm(state).live);
    while swarm(state).live < goal {
        let opening = swarm(state);
        while opening.connecting < window
            && let Some((index, first)) = frames.next()
        {
            opening.begin(index, first)?;
        }
        turn(state)?;
        progress.check(swarm(state).live, |live| format!("{live} of {goal} are connected, then no more"))?;
    }
    Ok(began.elapsed())
}

impl FirstFrame {
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
