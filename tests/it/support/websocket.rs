//! A client on a bare TCP socket, written by hand so that it can also do what no library would:
//! broken frames, no masks, no reading, no pongs. Every wait is bounded.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::app::TestApp;
use super::client::{Answer, DEADLINE, Request};

/// What a frame begins with (RFC 6455 §5.2): its kind, with the bit that says it is the last part.
pub const TEXT: u8 = 0x81;
pub const FIRST_TEXT: u8 = 0x01;
pub const MIDDLE: u8 = 0x00;
pub const LAST: u8 = 0x80;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [7, 77, 177, 247];

/// A request that is let in.
pub fn upgrade() -> Request {
    Request::get("/connection/websocket")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

/// A frame as clients send it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len(), 0x80);
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame without a mask, as only servers may send it.
pub fn bare_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len(), 0);
    bytes.extend(payload);
    bytes
}

/// The head of a frame of this length, up to where the mask would be.
pub fn header(first: u8, length: usize, masked: u8) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(masked | length as u8),
        126..65_536 => {
            bytes.push(masked | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(masked | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes
}

#[derive(Debug, Clone, PartialEq)]
pub enum Received {
    /// One message, of those that a text frame joins by LF.
    Message(Value),
    Pong(Vec<u8>),
    Close(u16, String),
    /// The connection ended without another word; `false` if it was reset.
    End(bool),
}

pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
    messages: VecDeque<Value>,
    /// Pushes that came while a reply was awaited.
    pub pushes: VecDeque<Value>,
    last_id: u64,
    /// Whether pings are answered.
    pub pongs: bool,
    /// The answer to the upgrade.
    pub head: Answer,
}

impl Client {
    /// Upgraded, and nothing said yet.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        Self::over(stream, &upgrade().bytes()).await
    }

    /// The same with a receive buffer as small as the kernel allows.
    pub async fn open_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        Self::over(socket.connect(address).await.expect("a connection"), &upgrade().bytes()).await
    }

    /// Sends `first`, which begins with a request, and waits for the 101.
    pub async fn over(mut stream: TcpStream, first: &[u8]) -> Self {
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(first).await.expect("written");
        let mut input = Vec::new();
        let (head, length) = loop {
            if let Some(head) = Answer::parse_head(&input) {
                break head;
            }
            let read = timeout(DEADLINE, stream.read_buf(&mut input)).await.expect("an answer in time");
            assert!(read.expect("an answer") > 0, "the answer breaks off");
        };
        assert_eq!(head.status, 101, "{}", String::from_utf8_lossy(&input));
        assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        input.drain(..length);
        let (messages, pushes) = (VecDeque::new(), VecDeque::new());
        Self { stream, input, messages, pushes, last_id: 0, pongs: true, head }
    }

    /// Upgraded, if the server is there and lets it in.
    pub async fn try_open(address: SocketAddr) -> Option<Self> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(&upgrade().bytes()).await.ok()?;
        let mut twelve = [0; 12];
        timeout(DEADLINE, stream.peek(&mut twelve)).await.expect("an answer in time").ok()?;
        if !twelve.ends_with(b"101") {
            return None;
        }
        Some(Self::over(stream, b"").await)
    }

    /// Connected, with this token.
    pub async fn connected(app: &TestApp, token: &str) -> Self {
        let mut client = Self::open(app.address()).await;
        client.connect(token).await;
        client
    }

    /// `connect`, which must succeed; gives its result.
    pub async fn connect(&mut self, token: &str) -> Value {
        let reply = self.ask(json!({ "connect": { "token": token } })).await;
        assert!(reply["connect"]["client"].is_string(), "{reply}");
        reply["connect"].clone()
    }

    /// `subscribe`, which must succeed; gives its result.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        let reply = self.ask(json!({ "subscribe": { "channel": channel } })).await;
        assert!(reply["subscribe"].is_object(), "{reply}");
        reply["subscribe"].clone()
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("sent in time").expect("sent");
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send(&frame(TEXT, text.as_bytes())).await;
    }

    /// Sends a command under the next id, and gives the id.
    pub async fn command(&mut self, mut command: Value) -> u64 {
        self.last_id += 1;
        command["id"] = self.last_id.into();
        self.send_text(&command.to_string()).await;
        self.last_id
    }

    /// Sends a command and waits for its reply. Pushes that come before it are kept.
    pub async fn ask(&mut self, command: Value) -> Value {
        let id = self.command(command).await;
        loop {
            let message = self.message().await;
            if message["id"] == id {
                return message;
            }
            assert!(message["push"].is_object(), "{message} is no reply to {id}");
            self.pushes.push_back(message);
        }
    }

    /// The code of the error that a command gets.
    pub async fn error(&mut self, command: Value) -> u64 {
        let reply = self.ask(command).await;
        let error = &reply["error"];
        assert!(error["message"].is_string(), "{reply}");
        assert_eq!(error["temporary"] == true, matches!(error["code"].as_u64(), Some(100 | 111 | 113)));
        error["code"].as_u64().expect("a code")
    }

    pub async fn push(&mut self) -> Value {
        let push = match self.pushes.pop_front() {
            Some(push) => push,
            None => self.message().await,
        };
        assert!(push["push"].is_object(), "{push}");
        push["push"].clone()
    }

    pub async fn message(&mut self) -> Value {
        match self.next().await {
            Received::Message(message) => message,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// What is said next; pings of the protocol's own are answered and left out.
    pub async fn next(&mut self) -> Received {
        timeout(DEADLINE, self.read()).await.expect("something is said in time")
    }

    async fn read(&mut self) -> Received {
        loop {
            while let Some(message) = self.messages.pop_front() {
                if message != json!({}) {
                    return Received::Message(message);
                }
                if self.pongs {
                    // Whoever is gone already shows when it is read from.
                    let _ = self.stream.write_all(&frame(TEXT, b"{}")).await;
                }
            }
            let Some((first, payload)) = self.take_frame() else {
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) => {
                        assert!(self.input.is_empty(), "the last frame is not whole");
                        return Received::End(true);
                    }
                    Ok(_) => continue,
                    Err(_) => return Received::End(false),
                }
            };
            match first {
                TEXT => {
                    let text = String::from_utf8(payload).expect("text");
                    for line in text.split('\n') {
                        self.messages.push_back(serde_json::from_str(line).expect("a message is JSON"));
                    }
                }
                PONG => return Received::Pong(payload),
                CLOSE => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    return Received::Close(code, String::from_utf8(payload[2..].to_vec()).expect("text"));
                }
                other => panic!("a frame of kind {other:#x}"),
            }
        }
    }

    /// A whole frame from the front of the input.
    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &length) = (self.input.first()?, self.input.get(1)?);
        let (start, length) = match length {
            126 => (4, usize::from(u16::from_be_bytes(self.input.get(2..4)?.try_into().ok()?))),
            127 => (10, u64::from_be_bytes(self.input.get(2..10)?.try_into().ok()?) as usize),
            short => (2, usize::from(short)),
        };
        assert!(length & 0x80 == 0 || start > 2, "a server does not mask");
        let payload = self.input.get(start..start + length)?.to_vec();
        self.input.drain(..start + length);
        Some((first, payload))
    }

    /// Reads up to the Close frame, answers it, and waits for the end. Gives the code and the
    /// reason; what comes before is left out.
    pub async fn closed(&mut self) -> (u16, String) {
        let (code, reason) = loop {
            match self.next().await {
                Received::Close(code, reason) => break (code, reason),
                Received::End(_) => panic!("an end without a Close frame"),
                Received::Message(_) | Received::Pong(_) => {}
            }
        };
        // The server may have gone.
        let _ = self.stream.write_all(&frame(CLOSE, &code.to_be_bytes())).await;
        let _ = self.stream.shutdown().await;
        assert_eq!(self.next().await, Received::End(true), "nothing follows a Close frame");
        (code, reason)
    }

    /// The code of the Close frame that comes.
    pub async fn closed_with(&mut self) -> u16 {
        self.closed().await.0
    }

    /// Fails unless nothing but replies to this comes: whatever is under way comes before.
    pub async fn is_quiet(&mut self) {
        let reply = self.ask(json!({ "rpc": { "method": "are you there" } })).await;
        assert_eq!(reply["error"]["code"], 108);
        assert!(self.pushes.is_empty(), "{:?}", self.pushes);
    }
}
