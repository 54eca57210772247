//! Following a channel over WebSocket: across broken connections, lost places and expired tokens.

use std::net::TcpStream;
use std::time::Duration;

use actix_codec::{Decoder as _, Encoder as _};
use actix_http::ws::{CloseReason, Codec, Frame, Item, Message, hash_key};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::*;
use crate::domain::position::Position;

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

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let gateway = Gateway::start([
        turn(|peer| {
            let connect = peer.welcome();
            assert!(connect["token"].as_str().unwrap().starts_with("ey"), "{connect}");
            let asked = peer.answer("subscribe", recovered(0, [1]));
            assert_eq!(asked["channel"], "repo:acme/api");
            assert_eq!(
                (&asked["recover"], &asked["epoch"], &asked["offset"]),
                (&true.into(), &"k".into(), &0.into())
            );
            peer.push(2);
            // Half a frame.
            peer.stream.write_all(b"\x81\x7d{\"push\":").unwrap();
        }),
        turn(|peer| {
            peer.receive();
        }),
        turn(|peer| {
            peer.welcome();
            let asked = peer.answer("subscribe", recovered(2, [3]));
            assert_eq!(asked["offset"], 2);
            (3..6).for_each(|offset| peer.push(offset));
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.0"), Some(4));
    tailed.ended.unwrap();
    assert_eq!(tailed.shown, "1\n2\n3\n4\n");
    assert_eq!(tailed.cursor.as_deref(), Some("k.4"));
    assert_eq!(tailed.diagnostics.matches("reconnected").count(), 1, "{}", tailed.diagnostics);
    assert_eq!(tailed.diagnostics.matches("retrying").count(), 2, "{}", tailed.diagnostics);
}

#[test]
fn one_that_broke_before_its_first_event_is_taken_up_where_it_began() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            assert!(peer.answer("subscribe", at(7)).get("recover").is_none());
        }),
        turn(|peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", recovered(7, [8]))["offset"], 7);
        }),
    ]);
    assert_eq!(gateway.tail(own(), None, Some(1)).shown, "8\n");
}

#[test]
fn pings_are_answered_and_messages_may_come_in_pieces_and_together() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", at(0));
        peer.send_text("{}");
        assert_eq!(peer.receive(), json!({}));
        peer.write(Message::Ping(Bytes::from_static(b"p")));
        let push = |offset: u64| {
            json!({ "push": { "channel": "repo:acme/api", "pub": publication(offset) } }).to_string()
        };
        peer.send_text(format!("{}\n{}\n", push(1), push(2)));
        let (first, last) = (Bytes::from(push(3)[..9].to_owned()), Bytes::from(push(3)[9..].to_owned()));
        peer.write(Message::Continuation(Item::FirstText(first)));
        peer.write(Message::Continuation(Item::Last(last)));
    })]);
    assert_eq!(gateway.tail(own(), None, Some(3)).shown, "1\n2\n3\n");
}

#[test]
fn a_lost_place_is_reported_and_what_follows_is_shown() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", lost("m", 2));
        // Before the answer about what is retained.
        peer.push(3);
        let asked =
            peer.answer("history", json!({ "publications": publications([2]), "epoch": "m", "offset": 3 }));
        assert_eq!((&asked["limit"], asked.get("since")), (&1.into(), None));
        let asked =
            peer.answer("history", json!({ "publications": publications([3]), "epoch": "m", "offset": 3 }));
        assert_eq!(asked["since"], json!({ "epoch": "m", "offset": 2 }));
        peer.push(4);
    })]);
    let tailed = gateway.tail(own(), Some("k.9"), Some(2));
    assert_eq!(tailed.shown, "3\n4\n");
    let said = "live from m.2. What is retained: campanile tail repo:acme/api --since m.1\n";
    assert!(tailed.diagnostics.ends_with(said), "{}", tailed.diagnostics);
}

#[test]
fn more_than_a_subscription_brings_is_read_from_the_history() {
    let gateway = Gateway::start([turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", lost("k", 5));
        let asked = peer
            .answer("history", json!({ "publications": publications([2, 3]), "epoch": "k", "offset": 5 }));
        assert_eq!(asked["since"], json!({ "epoch": "k", "offset": 1 }));
        peer.push(6);
        let asked =
            peer.answer("history", json!({ "publications": publications(4..=6), "epoch": "k", "offset": 6 }));
        assert_eq!(asked["since"], json!({ "epoch": "k", "offset": 3 }));
        peer.push(7);
    })]);
    let tailed = gateway.tail(own(), Some("k.1"), Some(6));
    assert_eq!((tailed.shown.as_str(), tailed.diagnostics.as_str()), ("2\n3\n4\n5\n6\n7\n", ""));
}

#[test]
fn what_the_history_has_no_more_is_said_to_be_missing() {
    let with = |history: Turn| {
        let gateway = Gateway::start([turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("k", 5));
            history(peer);
            peer.push(6);
        })]);
        let tailed = gateway.tail(own(), Some("k.1"), Some(1));
        assert_eq!(tailed.shown, "6\n");
        tailed.diagnostics
    };
    let trimmed = with(turn(|peer| {
        peer.answer("history", json!({ "publications": publications([4, 5]), "epoch": "k", "offset": 5 }));
    }));
    assert!(
        trimmed.ends_with("live from k.5. What is retained: campanile tail repo:acme/api --since k.3\n"),
        "{trimmed}"
    );
    let hidden = with(turn(|peer| peer.refuse(103, "permission denied")));
    assert!(
        hidden.ends_with(
            "the gateway says: permission denied (code 103); the stream continues live from k.5\n"
        ),
        "{hidden}"
    );
}

#[test]
fn a_connection_that_breaks_before_the_loss_was_told_loses_no_word_of_it() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("m", 2));
            peer.receive();
        }),
        turn(|peer| {
            peer.welcome();
            let asked = peer.answer("subscribe", lost("m", 2));
            assert_eq!((&asked["epoch"], &asked["offset"]), (&"k".into(), &9.into()));
            peer.refuse(108, "not available");
            peer.push(3);
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.9"), Some(1));
    assert_eq!(tailed.shown, "3\n");
    assert!(
        tailed.diagnostics.ends_with("are missing here; the stream continues live from m.2\n"),
        "{}",
        tailed.diagnostics
    );
}

#[test]
fn a_history_that_fails_for_a_while_is_asked_again() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", lost("k", 3));
            peer.refuse(100, "internal server error");
        }),
        turn(|peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", lost("k", 3))["offset"], 1);
            peer.answer(
                "history",
                json!({ "publications": publications([2, 3]), "epoch": "k", "offset": 3 }),
            );
        }),
    ]);
    assert_eq!(gateway.tail(own(), Some("k.1"), Some(2)).shown, "2\n3\n");
}

#[test]
fn a_channel_without_history_is_followed_live() {
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", json!({}));
            peer.send_text(r#"{"push":{"channel":"repo:acme/api","pub":{"data":1}}}"#);
        }),
        turn(|peer| {
            peer.welcome();
            assert!(peer.answer("subscribe", json!({})).get("recover").is_none());
            peer.send_text(r#"{"push":{"channel":"repo:acme/api","pub":{"data":2}}}"#);
        }),
    ]);
    let tailed = gateway.tail(own(), Some("k.1"), Some(2));
    assert_eq!((tailed.shown.as_str(), tailed.cursor.as_deref()), ("1\n2\n", None));
    assert!(tailed.diagnostics.contains("keeps no history"), "{}", tailed.diagnostics);
    assert!(tailed.diagnostics.contains(", starting with new events"), "{}", tailed.diagnostics);
}

#[test]
fn what_the_token_subscribed_to_is_subscribed_to_again_with_the_position() {
    let gateway = Gateway::start([turn(|peer| {
        peer.receive();
        peer.send_text(json!({ "id": 1, "connect": { "client": "c", "subs": { "repo:acme/api": {} } } }));
        peer.push(2);
        peer.answer("unsubscribe", json!({}));
        peer.answer("subscribe", recovered(1, [2]));
    })]);
    assert_eq!(gateway.tail(own(), Some("k.1"), Some(1)).shown, "2\n");
}

#[test]
fn a_subscription_that_ends_for_a_while_is_begun_again_at_the_position() {
    let unsubscribe = |code: u32| json!({ "push": { "channel": "repo:acme/api", "unsubscribe": { "code": code, "reason": "so" } } });
    let gateway = Gateway::start([
        turn(move |peer| {
            peer.welcome();
            peer.answer("subscribe", at(0));
            peer.push(1);
            peer.send_text(unsubscribe(2500));
            assert_eq!(peer.answer("subscribe", recovered(1, []))["offset"], 1);
            // It brought nothing: a new connection.
            peer.send_text(unsubscribe(2501));
        }),
        turn(move |peer| {
            peer.welcome();
            assert_eq!(peer.answer("subscribe", recovered(1, [2]))["offset"], 1);
            peer.send_text(unsubscribe(2000));
        }),
    ]);
    let tailed = gateway.tail(own(), None, None);
    assert_eq!(tailed.shown, "1\n2\n");
    assert!(tailed.diagnostics.contains("so (code 2501); retrying"), "{}", tailed.diagnostics);
    assert!(tailed.error().contains("so (code 2000)"));
}

#[test]
fn the_code_decides_whether_it_comes_back() {
    let back = [(3001, "is going away"), (3008, "slow (code 3008)"), (3005, "a new one is created")];
    for (code, said) in back {
        let gateway = Gateway::start([
            turn(move |peer| {
                peer.welcome();
                peer.answer("subscribe", at(0));
                peer.close(code, "slow");
            }),
            turn(|peer| {
                peer.welcome();
                peer.answer("subscribe", recovered(0, [1]));
            }),
        ]);
        let tailed = gateway.tail(own(), None, Some(1));
        assert_eq!(tailed.shown, "1\n");
        assert!(tailed.diagnostics.contains(said), "{}", tailed.diagnostics);
    }
    for (code, said) in
        [(3500, "does it belong to this gateway?"), (3503, "so (code 3503)"), (4500, "so (code 4500)")]
    {
        let gateway = Gateway::start([turn(move |peer| {
            peer.receive();
            peer.close(code, "so");
        })]);
        let tailed = gateway.tail(own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn an_own_token_is_renewed_and_a_given_one_ends_the_matter() {
    let expiring = || {
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", at(0));
            peer.push(1);
            peer.close(3005, "connection expired");
        })
    };
    let too_old = turn(|peer| peer.refuse(109, "token expired"));
    let good = turn(|peer| {
        peer.welcome();
        peer.answer("subscribe", recovered(1, [2]));
    });
    assert_eq!(Gateway::start([expiring(), too_old, good]).tail(own(), None, Some(2)).shown, "1\n2\n");

    let tailed = Gateway::start([expiring()]).tail(Credential::Given(Secret::new("a.b.c")), None, None);
    assert_eq!(tailed.cursor.as_deref(), Some("k.1"));
    assert!(tailed.error().contains("the token has expired"));
}

#[test]
fn a_refusal_says_what_would_help() {
    let cases = [
        (
            102,
            "unknown channel",
            "unknown channel (code 102): the namespace of repo:acme/api is not declared",
        ),
        (103, "permission denied", "`campanile token --repo acme/api` or `--org acme`"),
        (106, "limit exceeded", "the gateway says: limit exceeded (code 106)"),
    ];
    for (code, message, said) in cases {
        let gateway = Gateway::start([turn(move |peer| {
            peer.welcome();
            peer.refuse(code, message);
        })]);
        let tailed = gateway.tail(own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said), "{error}");
    }
    let gateway = Gateway::start([
        turn(|peer| {
            peer.welcome();
            peer.refuse(100, "internal server error");
        }),
        turn(|peer| {
            peer.welcome();
            peer.answer("subscribe", recovered(0, [1]));
        }),
    ]);
    assert_eq!(gateway.tail(own(), Some("k.0"), Some(1)).shown, "1\n");
}

#[test]
fn an_answer_that_is_no_websocket_is_final_or_waited_out() {
    let cases = [
        ("401 Unauthorized", "401 Unauthorized"),
        ("404 Not Found", "`websocket.enabled`"),
        ("301 Moved Permanently", "301 Moved Permanently"),
        ("200 OK", "this is not a WebSocket"),
    ];
    for (status, said) in cases {
        let tailed = tail(&Scripted::start([json(status, "{}")]).base, own(), None, None);
        assert_eq!(tailed.diagnostics, "");
        let error = tailed.error();
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
    let busy = Scripted::start([json("503 Service Unavailable", "{}"), json("403 Forbidden", "{}")]);
    let tailed = tail(&busy.base, own(), None, None);
    assert!(tailed.diagnostics.contains("503 Service Unavailable; retrying"), "{}", tailed.diagnostics);
    assert!(tailed.error().contains("403"));
    let strange = Gateway::start([turn(|peer| {
        peer.receive();
        peer.send_text("<html>");
    })]);
    assert!(strange.tail(own(), None, None).error().contains("not the client protocol"));
}

#[test]
fn a_gateway_that_was_never_there_is_not_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = tail(&format!("http://{free}"), own(), None, None).ended.unwrap_err().to_string();
    assert!(error.contains("is `campanile serve` running?"), "{error}");
}
