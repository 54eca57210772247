//! Publishers: kept-alive connections to the server API that publish one message at a time each. There
//! are as many messages under way as there are publishers. Any answer but a result fails the run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use memchr::memmem;
use mio::{Registry, Token};
use serde_json::json;

use super::message::{self, DIGITS};
use super::swarm::{OTHER_TOKENS, Received, Swarm};
use crate::pipeline::Pipeline;

/// An answer is short.
const BUFFER: usize = 4096;

/// What all publishers of a run have in common.
pub struct Options<'a> {
    pub address: SocketAddr,
    pub host: &'a str,
    pub api_key: &'a str,
    /// The channel to publish to, until another one is set.
    pub channel: &'a str,
    /// Bytes of the data.
    pub size: usize,
}

/// One connection, and a request in which only the number changes.
pub struct Publisher {
    pipeline: Pipeline,
    host: String,
    api_key: String,
    size: usize,
    channel: String,
    request: Vec<u8>,
    digits_at: usize,
}

impl Publisher {
    /// Connects; on the loopback that needs no waiting.
    pub fn open(options: &Options<'_>, registry: &Registry, token: Token) -> Result<Self> {
        let Options { address, host, api_key, channel, size } = *options;
        let mut publisher = Self {
            pipeline: Pipeline::open(address, registry, token)?,
            host: host.to_owned(),
            api_key: api_key.to_owned(),
            size,
            channel: String::new(),
            request: Vec::new(),
            digits_at: 0,
        };
        publisher.set_channel(channel);
        Ok(publisher)
    }

    /// Publishes to this channel from now on.
    pub fn set_channel(&mut self, channel: &str) {
        if self.channel == channel {
            return;
        }
        channel.clone_into(&mut self.channel);
        let (body, digits_at) = body(channel, self.size);
        self.request = format!(
            "POST /api/publish HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.host,
            self.api_key,
            body.len()
        )
        .into_bytes();
        self.digits_at = self.request.len() + digits_at;
        self.request.extend_from_slice(&body);
    }

    /// An answer is outstanding.
    pub fn is_busy(&self) -> bool {
        self.pipeline.outstanding() > 0
    }

    /// Sends the message with this number.
    pub fn publish(&mut self, number: u32) -> Result<()> {
        ensure!(!self.is_busy(), "a publisher has one message under way at a time");
        self.request[self.digits_at..][..DIGITS].copy_from_slice(&message::digits(number));
        self.pipeline.send(&self.request, 1)
    }

    /// Reads what has arrived of the answer.
    pub fn receive(&mut self) -> Result<()> {
        self.pipeline.receive(&mut [0; BUFFER], |answer| {
            let accepted = answer.status == 200 && memmem::find(answer.body, b"\"result\"").is_some();
            let body = message::excerpt(answer.body);
            ensure!(accepted, "publishing was answered {} {body}", answer.status);
            Ok(())
        })
    }
}

/// The body of a request, and where the digits of its number start.
fn body(channel: &str, size: usize) -> (Vec<u8>, usize) {
    let mut body = format!("{{\"channel\":{},\"data\":", json!(channel)).into_bytes();
    let (data, digits_at) = message::data(0, size);
    let digits_at = body.len() + digits_at;
    body.extend_from_slice(&data);
    body.push(b'}');
    (body, digits_at)
}

/// Publishers that share the event loop of a swarm.
pub struct Publishers {
    all: Vec<Publisher>,
    ready: Vec<Token>,
}

impl Publishers {
    pub fn open(options: &Options<'_>, swarm: &Swarm, count: usize) -> Result<Self> {
        let open = |index| Publisher::open(options, swarm.registry(), Token(OTHER_TOKENS + index));
        Ok(Self { all: (0..count).map(open).collect::<Result<_>>()?, ready: Vec::new() })
    }

    /// Those without a message under way, by their number.
    pub fn idle(&mut self) -> impl Iterator<Item = (usize, &mut Publisher)> {
        self.all.iter_mut().enumerate().filter(|(_, publisher)| !publisher.is_busy())
    }

    pub fn outstanding(&self) -> usize {
        self.all.iter().filter(|publisher| publisher.is_busy()).count()
    }

    /// Waits for something to arrive for the swarm or for a publisher, at most for `timeout`.
    pub fn poll(
        &mut self,
        swarm: &mut Swarm,
        timeout: Duration,
        on_received: &mut impl FnMut(usize, Received<'_>, Instant) -> Result<()>,
    ) -> Result<()> {
        swarm.poll(timeout, on_received, &mut self.ready)?;
        for Token(token) in self.ready.drain(..) {
            self.all[token - OTHER_TOKENS].receive()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_channels_are_quoted() {
        let (body, digits_at) = body("a\"b", 0);
        assert!(body.starts_with(b"{\"channel\":\"a\\\"b\",\"data\":{"), "{body:?}");
        assert_eq!(body[digits_at..][..DIGITS], [b'0'; DIGITS]);
    }
}
