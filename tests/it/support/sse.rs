//! A reader of an event stream that never sleeps: every wait ends with a frame, with the end of
//! the stream, or with a failed test at the deadline.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::client::{Answer, Body, DEADLINE, Request};

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

#[derive(Debug)]
pub struct Stream {
    pub head: Answer,
    body: Body,
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

    async fn begin(socket: TcpStream) -> Option<Result<Self, Answer>> {
        let begun = Body::begin(socket).await?;
        Some(begun.map(|(head, body)| Self { head, body, last_id: None }))
    }

    /// The next frame of any kind; `None` when the stream has ended or was cut.
    pub async fn next(&mut self) -> Option<Frame> {
        let next = self.next_unbounded();
        tokio::time::timeout(DEADLINE, next).await.expect("a frame, or the end, within the deadline")
    }

    async fn next_unbounded(&mut self) -> Option<Frame> {
        let frame = Frame::parse(self.body.until(b"\n\n").await?.trim_end_matches('\n'));
        if frame.id.is_some() {
            self.last_id.clone_from(&frame.id);
        }
        Some(frame)
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
