//! HTTP/1.1 on a bare socket, for tests that kill the server: one connection, nothing sent again
//! by itself, and an answer that breaks off is an error. Event streams are read frame by frame.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

type Broken = std::io::Error;

/// A connection.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Wire {
    pub async fn to(address: SocketAddr) -> Result<Self, Broken> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends a request with these header lines (each with its end) and waits for the whole answer.
    pub async fn ask(&mut self, request: &str, headers: &str, body: &str) -> Result<Answer, Broken> {
        self.send(&text(request, headers, body)).await?;
        self.answer().await
    }

    /// Sends a piece of a request.
    pub async fn send(&mut self, text: &str) -> Result<(), Broken> {
        self.stream.write_all(text.as_bytes()).await
    }

    /// Waits for the whole answer.
    pub async fn answer(&mut self) -> Result<Answer, Broken> {
        timeout(PATIENCE, self.read_answer()).await.map_err(|_| broken("no answer"))?
    }

    async fn read_answer(&mut self) -> Result<Answer, Broken> {
        let (status, head) = self.head().await?;
        let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while self.input.len() < length {
            self.fill().await?;
        }
        let body = String::from_utf8_lossy(&self.input[..length]).into_owned();
        self.input.drain(..length);
        Ok(Answer { status, head, body })
    }

    /// Waits for the next head: status and lines.
    pub async fn head(&mut self) -> Result<(u16, String), Broken> {
        let end = loop {
            if let Some(end) = find(&self.input, b"\r\n\r\n") {
                break end;
            }
            self.fill().await?;
        };
        let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.ok_or_else(|| broken("no status"))?, head))
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(broken("the answer broke off")),
            _ => Ok(()),
        }
    }
}

impl Answer {
    /// A header's value; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// One frame of an event stream.
#[derive(Debug, Default)]
pub struct Frame {
    pub event: String,
    pub id: String,
    pub data: String,
}

/// An open event stream.
pub struct Frames {
    wire: Wire,
    text: Vec<u8>,
    ended: bool,
}

impl Frames {
    /// Opens `path` behind `cursor`; only a 200 will do.
    pub async fn open(address: SocketAddr, path: &str, token: &str, cursor: Option<&str>) -> Self {
        let mut wire = Wire::to(address).await.expect("the server accepts");
        let last = cursor.map(|cursor| format!("Last-Event-ID: {cursor}\r\n")).unwrap_or_default();
        let headers = format!("Authorization: Bearer {token}\r\n{last}");
        wire.send(&text(&format!("GET {path}"), &headers, "")).await.expect("the server reads");
        let opened = timeout(PATIENCE, wire.head()).await;
        let (status, head) = opened.expect("the stream opens in time").expect("the stream opens");
        assert_eq!(status, 200, "{head}");
        Self { wire, text: Vec::new(), ended: false }
    }

    /// The next frame, comments left out; `None` after a proper end, an error when it broke off.
    pub async fn next(&mut self) -> Result<Option<Frame>, Broken> {
        timeout(PATIENCE, self.read()).await.map_err(|_| broken("nothing came"))?
    }

    async fn read(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            while let Some(end) = find(&self.text, b"\n\n") {
                let text = String::from_utf8_lossy(&self.text[..end]).into_owned();
                self.text.drain(..end + 2);
                if !text.starts_with(':') {
                    return Ok(Some(Frame::parse(&text)));
                }
            }
            if self.ended {
                return Ok(None);
            }
            self.chunk().await?;
        }
    }

    /// Takes one chunk of the body (RFC 9112, section 7.1); the empty one is the last.
    async fn chunk(&mut self) -> Result<(), Broken> {
        let (start, length) = loop {
            if let Some(end) = find(&self.wire.input, b"\r\n") {
                let digits = String::from_utf8_lossy(&self.wire.input[..end]).into_owned();
                break (end + 2, usize::from_str_radix(&digits, 16).map_err(|_| broken("no chunk"))?);
            }
            self.wire.fill().await?;
        };
        while self.wire.input.len() < start + length + 2 {
            self.wire.fill().await?;
        }
        self.text.extend_from_slice(&self.wire.input[start..start + length]);
        self.wire.input.drain(..start + length + 2);
        self.ended = length == 0;
        Ok(())
    }
}

impl Frame {
    fn parse(text: &str) -> Self {
        let mut frame = Self::default();
        for line in text.lines() {
            match line.split_once(": ") {
                Some(("event", value)) => frame.event = value.to_owned(),
                Some(("id", value)) => frame.id = value.to_owned(),
                Some(("data", value)) => frame.data = value.to_owned(),
                _ => {}
            }
        }
        frame
    }
}

/// A whole request.
pub fn text(request: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn broken(what: &str) -> Broken {
    Broken::other(what.to_owned())
}
