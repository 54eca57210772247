//! The floor: what the kernel charges for a delivery, and no server can be below. An epoll loop that
//! takes the WebSocket handshake, sends prepared answers to connect and subscribe, and writes one prepared
//! buffer to every socket, merging the messages that wait. A poll gets the last message, or a 304
//! that is prepared too; a webhook is made durable and answered, see `journal`. No tokens, no positions, no
//! limits. It runs as a process of its own, a hidden subcommand of this tool, and ends with its
//! standard input.

mod journal;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

use crate::pipeline::write;
use crate::ws::frame;
use crate::ws::swarm::{ACCEPT, KEY};
use journal::Journal;

const LISTENER: Token = Token(usize::MAX - 1);
/// At most so much in one write, as in the gateway.
const MERGED: usize = 64 * 1024;
/// A socket that leaves more than this unread is closed.
const BACKLOG: usize = 4 * 1024 * 1024;
/// The longest request or frame: who follows many channels asks for all of them in one.
const LONGEST: usize = 1024 * 1024;
const POLL: &[u8] = b"GET /api/events?";
const COMMAND: &[u8] = b"{\"id\":";
/// What stands before the name of the channel, which is known here with its quotes.
const SUBSCRIBE: &[u8] = b"\"subscribe\":{\"channel\":";

/// Serves on a free port, which it prints, until its standard input ends.
pub fn run() -> Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let mut floor = Floor::bind("127.0.0.1:0".parse()?)?;
    println!("{}", floor.listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        floor.turn()?;
    }
}

struct Floor {
    poll: Poll,
    events: Option<Events>,
    listener: TcpListener,
    clients: Vec<Option<Client>>,
    vacant: Vec<usize>,
    /// By name, with its quotes.
    numbers: HashMap<Vec<u8>, usize>,
    channels: Vec<Channel>,
    /// The channels with something pending.
    touched: Vec<usize>,
    published: u64,
    journal: Journal,
    /// The data of the last message.
    last: Vec<u8>,
    /// Made when somebody polls.
    polled: Option<Polled>,
    buffer: Vec<u8>,
}

struct Polled {
    tag: Vec<u8>,
    /// For those that have this tag.
    nothing: Vec<u8>,
    /// Their place, as they write it.
    place: Vec<u8>,
    /// For those that are at this place without knowing the tag.
    empty: Vec<u8>,
    /// For all others.
    last: Vec<u8>,
}

/// The subscribers of a channel.
#[derive(Default)]
struct Channel {
    subscribers: Vec<usize>,
    /// Frames to write to every one of them at the end of the turn.
    pending: Vec<u8>,
}

struct Client {
    socket: TcpStream,
    upgraded: bool,
    /// Its channels, and its place in each.
    subscriptions: Vec<(usize, usize)>,
    /// The beginning of a request or frame, or what the socket had no room for.
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Publish<'a> {
    channel: &'a [u8],
    data: &'a [u8],
}

impl Floor {
    fn bind(address: SocketAddr) -> Result<Self> {
        let mut listener = TcpListener::bind(address)?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            events: Some(Events::with_capacity(1024)),
            listener,
            clients: Vec::new(),
            vacant: Vec::new(),
            numbers: HashMap::new(),
            channels: Vec::new(),
            touched: Vec::new(),
            published: 0,
            journal: Journal::default(),
            last: Vec::new(),
            polled: None,
            buffer: vec![0; LONGEST],
        })
    }

    fn turn(&mut self) -> Result<()> {
        let mut events = self.events.take().context("a turn within a turn")?;
        match self.poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                LISTENER => self.accept()?,
                Token(index) => {
                    if event.is_writable() {
                        self.with(index, |_, client| client.flush());
                    }
                    if event.is_readable() {
                        self.with(index, |floor, client| floor.read(index, client));
                    }
                }
            }
        }
        self.events = Some(events);
        self.write_pending();
        self.commit()
    }

    /// Makes durable what was posted in this turn, in one go, and only then answers.
    fn commit(&mut self) -> Result<()> {
        for (index, bytes) in self.journal.commit()? {
            self.with(index, |_, client| client.send(&bytes));
        }
        Ok(())
    }

    /// Does something with a client, which is gone if it fails.
    fn with(&mut self, index: usize, act: impl FnOnce(&mut Self, &mut Client) -> Result<()>) {
        let Some(mut client) = self.clients[index].take() else { return };
        if act(self, &mut client).is_ok() {
            self.clients[index] = Some(client);
        } else {
            for (number, place) in client.subscriptions {
                self.leave(number, place);
            }
            self.vacant.push(index);
        }
    }

    /// The last one takes the place, because ten thousand may leave at once.
    fn leave(&mut self, number: usize, place: usize) {
        let subscribers = &mut self.channels[number].subscribers;
        subscribers.swap_remove(place);
        let moved = subscribers.get(place).and_then(|moved| self.clients[*moved].as_mut());
        let subscription =
            moved.and_then(|client| client.subscriptions.iter_mut().find(|(of, _)| *of == number));
        if let Some(subscription) = subscription {
            subscription.1 = place;
        }
    }

    fn number_of(&mut self, channel: &[u8]) -> usize {
        if let Some(known) = self.numbers.get(channel) {
            return *known;
        }
        self.channels.push(Channel::default());
        self.numbers.insert(channel.to_owned(), self.channels.len() - 1);
        self.channels.len() - 1
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accepting failed"),
            };
            socket.set_nodelay(true)?;
            let index = self.vacant.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            register(self.poll.registry(), &mut socket, index)?;
            let client = Client {
                socket,
                upgraded: false,
                subscriptions: Vec::new(),
                input: Vec::new(),
                output: Vec::new(),
            };
            self.clients[index] = Some(client);
        }
    }

    fn read(&mut self, index: usize, client: &mut Client) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.read_into(index, client, &mut buffer);
        self.buffer = buffer;
        outcome
    }

    fn read_into(&mut self, index: usize, client: &mut Client, buffer: &mut [u8]) -> Result<()> {
        loop {
            let kept = client.input.len();
            ensure!(kept < buffer.len(), "too long");
            buffer[..kept].copy_from_slice(&client.input);
            let filled = match client.socket.read(&mut buffer[kept..]) {
                Ok(0) => anyhow::bail!("closed"),
                Ok(read) => kept + read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut used = 0;
            while let Some(length) = self.take(index, client, &buffer[used..filled])? {
                used += length;
            }
            // An idle client holds no buffer.
            client.input = buffer[used..filled].to_vec();
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handles one request or frame, and gives its length.
    fn take(&mut self, index: usize, client: &mut Client, input: &[u8]) -> Result<Option<usize>> {
        if client.upgraded {
            let Some((opcode, payload, length)) = frame::unmask(input)? else { return Ok(None) };
            ensure!(opcode == 1, "no text");
            // Anything else is a pong.
            if payload.starts_with(COMMAND) {
                let mut answers = Vec::new();
                for command in payload.split(|byte| *byte == b'\n') {
                    self.command(index, client, command, &mut answers)?;
                }
                let mut frame = Vec::new();
                frame::put_text_head(answers.len(), &mut frame);
                frame.extend_from_slice(&answers);
                client.send(&frame)?;
            }
            return Ok(Some(length));
        }
        let Some(head) = memmem::find(input, b"\r\n\r\n").map(|end| end + 4) else { return Ok(None) };
        if input.starts_with(b"GET /connection/websocket ") {
            ensure!(memmem::find(&input[..head], KEY.as_bytes()).is_some(), "only this tool's own key");
            client.upgraded = true;
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            );
            client.send(answer.as_bytes())?;
            return Ok(Some(head));
        }
        if input.starts_with(b"GET /api/events/stream?") {
            self.journal.listen(index);
            client.send(journal::STREAM)?;
            return Ok(Some(head));
        }
        if input.starts_with(POLL) {
            let polled = self.polled.get_or_insert_with(|| Polled::of(self.published, &self.last));
            client.send(polled.answer(&input[..head]))?;
            return Ok(Some(head));
        }
        let length = head + content_length(&input[..head]).unwrap_or(0);
        let Some(body) = input.get(head..length) else { return Ok(None) };
        if input.starts_with(b"POST /api/publish ") {
            self.publish(Publish::read(body).context("no publish")?);
            let result = format!("{{\"result\":{{\"offset\":{}}}}}", self.published);
            client.send(&ok(&result))?;
        } else if input.starts_with(b"POST /webhooks/github ") {
            self.journal.post(index, body)?;
        } else {
            client.send(&ok("{}"))?;
        }
        Ok(Some(length))
    }

    fn command(
        &mut self,
        index: usize,
        client: &mut Client,
        command: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        const CONNECTED: &[u8] =
            b",\"connect\":{\"client\":\"00000000-0000-4000-8000-000000000000\",\"version\":\"floor\"}}";
        const JOINED: &[u8] = b",\"subscribe\":{\"recoverable\":true,\"positioned\":true,\"epoch\":\"f\"}}";
        let digits = command.get(COMMAND.len()..).context("no command")?;
        let digits = digits.split(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
        if !out.is_empty() {
            out.push(b'\n');
        }
        out.extend_from_slice(COMMAND);
        out.extend_from_slice(digits);
        let Some(at) = memmem::find(command, SUBSCRIBE) else {
            out.extend_from_slice(CONNECTED);
            return Ok(());
        };
        out.extend_from_slice(JOINED);
        let channel = &command[at + SUBSCRIBE.len()..];
        let length = channel.iter().skip(1).position(|byte| *byte == b'"').context("no channel")? + 2;
        let number = self.number_of(&channel[..length]);
        let subscribers = &mut self.channels[number].subscribers;
        client.subscriptions.push((number, subscribers.len()));
        subscribers.push(index);
        Ok(())
    }

    /// Prepares the frame, as the gateway writes one with a position, and leaves it for the end of
    /// the turn.
    fn publish(&mut self, Publish { channel, data }: Publish<'_>) {
        self.published += 1;
        self.last.clear();
        self.last.extend_from_slice(data);
        self.polled = None;
        let offset = self.published.to_string();
        let parts: [&[u8]; 7] = [
            b"{\"push\":{\"channel\":",
            channel,
            b",\"pub\":{\"data\":",
            data,
            b",\"offset\":",
            offset.as_bytes(),
            b"}}}",
        ];
        let length = parts.iter().map(|part| part.len()).sum();
        let number = self.number_of(channel);
        if self.channels[number].pending.len() + length + 10 > MERGED {
            self.write_to(number);
        }
        let pending = &mut self.channels[number].pending;
        if pending.is_empty() {
            self.touched.push(number);
        }
        frame::put_text_head(length, pending);
        parts.iter().for_each(|part| pending.extend_from_slice(part));
    }

    fn write_pending(&mut self) {
        while let Some(number) = self.touched.pop() {
            self.write_to(number);
        }
    }

    fn write_to(&mut self, number: usize) {
        let Channel { subscribers, pending } = &mut self.channels[number];
        if pending.is_empty() {
            return;
        }
        let mut failed = Vec::new();
        for index in subscribers.iter() {
            // A client that publishes in this very moment is no subscriber.
            let Some(client) = &mut self.clients[*index] else { continue };
            if client.send(pending).is_err() {
                failed.push(*index);
            }
        }
        pending.clear();
        for index in failed {
            self.with(index, |_, _| anyhow::bail!("gone"));
        }
    }
}

impl Polled {
    /// Everything is written beforehand, with the header fields that the gateway has too.
    fn of(published: u64, data: &[u8]) -> Self {
        let tag = format!("\"{published:024x}\"");
        let rest = format!(
            "RateLimit-Limit: 1000000\r\nRateLimit-Remaining: 1000000\r\nRateLimit-Reset: 1\r\n\
             ETag: {tag}\r\nCache-Control: private, max-age=0\r\nVary: Authorization, Cookie\r\n\
             Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
        );
        let page = |events: &str| {
            let body = format!("{{\"events\":[{events}],\"cursor\":\"f.{published}\",\"hasNext\":false}}");
            let length = body.len();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{rest}{body}").into_bytes()
        };
        let data = String::from_utf8_lossy(data);
        let event = format!("{{\"offset\":{published},\"data\":{data}}}");
        Self {
            nothing: format!("HTTP/1.1 304 Not Modified\r\n{rest}").into_bytes(),
            place: format!("cursor=f.{published} ").into_bytes(),
            empty: page(""),
            last: page(if published > 0 { &event } else { "" }),
            tag: tag.into_bytes(),
        }
    }

    fn answer(&self, head: &[u8]) -> &[u8] {
        if memmem::find(head, &self.tag).is_some() {
            &self.nothing
        } else if memmem::find(head, &self.place).is_some() {
            &self.empty
        } else {
            &self.last
        }
    }
}

impl Client {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let written = if self.output.is_empty() { write(&mut self.socket, bytes)? } else { 0 };
        ensure!(self.output.len() + bytes.len() - written <= BACKLOG, "does not read");
        self.output.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.output.is_empty() {
            let written = write(&mut self.socket, &self.output)?;
            self.output.drain(..written);
            if self.output.is_empty() {
                self.output = Vec::new();
            }
        }
        Ok(())
    }
}

impl<'a> Publish<'a> {
    /// Knows the one layout that the publishers here write.
    fn read(body: &'a [u8]) -> Option<Self> {
        let rest = body.strip_prefix(b"{\"channel\":")?;
        let (channel, rest) = rest.split_at(memmem::find(rest, b",\"data\":")?);
        Some(Self { channel, data: rest.strip_prefix(b",\"data\":")?.strip_suffix(b"}")? })
    }
}

fn register(registry: &Registry, socket: &mut TcpStream, index: usize) -> Result<()> {
    Ok(registry.register(socket, Token(index), Interest::READABLE | Interest::WRITABLE)?)
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn content_length(head: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(head).ok()?;
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}
