//! A publisher: one kept-alive connection to the server API that publishes one message at a time.
//! So many publishers, so many messages are under way. Any answer but a result fails the run.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::line::{self, DIGITS};
use crate::framing::Head;

/// The connection, and a request that only wants its number.
pub struct Door {
    socket: TcpStream,
    request: Vec<u8>,
    digits_at: usize,
    answer: Vec<u8>,
    busy: bool,
}

/// What all publishers of a run have in common.
pub struct Publishing<'a> {
    /// The server.
    pub address: SocketAddr,
    /// Its name.
    pub host: &'a str,
    /// For `X-API-Key`.
    pub api_key: &'a str,
    /// Where to.
    pub channel: &'a str,
    /// Bytes of the data.
    pub size: usize,
}

impl Door {
    /// Connects; a new connection to the loopback needs no waiting.
    pub fn open(publishing: &Publishing<'_>, registry: &Registry, token: Token) -> Result<Self> {
        let Publishing { address, host, api_key, channel, size } = publishing;
        let stream =
            std::net::TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(stream);
        registry.register(&mut socket, token, Interest::READABLE)?;

        let before = format!("{{\"channel\":\"{channel}\",\"data\":");
        let (data, digits_at) = line::data(0, *size);
        let mut request = format!(
            "POST /api/publish HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {api_key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{before}",
            before.len() + data.len() + 1
        )
        .into_bytes();
        let digits_at = request.len() + digits_at;
        request.extend_from_slice(&data);
        request.push(b'}');
        Ok(Self { socket, request, digits_at, answer: Vec::new(), busy: false })
    }

    /// An answer is owing.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Sends the message of this number.
    pub fn publish(&mut self, number: u32) -> Result<()> {
        ensure!(!self.busy, "one at a time");
        self.request[self.digits_at..][..DIGITS].copy_from_slice(&line::digits(number));
        let written = self.socket.write(&self.request).context("publishing failed")?;
        ensure!(written == self.request.len(), "the server does not read what is published");
        self.busy = true;
        Ok(())
    }

    /// Reads what has come of the answer.
    pub fn hear(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => bail!("the server closed a publisher's connection"),
                Ok(read) => self.answer.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("a publisher's connection broke"),
            }
            self.judge()?;
        }
    }

    fn judge(&mut self) -> Result<()> {
        let Some((mut head, length)) = Head::parse(&self.answer)? else { return Ok(()) };
        let mut body = Vec::new();
        head.body.take(&self.answer[length..], &mut body)?;
        if !head.body.is_done() {
            return Ok(());
        }
        let taken = head.status == 200 && memmem::find(&body, b"\"result\"").is_some();
        ensure!(taken && self.busy, "publishing was answered {} {}", head.status, line::shown(&body));
        ensure!(!head.close, "the server does not keep a publisher's connection");
        self.answer.clear();
        self.busy = false;
        Ok(())
    }
}
