//! A client of the streams that speak the client protocol: reads a streamed answer, message by
//! message, and posts to `/emulation`. Every wait is bounded.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Answer, Body, DEADLINE, Request};

#[derive(Debug)]
pub struct StreamClient {
    address: SocketAddr,
    pub head: Answer,
    pub body: Body,
    /// Whether messages are events of an event stream.
    sse: bool,
    pub pushes: VecDeque<Value>,
    last_id: u64,
    /// Where posts go.
    pub session: String,
    pub node: String,
}

/// The most bytes that a test puts into an address.
const SHORT: usize = 8000;

/// A request that opens the stream `transport` with this text.
pub fn opening(transport: &str, first: &str) -> Request {
    if transport.ends_with("sse") && first.len() <= SHORT {
        let text: String = url::form_urlencoded::byte_serialize(first.as_bytes()).collect();
        return Request::get(&format!("/connection/{transport}?cf_connect={text}"));
    }
    Request::post(&format!("/connection/{transport}")).header("Content-Type", "application/json").body(first)
}

impl StreamClient {
    /// Opens a stream that must open.
    pub async fn open(address: SocketAddr, request: &Request) -> Self {
        match Self::try_open(address, request).await {
            Ok(lines) => lines,
            Err(answer) => panic!("no stream: {} {}", answer.status, answer.text()),
        }
    }

    /// Opens a stream, or gives the refusal.
    pub async fn try_open(address: SocketAddr, request: &Request) -> Result<Self, Answer> {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(&request.bytes()).await.expect("written");
        let begun = timeout(DEADLINE, Body::begin(socket)).await.expect("an answer in time");
        let (head, body) = begun.expect("the answer does not break off")?;
        let sse = head.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        let (pushes, session, node) = (VecDeque::new(), String::new(), String::new());
        Ok(Self { address, head, body, sse, pushes, last_id: 1, session, node })
    }

    /// Connected over `transport` with this token.
    pub async fn connected(address: SocketAddr, transport: &str, token: &str) -> Self {
        let connect = json!({ "id": 1, "connect": { "token": token } });
        let mut lines = Self::open(address, &opening(transport, &connect.to_string())).await;
        let reply = lines.message().await;
        assert!(reply["connect"]["client"].is_string(), "{reply}");
        lines.take_session(&reply["connect"]);
        lines
    }

    /// Remembers where posts go.
    pub fn take_session(&mut self, connect: &Value) {
        let text = |name: &str| connect[name].as_str().expect("where posts go").to_owned();
        (self.session, self.node) = (text("session"), text("node"));
    }

    /// A post of this text, to be sent.
    pub fn post_of(&self, text: &str) -> Request {
        let post = json!({ "session": self.session, "node": self.node, "data": text });
        Request::post("/emulation").json(&post)
    }

    /// Posts a text, which must be taken.
    pub async fn send_text(&self, text: &str) {
        let answer = self.post_of(text).send(self.address).await.expect(204);
        assert!(answer.body.is_empty());
    }

    /// Posts a command under the next id, and waits for its reply. Pushes that come before it are kept.
    pub async fn ask(&mut self, mut command: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        command["id"] = id.into();
        self.send_text(&command.to_string()).await;
        loop {
            let message = self.message().await;
            if message["id"] == id {
                return message;
            }
            assert!(message["push"].is_object(), "{message} is no reply to {id}");
            self.pushes.push_back(message);
        }
    }

    /// `subscribe`, which must succeed; gives its result.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.ask(json!({ "subscribe": { "channel": channel } })).await;
        assert!(reply["subscribe"].is_object(), "{reply}");
        reply["subscribe"].clone()
    }

    pub async fn push(&mut self) -> Value {
        let push = match self.pushes.pop_front() {
            Some(push) => push,
            None => self.message().await,
        };
        assert!(push["push"].is_object(), "{push}");
        push["push"].clone()
    }

    /// The next message; pings are left out.
    pub async fn message(&mut self) -> Value {
        self.next().await.expect("a message before the end")
    }

    /// The next message, or `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let message = self.next_of_all().await?;
            if message != json!({}) {
                return Some(message);
            }
        }
    }

    /// The same with pings.
    pub async fn next_of_all(&mut self) -> Option<Value> {
        let text = timeout(DEADLINE, self.next_text()).await.expect("a message, or the end, in time")?;
        Some(serde_json::from_str(&text).unwrap_or_else(|_| panic!("a message is JSON: {text}")))
    }

    /// The bytes of the next message, without their frame.
    pub async fn next_text(&mut self) -> Option<String> {
        let end: &[u8] = if self.sse { b"\n\n" } else { b"\n" };
        let Some(text) = self.body.until(end).await else {
            assert!(self.body.text.is_empty(), "the last message is not whole");
            return None;
        };
        if !self.sse {
            return Some(text);
        }
        let event = text.strip_prefix("\r\n").unwrap_or(&text);
        Some(event.strip_prefix("data: ").expect("an event has data").to_owned())
    }

    /// Reads up to the end. Gives the code that was said before it; what comes earlier is left out.
    pub async fn closed_with(&mut self) -> u64 {
        let mut last = Value::Null;
        while let Some(message) = self.next().await {
            last = message;
        }
        let last = last.get("push").unwrap_or(&last);
        last["disconnect"]["code"].as_u64().unwrap_or_else(|| panic!("the last words are {last}"))
    }
}
