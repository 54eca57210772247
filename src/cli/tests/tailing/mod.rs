//! `campanile tail` against a gateway whose behaviour each test writes down.

use std::net::TcpStream;
use std::time::Duration;

use actix_codec::{Decoder as _, Encoder as _};
use actix_http::ws::{CloseReason, Codec, Frame, Message, hash_key};
use bytes::BytesMut;
use serde_json::{Value, json};

use super::*;
use crate::domain::position::Position;

mod connections;
mod positions;
mod refusals;

/// What the gateway does on one connection.
type Turn = Box<dyn FnOnce(&mut Peer) + Send>;

/// The gateway's end of one connection, which breaks when this is dropped.
struct Peer {
    stream: TcpStream,
    codec: Codec,
    bytes: BytesMut,
}

/// Whoever closes a socket with bytes unread resets the connection, and what the client has not
/// read yet would be lost: so this reads until the client has noticed.
impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        while std::io::Read::read(&mut self.stream, &mut [0; 4096]).is_ok_and(|count| count > 0) {}
    }
}

impl Peer {
    fn accept(mut stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let request = read_request(&mut stream);
        assert!(request.starts_with("GET /connection/websocket HTTP/1.1\r\n"), "{request}");
        let key = |line: &str| Some(line.split_once(": ")?.1.trim().to_owned());
        let is_key = |line: &&str| line.to_lowercase().starts_with("sec-websocket-key:");
        let key = request.lines().find(is_key).and_then(key).expect("a key");
        let accept = String::from_utf8(hash_key(key.as_bytes()).to_vec()).unwrap();
        let head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade";
        write!(stream, "{head}\r\nsec-websocket-accept: {accept}\r\n\r\n").unwrap();
        Self { stream, codec: Codec::new(), bytes: BytesMut::new() }
    }

    /// The next message; `Null` if the client has left.
    fn receive(&mut self) -> Value {
        let mut piece = [0; 4096];
        loop {
            match self.codec.decode(&mut self.bytes).expect("a frame") {
                Some(Frame::Text(text)) => return serde_json::from_slice(&text).expect("JSON"),
                Some(other) => panic!("unexpected {other:?}"),
                None => match std::io::Read::read(&mut self.stream, &mut piece) {
                    Ok(0) => return Value::Null,
                    Ok(n) => self.bytes.extend_from_slice(&piece[..n]),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Value::Null,
                    Err(error) => panic!("the client says nothing: {error}"),
                },
            }
        }
    }

    fn write(&mut self, message: Message) {
        let mut bytes = BytesMut::new();
        self.codec.encode(message, &mut bytes).unwrap();
        // The client may have closed the connection.
        let _ = self.stream.write_all(&bytes);
    }

    fn send_text(&mut self, message: impl ToString) {
        self.write(Message::Text(message.to_string().into()));
    }

    fn close(&mut self, code: u16, why: &str) {
        self.write(Message::Close(Some(CloseReason { code: code.into(), description: Some(why.into()) })));
    }

    /// Lets the client in; gives what it said.
    fn welcome(&mut self) -> Value {
        let mut said = self.receive();
        assert_eq!(said["id"], 1, "{said}");
        self.send_text(
            json!({ "id": 1, "connect": { "client": "c", "version": "1", "ping": 25, "pong": true } }),
        );
        said["connect"].take()
    }

    /// Answers the command `method` with `result`; gives what was asked.
    fn answer(&mut self, method: &str, result: Value) -> Value {
        let mut said = self.receive();
        self.send_text(json!({ "id": said["id"], method: result }));
        assert!(said[method].is_object(), "{said}");
        said[method].take()
    }

    fn refuse(&mut self, code: u32, message: &str) {
        let said = self.receive();
        self.send_text(json!({ "id": said["id"], "error": { "code": code, "message": message } }));
    }

    fn push(&mut self, offset: u64) {
        self.send_text(json!({ "push": { "channel": "repo:acme/api", "pub": publication(offset) } }));
    }
}

fn publication(offset: u64) -> Value {
    json!({ "data": offset, "offset": offset })
}

fn publications(offsets: impl IntoIterator<Item = u64>) -> Value {
    offsets.into_iter().map(publication).collect()
}

/// A subscription that begins at `offset`.
fn at(offset: u64) -> Value {
    json!({ "recoverable": true, "positioned": true, "epoch": "k", "offset": offset })
}

fn recovered(offset: u64, missed: impl IntoIterator<Item = u64>) -> Value {
    let mut result = at(offset);
    (result["recovered"], result["was_recovering"]) = (true.into(), true.into());
    result["publications"] = publications(missed);
    result
}

fn lost(epoch: &str, offset: u64) -> Value {
    let mut result = at(offset);
    (result["epoch"], result["was_recovering"]) = (epoch.into(), true.into());
    result
}

/// A gateway with a turn for each connection.
struct Gateway {
    base: String,
    turns: JoinHandle<()>,
}

impl Gateway {
    fn start<const N: usize>(turns: [Turn; N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("it is bound"));
        let turns = std::thread::spawn(move || {
            for turn in turns {
                turn(&mut Peer::accept(listener.accept().expect("a client").0));
            }
        });
        Self { base, turns }
    }

    /// Tails it; afterwards nothing that the gateway expected may be missing.
    fn tail(self, credential: Credential, since: Option<&str>, count: Option<u64>) -> Tailed {
        let tailed = tail(&self.base, credential, since, count);
        self.turns.join().unwrap_or_else(|_| panic!("the gateway expected more: {}", tailed.diagnostics));
        tailed
    }
}

fn turn(turn: impl FnOnce(&mut Peer) + Send + 'static) -> Turn {
    Box::new(turn)
}

fn own() -> Credential {
    Credential::Own { secret: Secret::new("hunter2"), claims: Box::default() }
}

/// How it ended, what it showed, what it remarked, and where it was.
struct Tailed {
    ended: anyhow::Result<()>,
    shown: String,
    diagnostics: String,
    cursor: Option<String>,
}

impl Tailed {
    fn error(self) -> String {
        format!("{:#}", self.ended.expect_err("it must fail"))
    }
}

fn tail(base: &str, credential: Credential, since: Option<&str>, count: Option<u64>) -> Tailed {
    let remote = Remote::new(base.parse().expect("a good URL"));
    let channel = ChannelName::parse("repo:acme/api").unwrap();
    let (mut shown, mut diagnostics) = (Vec::new(), Vec::new());
    let mut reader = ChannelReader {
        remote: &remote,
        channel: &channel,
        credential,
        cursor: since.map(|since| Position::parse(since).expect("a cursor")),
        left: count,
        output: Output { events: &mut shown, line: &format::json, diagnostics: &mut diagnostics },
        backoff: Backoff::starting_with(Duration::from_millis(1)),
    };
    let ended = block_on(async {
        let in_time = tokio::time::timeout(Duration::from_secs(20), reader.run()).await;
        in_time.expect("it does not go on for ever")
    });
    let cursor = reader.cursor.map(|cursor| cursor.to_string());
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Tailed { ended, shown: text(shown), diagnostics: text(diagnostics), cursor }
}
