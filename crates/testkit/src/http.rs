//! A small HTTP/1.1 client: one connection, one request at a time, kept alive. It never sends a request
//! again by itself, because only the caller knows whether that is safe.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap};
use hyper::http::request::Builder;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long connecting, or one whole exchange, may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A request with its whole body.
pub type Request = hyper::Request<Full<Bytes>>;
/// An answer whose body is read as it comes.
pub type Stream = hyper::Response<Incoming>;

/// Begins a `GET` of a path with its query.
pub fn get(path: &str) -> Builder {
    hyper::Request::get(path).header(HOST, "localhost")
}

/// Begins a `POST`.
pub fn post(path: &str) -> Builder {
    hyper::Request::post(path).header(HOST, "localhost")
}

/// What completes a request.
pub trait RequestBuilder {
    /// With this token.
    fn bearer(self, token: &str) -> Self;
    /// With this body, which may be empty.
    fn with(self, body: impl Into<Bytes>) -> Request;
    /// With JSON as the body.
    fn json(self, body: &Value) -> Request;
}

impl RequestBuilder for Builder {
    fn bearer(self, token: &str) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    fn with(self, body: impl Into<Bytes>) -> Request {
        self.body(Full::new(body.into())).expect("a path and headers that HTTP can carry")
    }

    fn json(self, body: &Value) -> Request {
        self.header(CONTENT_TYPE, "application/json").with(body.to_string())
    }
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The beginning of the body, for messages.
    pub fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.body[..self.body.len().min(300)]).into_owned()
    }

    /// Reads an answer to its end.
    pub async fn read(answer: Stream) -> Result<Self> {
        let (head, body) = answer.into_parts();
        let body = body.collect().await.context("the answer broke off")?.to_bytes();
        Ok(Self { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// A connection to a server, opened when it is needed.
pub struct Client {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// One that will connect to `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// One that is connected.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let sender = timeout(DEADLINE, connect(address)).await.context("connecting took too long")??;
        Ok(Self { address, sender: Some(sender) })
    }

    /// Sends a request and reads its answer. After an error the connection is gone, and whether the
    /// server did what was asked is not known.
    pub async fn send(&mut self, request: Request) -> Result<Answer> {
        let exchange = async { Answer::read(self.begin(request).await?).await };
        let answer = timeout(DEADLINE, exchange).await.context("no answer in time").flatten();
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn begin(&mut self, request: Request) -> Result<Stream> {
        // The server may have closed the connection after its last answer.
        if let Some(sender) = &mut self.sender
            && sender.ready().await.is_err()
        {
            self.sender = None;
        }
        let sender = match &mut self.sender {
            Some(sender) => sender,
            none => none.insert(connect(self.address).await?),
        };
        sender.send_request(request).await.context("the connection broke")
    }
}

/// Sends a request on a connection of its own and reads the answer.
pub async fn send(address: SocketAddr, request: Request) -> Result<Answer> {
    Client::new(address).send(request).await
}

/// Sends a request on a connection of its own and leaves the body to be read as it comes.
pub async fn open(address: SocketAddr, request: Request) -> Result<Stream> {
    let opening = async { Client::new(address).begin(request).await };
    timeout(DEADLINE, opening).await.context("no answer in time")?
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server that answers each connection's requests (of a head only) with these texts, piece by
    /// piece, and closes after the last.
    async fn server(connections: Vec<Vec<Vec<&'static str>>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
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
        address
    }

    async fn ask(client: &mut Client) -> Result<(u16, String)> {
        let answer = client.send(get("/").with("")).await?;
        Ok((answer.status, answer.excerpt()))
    }

    #[tokio::test]
    async fn one_connection_carries_many_exchanges() {
        let address = server(vec![vec![
            vec!["HTTP/1.1 202 Accepted\r\ncontent-le", "ngth: 5\r\n\r\nhel", "lo"],
            vec![
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
                "c\r\n0\r\n\r\n",
            ],
            vec!["HTTP/1.1 204 No Content\r\n\r\n"],
        ]])
        .await;
        let mut client = Client::new(address);
        assert_eq!(ask(&mut client).await.unwrap(), (202, "hello".into()));
        assert_eq!(ask(&mut client).await.unwrap(), (200, "abc".into()));
        assert_eq!(ask(&mut client).await.unwrap(), (204, String::new()));
    }

    #[tokio::test]
    async fn a_broken_exchange_is_an_error_and_the_next_one_connects_again() {
        let address = server(vec![
            vec![vec!["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]],
            vec![vec!["HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n1"]],
            vec![vec!["HTTP/1.1 200 OK\r\n\r\nup to ", "the close"]],
        ])
        .await;
        let mut client = Client::new(address);
        assert!(ask(&mut client).await.is_err());
        assert_eq!(ask(&mut client).await.unwrap(), (200, "1".into()));
        assert_eq!(ask(&mut client).await.unwrap(), (200, "up to the close".into()));
    }
}
