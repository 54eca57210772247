//! `campanile tail` against a gateway whose behaviour each test writes down.

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::Version;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, accept_hdr};

use super::*;
use crate::domain::position::Position;

mod connections;
mod positions;
mod refusals;

/// What the gateway does on one connection.
type Turn = Box<dyn FnOnce(&mut Peer) + Send>;

/// The gateway's end of one connection, which breaks when this is dropped.
struct Peer(WebSocket<TcpStream>);

/// Whoever closes a socket with bytes unread resets the connection, and what the client has not
/// read yet would be lost: so this reads until the client has noticed.
impl Drop for Peer {
    fn drop(&mut self) {
        let stream = self.0.get_mut();
        let _ = stream.shutdown(Shutdown::Write);
        while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    }
}

impl Peer {
    #[expect(clippy::result_large_err, reason = "the callback of tungstenite has this type")]
    fn accept(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let check = |request: &Request, response: Response| {
            assert_eq!(
                (request.uri().path(), request.version()),
                ("/connection/websocket", Version::HTTP_11)
            );
            Ok(response)
        };
        Self(accept_hdr(stream, check).expect("a client that speaks WebSocket"))
    }

    /// The next message; `Null` if the client has left.
    fn receive(&mut self) -> Value {
        match self.0.read() {
            Ok(Message::Text(text)) => serde_json::from_str(&text).expect("JSON"),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(Error::ConnectionClosed | Error::Protocol(_)) => Value::Null,
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Value::Null,
            Err(error) => panic!("the client says nothing: {error}"),
        }
    }

    fn write(&mut self, message: Message) {
        // The client may have closed the connection.
        let _ = self.0.send(message);
    }

    fn send_text(&mut self, message: impl ToString) {
        self.write(Message::text(message.to_string()));
    }

    fn close(&mut self, code: u16, why: &str) {
        self.write(Message::Close(Some(CloseFrame { code: code.into(), reason: why.into() })));
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
