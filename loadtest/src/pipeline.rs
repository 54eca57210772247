//! An HTTP client on an epoll loop: one kept-alive connection that writes requests as they are given and
//! cuts the answers out of what comes, in the order of the requests. Registers itself with the loop
//! of whoever drives it. A connection that is closed while an answer is outstanding is an error, and nothing
//! is ever sent again; one that was idle is opened anew when it is needed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use httparse::Status;
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// Holds the answers to many small requests.
pub const BUFFER: usize = 64 * 1024;
const NOT_MODIFIED: &[u8] = b"HTTP/1.1 304 ";
/// What a server may say to a connection on which nothing was asked.
const TOO_IDLE: u16 = 408;
const END: &[u8] = b"\r\n\r\n";

/// A server may close a connection that has been idle for longer, and a request could cross that: one
/// on which nothing was asked so far, and one that is kept alive.
const IDLE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(60));

pub struct Pipeline {
    address: SocketAddr,
    registry: Registry,
    token: Token,
    socket: TcpStream,
    /// Closed by the server while nothing was outstanding.
    closed: bool,
    /// Opened, or last asked.
    used: Instant,
    /// Something has been asked on it.
    asked: bool,
    /// The beginning of an answer.
    rest: Vec<u8>,
    /// What the socket had no room for.
    unsent: Vec<u8>,
    outstanding: usize,
}

#[derive(Debug)]
pub struct Answer<'a> {
    pub status: u16,
    /// The status line and the header fields.
    pub head: &'a [u8],
    pub body: &'a [u8],
}

impl Pipeline {
    pub fn open(address: SocketAddr, registry: &Registry, token: Token) -> Result<Self> {
        let registry = registry.try_clone()?;
        let socket = connect(address, &registry, token)?;
        let used = Instant::now();
        Ok(Self {
            address,
            registry,
            token,
            socket,
            closed: false,
            used,
            asked: false,
            rest: Vec::new(),
            unsent: Vec::new(),
            outstanding: 0,
        })
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Sends one or several whole requests; `count` is how many.
    pub fn send(&mut self, requests: &[u8], count: usize) -> Result<()> {
        if self.outstanding == 0 {
            let now = Instant::now();
            let idle = if self.asked { IDLE.1 } else { IDLE.0 };
            if self.closed || now - self.used > idle {
                // The old one leaves the loop when it is dropped.
                self.socket = connect(self.address, &self.registry, self.token)?;
                self.closed = false;
            }
            self.used = now;
            self.asked = true;
        }
        self.outstanding += count;
        if self.unsent.is_empty() {
            let written = write(&mut self.socket, requests)?;
            self.unsent.extend_from_slice(&requests[written..]);
        } else {
            self.unsent.extend_from_slice(requests);
        }
        Ok(())
    }

    /// Goes on after an event of this socket: writes what waits, and gives each answer to `each`.
    pub fn receive(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(Answer<'_>) -> Result<()>,
    ) -> Result<()> {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let written = write(&mut self.socket, &unsent)?;
            self.unsent.extend_from_slice(&unsent[written..]);
        }
        while !self.closed {
            let kept = self.rest.len();
            ensure!(kept < buffer.len(), "an answer of more than {kept} bytes");
            buffer[..kept].copy_from_slice(&self.rest);
            let filled = match self.socket.read(&mut buffer[kept..]) {
                Ok(0) if self.outstanding == 0 => {
                    self.closed = true;
                    break;
                }
                Ok(0) => bail!("the server closed a connection instead of answering"),
                Ok(read) => kept + read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("a connection broke"),
            };
            let mut used = 0;
            while let Some(length) = self.take(&buffer[used..filled], &mut each)? {
                used += length;
            }
            self.rest.clear();
            self.rest.extend_from_slice(&buffer[used..filled]);
            // Less than there was room for: the socket is empty, and epoll reports what comes next.
            if filled < buffer.len() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Handles the first answer if it is whole, and gives its length.
    fn take(
        &mut self,
        input: &[u8],
        each: &mut impl FnMut(Answer<'_>) -> Result<()>,
    ) -> Result<Option<usize>> {
        let answer = if input.starts_with(NOT_MODIFIED) {
            // A hundred thousand a second: they have no body, and their end is all there is to know.
            let Some(end) = memmem::find(input, END) else { return Ok(None) };
            let length = end + END.len();
            Whole { status: 304, closes: false, head: length, body: Vec::new(), length }
        } else {
            let Some(answer) = Whole::read(input)? else { return Ok(None) };
            if answer.status == TOO_IDLE && self.outstanding == 0 {
                self.closed = true;
                return Ok(Some(answer.length));
            }
            ensure!(!answer.closes, "the server does not keep the connection: {}", answer.status);
            answer
        };
        let Whole { status, head, body, length, .. } = answer;
        ensure!(self.outstanding > 0, "an answer {status} to nothing");
        self.outstanding -= 1;
        each(Answer { status, head: &input[..head], body: &body })?;
        Ok(Some(length))
    }
}

/// Writes until the socket has no room; epoll says when it has some again.
pub fn write(socket: &mut TcpStream, bytes: &[u8]) -> Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("a connection broke while sending"),
        }
    }
    Ok(written)
}

/// The first answer in what has come.
struct Whole {
    status: u16,
    /// The connection takes no further request.
    closes: bool,
    /// The length of its head.
    head: usize,
    body: Vec<u8>,
    /// The length of all of it.
    length: usize,
}

impl Whole {
    /// None until all of it has come.
    fn read(input: &[u8]) -> Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut fields);
        let Status::Complete(head) = answer.parse(input).context("this is not HTTP")? else {
            return Ok(None);
        };
        let status = answer.code.context("an answer without a status")?;
        let field = |name: &str| {
            let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let rest = &input[head..];
        let body = match (field("content-length"), field("transfer-encoding")) {
            _ if matches!(status, 204 | 304) => Some((Vec::new(), 0)),
            (_, Some(_)) => join_chunks(rest)?,
            (Some(length), None) => {
                let length = length.parse().with_context(|| format!("no length: {length:?}"))?;
                rest.get(..length).map(|body| (body.to_vec(), length))
            }
            (None, None) => bail!("an answer {status} without a length"),
        };
        Ok(body.map(|(body, length)| Self { status, closes, head, body, length: head + length }))
    }
}

/// The body of these chunks, and how long they are; none until the last one has come. Trailers, which no
/// server here sends, are an error.
fn join_chunks(input: &[u8]) -> Result<Option<(Vec<u8>, usize)>> {
    let (mut body, mut used) = (Vec::new(), 0);
    loop {
        let Ok(size) = httparse::parse_chunk_size(&input[used..]) else { bail!("a chunk without a size") };
        ensure!(!input[used..].starts_with(b"\r\n"), "a chunk without a size");
        let Status::Complete((start, size)) = size else { return Ok(None) };
        let (start, size) = (used + start, usize::try_from(size)?);
        let chunk = size.checked_add(2).and_then(|length| input[start..].get(..length));
        let Some(chunk) = chunk else { return Ok(None) };
        ensure!(chunk.ends_with(b"\r\n"), "a chunk is longer than its size");
        body.extend_from_slice(&chunk[..size]);
        used = start + chunk.len();
        if size == 0 {
            return Ok(Some((body, used)));
        }
    }
}

/// A new connection to the loopback needs no waiting.
fn connect(address: SocketAddr, registry: &Registry, token: Token) -> Result<TcpStream> {
    let stream =
        std::net::TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut socket = TcpStream::from_std(stream);
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(socket)
}

impl Answer<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(self.head).ok()?;
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};

    /// How these answers to this many requests are read.
    fn exchange(requests: &[u8], count: usize, pieces: &[&str]) -> Result<Vec<(u16, String)>> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut poll = Poll::new().unwrap();
        let mut pipeline = Pipeline::open(listener.local_addr().unwrap(), poll.registry(), Token(0)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        pipeline.send(requests, count).unwrap();
        let mut asked = vec![0; requests.len()];
        server.read_exact(&mut asked).unwrap();
        assert_eq!(asked, requests);

        let (mut events, mut buffer, mut answers) = (Events::with_capacity(4), vec![0; 1024], Vec::new());
        for piece in pieces {
            server.write_all(piece.as_bytes()).unwrap();
            poll.poll(&mut events, None).unwrap();
            pipeline.receive(&mut buffer, |answer| {
                answers.push((answer.status, String::from_utf8_lossy(answer.body).into_owned()));
                Ok(())
            })?;
        }
        Ok(answers)
    }

    #[test]
    fn answers_are_cut_out_of_what_comes() {
        let answers = exchange(
            b"GET /a\r\n\r\nGET /b\r\n\r\nGET /c\r\n\r\n",
            3,
            &[
                "HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-le",
                "ngth: 2\r\n\r\nhiHTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
                "0\r\n\r\n",
            ],
        );
        assert_eq!(answers.unwrap(), [(304, String::new()), (200, "hi".into()), (202, "a".into())]);
    }

    #[test]
    fn what_was_not_asked_for_is_an_error() {
        let twice = "HTTP/1.1 304 N\r\n\r\nHTTP/1.1 304 N\r\n\r\n";
        assert!(exchange(b"GET /a\r\n\r\n", 1, &[twice]).is_err());
        assert!(
            exchange(
                b"GET /a\r\n\r\n",
                1,
                &["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"]
            )
            .is_err()
        );
    }

    #[test]
    fn chunks_are_joined_wherever_they_were_cut_and_what_is_none_is_an_error() {
        let chunks = b"4\r\nWiki\r\nA;name=v\r\npedia in\r\n\r\n0\r\n\r\nHTTP";
        let end = chunks.len() - b"HTTP".len();
        for cut in 0..end {
            assert_eq!(join_chunks(&chunks[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(join_chunks(chunks).unwrap(), Some((b"Wikipedia in\r\n".to_vec(), end)));
        for bad in ["x\r\n", "\r\n", "1\r\nabc", "fffffffffffffffff\r\n"] {
            assert!(join_chunks(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_head_may_come_in_pieces_but_must_be_one() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
        for cut in 0..text.len() {
            assert!(Whole::read(&text[..cut]).unwrap().is_none(), "{cut}");
        }
        let none = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n";
        assert!(Whole::read(none).unwrap().is_some_and(|answer| answer.body.is_empty()));
        for bad in
            ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"]
        {
            assert!(Whole::read(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_connection_that_was_idle_is_opened_anew() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut poll = Poll::new().unwrap();
        let mut pipeline = Pipeline::open(listener.local_addr().unwrap(), poll.registry(), Token(0)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let idle = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        server.write_all(idle.as_bytes()).unwrap();
        drop(server);
        let mut events = Events::with_capacity(4);
        while !pipeline.closed {
            poll.poll(&mut events, None).unwrap();
            pipeline.receive(&mut [0; 1024], |answer| bail!("{answer:?}")).unwrap();
        }
        pipeline.send(b"GET /a\r\n\r\n", 1).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut asked = [0; 10];
        server.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"GET /a\r\n\r\n");
        drop(server);
        poll.poll(&mut events, None).unwrap();
        assert!(pipeline.receive(&mut [0; 1024], |_| Ok(())).is_err(), "an answer was outstanding");
    }

    #[test]
    fn a_header_is_found_whatever_its_case() {
        let answer = Answer { status: 200, head: b"HTTP/1.1 200 OK\r\nETag:  \"a\" \r\n\r\n", body: b"" };
        assert_eq!((answer.header("etag"), answer.header("date")), (Some("\"a\""), None));
    }
}
