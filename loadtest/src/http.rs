//! A small HTTP/1.1 client, cheap enough that the server is the bottleneck: one connection, one
//! request at a time, kept alive, no pool, no redirects. It writes requests as they are given and
//! never sends one again by itself, because only the pipeline knows whether that is safe.

pub mod blocking;
pub mod pipeline;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::target::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::framing::{Body, Head};

/// How long connecting, or one whole exchange, may take.
const DEADLINE: Duration = Duration::from_secs(30);
const READ_SIZE: usize = 16 * 1024;

/// A connection to the server, opened when it is needed.
pub struct Connection {
    target: Target,
    stream: Option<TcpStream>,
    input: Vec<u8>,
}

/// An answer whose body goes on: server-sent events.
pub struct Stream {
    connection: Connection,
    body: Body,
}

impl Connection {
    /// A connection that will go to `target`.
    pub fn to(target: &Target) -> Self {
        Self { target: target.clone(), stream: None, input: Vec::with_capacity(READ_SIZE) }
    }

    /// Connects, unless it is connected.
    pub async fn open(&mut self) -> Result<()> {
        if self.stream.is_none() {
            let stream = timeout(DEADLINE, TcpStream::connect(self.target.address))
                .await
                .context("connecting took too long")?
                .with_context(|| format!("cannot connect to {}", self.target.address))?;
            stream.set_nodelay(true)?;
            self.input.clear();
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a whole request; gives the status, and the whole body in `body`. After an error the
    /// connection is gone, and whether the server did what was asked is not known.
    pub async fn exchange(&mut self, request: &[u8], body: &mut Vec<u8>) -> Result<u16> {
        let outcome = match timeout(DEADLINE, self.exchange_once(request, body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {DEADLINE:?}")),
        };
        match outcome {
            Ok(head) => {
                if head.close {
                    self.stream = None;
                }
                Ok(head.status)
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    /// Sends a request and leaves the body to be read as it comes.
    pub async fn stream(mut self, request: &[u8]) -> Result<(u16, Stream)> {
        self.open().await?;
        let head = timeout(DEADLINE, self.begin(request)).await.context("no answer in time")??;
        Ok((head.status, Stream { connection: self, body: head.body }))
    }

    async fn exchange_once(&mut self, request: &[u8], body: &mut Vec<u8>) -> Result<Head> {
        body.clear();
        self.open().await?;
        let mut head = self.begin(request).await?;
        while self.more(&mut head.body, body).await? {}
        Ok(head)
    }

    /// Writes the request and reads the head of its answer, passing over interim ones.
    async fn begin(&mut self, request: &[u8]) -> Result<Head> {
        let stream = self.stream.as_mut().context("not connected")?;
        stream.write_all(request).await.context("the connection broke while sending")?;
        loop {
            if let Some((head, length)) = Head::parse(&self.input)? {
                self.input.drain(..length);
                if head.status >= 200 {
                    return Ok(head);
                }
            } else if self.fill().await? == 0 {
                bail!("the server closed the connection instead of answering");
            }
        }
    }

    /// Appends what has come of `body` to `out`, waiting for something; false after its end.
    async fn more(&mut self, body: &mut Body, out: &mut Vec<u8>) -> Result<bool> {
        if body.is_done() {
            return Ok(false);
        }
        if self.input.is_empty() && self.fill().await? == 0 {
            if *body == Body::UntilClose {
                return Ok(false);
            }
            bail!("the server closed the connection in the middle of an answer");
        }
        let used = body.take(&self.input, out)?;
        self.input.drain(..used);
        Ok(true)
    }

    async fn fill(&mut self) -> Result<usize> {
        let stream = self.stream.as_mut().context("not connected")?;
        self.input.reserve(READ_SIZE);
        stream.read_buf(&mut self.input).await.context("the connection broke while reading")
    }
}

impl Stream {
    /// Appends the next piece to `out`; false after the end. Waits as long as it takes.
    pub async fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        self.connection.more(&mut self.body, out).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A server that answers each connection's requests (of a head only) with these texts, piece by
    /// piece, and closes after the last.
    async fn server(connections: Vec<Vec<Vec<&'static str>>>) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::from(listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answers in connections {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                for pieces in answers {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"\r\n\r\n") {
                        assert_ne!(socket.read_buf(&mut seen).await.unwrap(), 0);
                    }
                    for piece in pieces {
                        socket.write_all(piece.as_bytes()).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        target
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn get(connection: &mut Connection) -> Result<(u16, String)> {
        let mut body = Vec::new();
        let status = connection.exchange(GET, &mut body).await?;
        Ok((status, String::from_utf8(body).unwrap()))
    }

    #[tokio::test]
    async fn one_connection_carries_many_exchanges() {
        let target = server(vec![vec![
            vec!["HTTP/1.1 202 Accepted\r\ncontent-le", "ngth: 5\r\n\r\nhel", "lo"],
            vec![
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
                "c\r\n0\r\n\r\n",
            ],
            vec!["HTTP/1.1 204 No Content\r\n\r\n"],
        ]])
        .await;
        let mut connection = Connection::to(&target);
        assert_eq!(get(&mut connection).await.unwrap(), (202, "hello".into()));
        assert_eq!(get(&mut connection).await.unwrap(), (200, "abc".into()));
        assert_eq!(get(&mut connection).await.unwrap(), (204, String::new()));
    }

    #[tokio::test]
    async fn a_broken_exchange_is_an_error_and_the_next_one_connects_again() {
        let target = server(vec![
            vec![vec!["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]],
            vec![vec!["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n1"]],
            vec![vec!["HTTP/1.1 200 OK\r\n\r\nup to ", "the close"]],
        ])
        .await;
        let mut connection = Connection::to(&target);
        assert!(get(&mut connection).await.is_err());
        assert_eq!(get(&mut connection).await.unwrap(), (200, "1".into()));
        assert_eq!(get(&mut connection).await.unwrap(), (200, "up to the close".into()));
    }

    #[tokio::test]
    async fn a_stream_gives_its_pieces_as_they_come() {
        let target = server(vec![vec![vec![
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "5\r\nfirst\r\n",
            "6\r\nsecond\r\n0\r\n\r\n",
        ]]])
        .await;
        let (status, mut stream) = Connection::to(&target).stream(GET).await.unwrap();
        assert_eq!(status, 200);
        let mut out = Vec::new();
        while stream.next(&mut out).await.unwrap() {}
        assert_eq!(out, b"firstsecond");
    }
}
