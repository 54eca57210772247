//! A publisher: one kept-alive connection to the server API that publishes one message at a time.
//! So many publishers, so many messages are under way. Any answer but a result fails the run.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mio::{Registry, Token};

use super::dialect::Dialect;
use super::line::{self, DIGITS};
use crate::http::caller::Caller;

/// An answer is short.
const BUFFER: usize = 4096;

/// The connection, and a request that only wants its number.
pub struct Door {
    caller: Caller,
    host: String,
    api_key: String,
    size: usize,
    dialect: Dialect,
    channel: String,
    request: Vec<u8>,
    digits_at: usize,
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
    /// What the server speaks.
    pub dialect: Dialect,
}

impl Door {
    /// Connects; a new connection to the loopback needs no waiting.
    pub fn open(publishing: &Publishing<'_>, registry: &Registry, token: Token) -> Result<Self> {
        let Publishing { address, host, api_key, channel, size, dialect } = *publishing;
        let mut door = Self {
            caller: Caller::open(address, registry, token)?,
            host: host.to_owned(),
            api_key: api_key.to_owned(),
            size,
            dialect,
            channel: String::new(),
            request: Vec::new(),
            digits_at: 0,
        };
        door.aim(channel);
        Ok(door)
    }

    /// Publishes to this channel from now on.
    pub fn aim(&mut self, channel: &str) {
        if self.channel == channel {
            return;
        }
        channel.clone_into(&mut self.channel);
        let (path, before, after) = self.dialect.publication(channel);
        let (data, digits_at) = line::data(0, self.size);
        self.request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{before}",
            self.host,
            self.api_key,
            before.len() + data.len() + after.len()
        )
        .into_bytes();
        self.digits_at = self.request.len() + digits_at;
        self.request.extend_from_slice(&data);
        self.request.extend_from_slice(after.as_bytes());
    }

    /// An answer is owing.
    pub fn is_busy(&self) -> bool {
        self.caller.owing() > 0
    }

    /// Sends the message of this number.
    pub fn publish(&mut self, number: u32) -> Result<()> {
        ensure!(!self.is_busy(), "one at a time");
        self.request[self.digits_at..][..DIGITS].copy_from_slice(&line::digits(number));
        self.caller.ask(&self.request, 1)
    }

    /// Reads what has come of the answer.
    pub fn hear(&mut self) -> Result<()> {
        let dialect = self.dialect;
        self.caller.hear(&mut [0; BUFFER], |answer| {
            let taken = dialect.took(answer.status, answer.body);
            ensure!(taken, "publishing was answered {} {}", answer.status, line::shown(answer.body));
            Ok(())
        })
    }
}
