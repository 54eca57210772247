//! The connections: opened with a bounded number under way, then read as their sockets become
//! readable, pings answered on the way. Owns the epoll instance, and lends it to the publishers'
//! doors. A connection that the server closes, or that hears anything unexpected, fails the run.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use super::frame::{self, Kind};
use super::line::{self, Line};

/// Tokens from here on belong to others.
pub const FOREIGN: usize = 1 << 24;
/// Nothing at all heard for so long is a failure while something is expected.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Holds what a saturated socket has received at once.
const BUFFER: usize = 512 * 1024;
const EVENTS: usize = 1024;

/// The key of RFC 6455's example, and what a server must make of it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// See [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Commands in the first frame: connect and subscribe.
const COMMANDS: u32 = 2;

/// A set of connections to one server.
pub struct Swarm {
    poll: Poll,
    events: Option<Events>,
    buffer: Vec<u8>,
    address: SocketAddr,
    upgrade: Vec<u8>,
    members: Vec<Member>,
    live: usize,
}

struct Member {
    socket: TcpStream,
    stage: Stage,
    /// The beginning of a frame, or of the handshake's answer.
    rest: Vec<u8>,
}

enum Stage {
    /// Holds the first frame.
    Connecting(Vec<u8>),
    Upgrading(Vec<u8>),
    /// So many replies are owing.
    Joining(u32),
    Live,
}

impl Swarm {
    /// Nobody yet.
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
        })
    }

    /// Where others register their sockets, with tokens from [`FOREIGN`] on.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Opens a connection for each first frame, `window` at a time: TCP, upgrade, the frame, both
    /// replies. Gives the time from the first step to the last.
    pub fn open(&mut self, firsts: Vec<Vec<u8>>, window: usize) -> Result<Duration> {
        let goal = self.members.len() + firsts.len();
        let mut firsts = firsts.into_iter();
        let began = Instant::now();
        let mut progress = (self.live, began);
        while self.live < goal {
            while self.members.len() - self.live < window
                && let Some(first) = firsts.next()
            {
                self.begin(first)?;
            }
            self.turn(Duration::from_secs(1), &mut |_, _, _| Ok(()), &mut Vec::new())?;
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
            let mut hear = |_, number, _| bail!("message {number} came, and nobody published");
            self.turn(left, &mut hear, &mut Vec::new())?;
        }
    }

    fn begin(&mut self, first: Vec<u8>) -> Result<()> {
        let mut socket = TcpStream::connect(self.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry().register(&mut socket, Token(self.members.len()), interest)?;
        self.members.push(Member { socket, stage: Stage::Connecting(first), rest: Vec::new() });
        Ok(())
    }

    /// Waits for something to come, at most for `timeout`, and handles it. Publications go to `hear`
    /// with the connection's index and the time of reading; others' tokens to `foreign`.
    pub fn turn(
        &mut self,
        timeout: Duration,
        hear: &mut impl FnMut(usize, u32, Instant) -> Result<()>,
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
            let was_live = matches!(member.stage, Stage::Live);
            member
                .serve(&mut self.buffer, &self.upgrade, &mut |number, at| hear(index, number, at))
                .with_context(|| format!("connection {index}"))?;
            self.live += usize::from(!was_live && matches!(member.stage, Stage::Live));
        }
        self.events = Some(events);
        Ok(())
    }
}

impl Member {
    fn serve(
        &mut self,
        buffer: &mut [u8],
        upgrade: &[u8],
        hear: &mut impl FnMut(u32, Instant) -> Result<()>,
    ) -> Result<()> {
        if let Stage::Connecting(first) = &mut self.stage {
            if let Some(error) = self.socket.take_error()? {
                bail!("cannot connect: {error}");
            }
            self.socket.set_nodelay(true)?;
            self.stage = Stage::Upgrading(std::mem::take(first));
            return self.send(upgrade);
        }
        loop {
            let kept = self.rest.len();
            ensure!(kept < buffer.len(), "a frame of more than {kept} bytes");
            buffer[..kept].copy_from_slice(&self.rest);
            let read = match self.socket.read(&mut buffer[kept..]) {
                Ok(0) => bail!("the server closed it without a word"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading failed"),
            };
            let filled = kept + read;
            let used = self.take(&buffer[..filled], hear)?;
            self.rest.clear();
            self.rest.extend_from_slice(&buffer[used..filled]);
            // Less than there was room for: the socket is empty, and epoll reports what comes next.
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handles what is whole, and says how many bytes that was.
    fn take(&mut self, input: &[u8], hear: &mut impl FnMut(u32, Instant) -> Result<()>) -> Result<usize> {
        let now = Instant::now();
        let mut used = 0;
        if let Stage::Upgrading(first) = &mut self.stage {
            let Some(end) = memmem::find(input, b"\r\n\r\n") else { return Ok(0) };
            let answer = &input[..end + 4];
            let upgraded = answer.starts_with(b"HTTP/1.1 101 ")
                && memmem::find(answer, format!(": {ACCEPT}\r\n").as_bytes()).is_some();
            let status = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
            ensure!(upgraded, "the upgrade was answered {}", line::shown(status));
            let first = std::mem::take(first);
            self.stage = Stage::Joining(COMMANDS);
            self.send(&first)?;
            used = end + 4;
        }
        while let Some((kind, payload, length)) = frame::split(&input[used..])? {
            used += length;
            match kind {
                Kind::Text => {
                    for line in line::lines(payload) {
                        match line? {
                            Line::Publication(number) => hear(number, now)?,
                            Line::Ping => self.send(&frame::masked(Kind::Text, b"{}"))?,
                            Line::Other(line) => self.reply(line)?,
                        }
                    }
                }
                Kind::Ping => self.send(&frame::masked(Kind::Pong, payload))?,
                Kind::Close => {
                    let (code, reason) = payload.split_at_checked(2).unwrap_or((&[0, 0], b"no code"));
                    let code = u16::from_be_bytes([code[0], code[1]]);
                    bail!("the server closed it: {code} {}", line::shown(reason));
                }
                Kind::Binary | Kind::Pong => bail!("an unexpected frame, {kind:?}"),
            }
        }
        Ok(used)
    }

    fn reply(&mut self, line: &[u8]) -> Result<()> {
        let id = line::replied(line)?;
        let Stage::Joining(owing) = self.stage else { bail!("unexpected: {}", line::shown(line)) };
        ensure!(id == u64::from(COMMANDS - owing + 1), "out of turn: {}", line::shown(line));
        self.stage = if owing > 1 { Stage::Joining(owing - 1) } else { Stage::Live };
        Ok(())
    }

    /// All that a client says here is small and finds room in the socket.
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.socket.write(bytes).context("writing failed")?;
        ensure!(written == bytes.len(), "the server does not read");
        Ok(())
    }
}

/// The first frame: connect with the token, and subscribe.
pub fn first_frame(token: &str, channel: &str) -> Vec<u8> {
    let text = format!(
        "{{\"id\":1,\"connect\":{{\"token\":\"{token}\"}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}"
    );
    frame::masked(Kind::Text, text.as_bytes())
}
