//! A reader of an event stream that never sleeps: every wait ends with a frame, with the end of
//! the stream, or with a failed test at the deadline.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Answer, DEADLINE, Request, read_answer, unchunk};

/// One frame of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub event: Option<String>,
    pub id: Option<String>,
    pub data: Option<String>,
    pub retry: Option<u32>,
    pub comment: bool,
}

impl Frame {
    fn parse(text: &str) -> Self {
        let mut frame = Self::default();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => frame.comment = true,
                "event" => frame.event = Some(value),
                "id" => frame.id = Some(value),
                "retry" => frame.retry = value.parse().ok(),
                "data" => {
                    assert_eq!(frame.data, None, "data is one line: {text}");
                    frame.data = Some(value);
                }
                _ => panic!("no field of an event stream: {line}"),
            }
        }
        frame
    }

    pub fn name(&self) -> &str {
        self.event.as_deref().unwrap_or_default()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.data.as_deref().expect("a frame with data")).expect("data is JSON")
    }

    /// The run that a `workflow:…` event is about: how tests number their events.
    #[track_caller]
    pub fn run(&self) -> u64 {
        self.json()["data"]["runId"].as_u64().unwrap_or_else(|| panic!("no run in {self:?}"))
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    pub head: Answer,
    raw: Vec<u8>,
    text: Vec<u8>,
    over: bool,
    /// The cursor behind everything that was read.
    pub last_id: Option<String>,
}

impl Stream {
    /// Opens a stream, or answers the refusal.
    pub async fn open(address: SocketAddr, request: &Request) -> Result<Self, Answer> {
        let opening = Self::try_open(address, request);
        let opened = tokio::time::timeout(DEADLINE, opening).await.expect("a head within the deadline");
        opened.expect("the server answers")
    }

    /// `None`: nobody answers.
    pub async fn try_open(address: SocketAddr, request: &Request) -> Option<Result<Self, Answer>> {
        let mut socket = TcpStream::connect(address).await.ok()?;
        socket.write_all(&request.bytes()).await.ok()?;
        Self::begin(socket).await
    }

    /// Reads on where somebody else has sent the request.
    pub async fn over(socket: TcpStream) -> Self {
        Self::begin(socket).await.expect("an answer").expect("a stream")
    }

    async fn begin(mut socket: TcpStream) -> Option<Result<Self, Answer>> {
        let mut raw = Vec::new();
        let (head, length) = loop {
            if let Some(found) = Answer::parse_head(&raw) {
                break found;
            }
            if socket.read_buf(&mut raw).await.ok()? == 0 {
                return None;
            }
        };
        if head.status != 200 {
            read_answer(&mut socket, &mut raw).await;
            return Some(Err(Answer { body: raw[length..].to_vec(), ..head }));
        }
        raw.drain(..length);
        Some(Ok(Self { socket, head, raw, text: Vec::new(), over: false, last_id: None }))
    }

    /// The next frame of any kind; `None` when the stream has ended or was cut.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = self.next_unbounded();
        tokio::time::timeout(DEADLINE, next).await.expect("a frame, or the end, within the deadline")
    }

    async fn next_unbounded(&mut self) -> Option<Frame> {
        loop {
            if let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let text = String::from_utf8(self.text.drain(..end + 2).collect()).expect("UTF-8");
                let frame = Frame::parse(text.trim_end_matches('\n'));
                if frame.id.is_some() {
                    self.last_id.clone_from(&frame.id);
                }
                return Some(frame);
            }
            let (bytes, taken, end) = unchunk(&self.raw);
            self.raw.drain(..taken);
            self.text.extend(bytes);
            self.over |= end;
            if taken > 0 {
                continue;
            }
            if self.over {
                return None;
            }
            self.over = matches!(self.socket.read_buf(&mut self.raw).await, Ok(0) | Err(_));
        }
    }

    /// The next event: a frame with data. Fails at the end of the stream.
    #[track_caller]
    pub fn next_event(&mut self) -> impl Future<Output = Frame> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            self.event_or_end().await.unwrap_or_else(|| panic!("the stream ended, waited for at {caller}"))
        }
    }

    /// The next event, or `None` at the end. Comments do not prolong the deadline.
    pub async fn event_or_end(&mut self) -> Option<Frame> {
        let event = async {
            loop {
                let frame = self.next_unbounded().await?;
                if frame.data.is_some() {
                    return Some(frame);
                }
            }
        };
        tokio::time::timeout(DEADLINE, event).await.expect("an event, or the end, within the deadline")
    }

    /// The runs of the next `count` events.
    pub async fn runs(&mut self, count: usize) -> Vec<u64> {
        let mut runs = Vec::with_capacity(count);
        while runs.len() < count {
            runs.push(self.next_event().await.run());
        }
        runs
    }

    /// Nothing more comes but the end.
    pub async fn ends(&mut self) {
        let frame = self.event_or_end().await;
        assert_eq!(frame, None, "the stream goes on");
    }
}
