//! What a client may put on the wire, and what it may not: each broken thing gets its own code in
//! a Close frame, and what is only strange is answered.

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::app::{Backend, TestApp, on_both};
use crate::support::websocket::*;

const LIMIT: usize = 65_536;

/// Namespaces without a token for each channel, and patience as short as it may be.
const OPEN: &str = "
[[channel.namespaces]]
name = \"open\"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
";

/// A command of exactly this length: JSON with space at its end.
fn padded(command: &Value, length: usize) -> String {
    let command = command.to_string();
    let space = " ".repeat(length - command.len());
    command + &space
}

pub(super) async fn broken_frames_have_their_codes(backend: Backend) {
    let app = TestApp::with(backend, OPEN).await;
    let connect = json!({ "id": 1, "connect": { "token": app.ana() } }).to_string();
    let whole = |first: u8, payload: &[u8]| vec![frame(first, payload)];
    let fragments = |parts: &[&[u8]]| {
        let (last, parts) = parts.split_last().expect("parts");
        let kinds = std::iter::once(FIRST_TEXT).chain(std::iter::repeat(MIDDLE));
        let mut frames: Vec<_> = kinds.zip(parts).map(|(kind, part)| frame(kind, part)).collect();
        frames.push(frame(LAST, last));
        frames
    };
    let cases = [
        ("binary", 3506, whole(BINARY, b"\x01\x02")),
        ("binary in fragments", 3506, vec![frame(0x02, b"\x01"), frame(LAST, b"\x02")]),
        ("no UTF-8", 1007, whole(TEXT, b"{\"id\":2,\"rpc\":{\"method\":\"\xff\"}}")),
        ("half a letter", 1007, whole(TEXT, b"\xc3")),
        ("no UTF-8 in fragments", 1007, fragments(&[b"{\"rpc\":\"\xc3", b"(", b"\"}"])),
        ("an id above u32", 3501, whole(TEXT, b"{\"id\":4294967296,\"rpc\":{}}")),
        ("an id below 0", 3501, whole(TEXT, b"{\"id\":-1,\"rpc\":{}}")),
        ("an id that is text", 3501, whole(TEXT, b"{\"id\":\"2\",\"rpc\":{}}")),
        ("an id with a fraction", 3501, whole(TEXT, b"{\"id\":2.5,\"rpc\":{}}")),
        ("no id", 3501, whole(TEXT, b"{\"subscribe\":{\"channel\":\"open:x\"}}")),
        ("an id and nothing", 3501, whole(TEXT, b"{\"id\":2}")),
        ("two methods", 3501, whole(TEXT, b"{\"id\":2,\"rpc\":{},\"history\":{}}")),
        ("garbage", 3501, whole(TEXT, b"hello")),
        ("a list", 3501, whole(TEXT, b"[{\"id\":2,\"rpc\":{}}]")),
        ("half a command", 3501, whole(TEXT, b"{\"id\":2,\"rpc\":{}")),
        ("an empty frame", 3501, whole(TEXT, b"")),
        ("an empty line", 3501, whole(TEXT, b"{\"id\":2,\"rpc\":{}}\n\n{\"id\":3,\"rpc\":{}}")),
        ("an empty channel", 3501, whole(TEXT, b"{\"id\":2,\"subscribe\":{}}")),
        ("an array deep as a well", 3501, whole(TEXT, "[".repeat(60_000).as_bytes())),
        ("one byte too long", 1009, whole(TEXT, &vec![b' '; LIMIT + 1])),
        ("far too long", 1009, whole(TEXT, &vec![b' '; 3 * LIMIT])),
        ("a header that says 1 TiB", 1009, vec![header(TEXT, 1 << 40, 0x80)]),
        ("fragments too long together", 1009, fragments(&[&[b' '; LIMIT / 2], &[b' '; LIMIT / 2], b" "])),
        (
            "fragments far too long",
            1009,
            fragments(&[&[b' '; LIMIT / 2], &[b' '; LIMIT / 2], &[b' '; 1_000]]),
        ),
        ("a fragment too long", 1009, fragments(&[b"{", &vec![b' '; LIMIT + 1], b"}"])),
        ("a length wider than it is", 1002, vec![b"\x81\xfe\0\x02mask{}".to_vec()]),
        ("a length far wider than it is", 1002, vec![b"\x81\xff\0\0\0\0\0\0\x01\0mask".to_vec()]),
        ("no mask", 1002, vec![bare_frame(TEXT, b"{}")]),
        ("a kind that does not exist", 1002, whole(0x83, b"{}")),
        ("reserved bits", 1002, whole(TEXT | 0x40, b"{}")),
        ("a part of nothing", 1002, whole(LAST, b"{}")),
        ("a whole frame between parts", 1002, vec![frame(FIRST_TEXT, b"{"), frame(TEXT, b"{}")]),
        ("a ping in parts", 1002, whole(0x09, b"x")),
        ("a long ping", 1002, whole(PING, &[b'x'; 126])),
        ("a ping without end", 1002, vec![header(PING, 1 << 40, 0x80)]),
    ];
    let mut wrong = Vec::new();
    for (what, code, frames) in cases {
        let mut client = Client::open(app.address()).await;
        client.send_text(&connect).await;
        assert_eq!(client.message().await["id"], 1);
        client.send(&frames.concat()).await;
        match tokio::time::timeout(std::time::Duration::from_secs(4), client.closed_with()).await {
            Ok(closed) if closed == code => {}
            Ok(closed) => wrong.push(format!("{what}: {closed} instead of {code}")),
            Err(_) => wrong.push(format!("{what}: nothing instead of {code}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    app.until_metric("connections", "websocket", 0).await;
}

async fn before_the_connect_nothing_else_will_do(backend: Backend) {
    let app = TestApp::with(backend, OPEN).await;
    for first in
        ["{}", "{\"id\":1,\"subscribe\":{\"channel\":\"open:x\"}}", "{\"id\":1,\"ping\":{}}", "{\"id\":1}"]
    {
        let mut client = Client::open(app.address()).await;
        client.send_text(first).await;
        assert_eq!(client.closed().await, (3501, "bad request".to_owned()), "{first}");
    }
    let mut twice = Client::connected(&app, &app.ana()).await;
    twice.command(json!({ "connect": { "token": app.ana() } })).await;
    assert_eq!(twice.closed_with().await, 3501);
    // A pong that nobody asked for harms nobody after the connect.
    let mut client = Client::connected(&app, &app.ana()).await;
    client.send_text("{}\n{}").await;
    client.send(&frame(PONG, b"what?")).await;
    client.is_quiet().await;
}

async fn a_message_of_exactly_the_limit_is_taken(backend: Backend) {
    let app = TestApp::with(backend, OPEN).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    for id in 2..5 {
        let command = json!({ "id": id, "subscribe": { "channel": format!("open:{id}") } });
        client.send_text(&padded(&command, LIMIT)).await;
        assert!(client.message().await["subscribe"].is_object());
    }
    // In two parts, in many, and in parts of nothing; with pings in between.
    for parts in [2, 97, LIMIT / 8] {
        let command = padded(&json!({ "id": parts, "unsubscribe": { "channel": "open:2" } }), LIMIT);
        let mut frames = frame(FIRST_TEXT, b"");
        for part in command.as_bytes().chunks(LIMIT.div_ceil(parts)) {
            frames.extend(frame(MIDDLE, part));
        }
        frames.extend(frame(PING, &[b'p'; 125]));
        frames.extend(frame(MIDDLE, b""));
        frames.extend(frame(LAST, b""));
        client.send(&frames).await;
        assert_eq!(client.next().await, Received::Pong(vec![b'p'; 125]), "{parts} parts");
        assert_eq!(client.message().await, json!({ "id": parts, "unsubscribe": {} }));
    }
    // A letter cut in two is whole in the end.
    let command = "{\"id\":9,\"rpc\":{\"method\":\"ä\"}}".as_bytes();
    let middle = command.iter().position(|byte| *byte == 0xc3).expect("ä") + 1;
    client.send(&[frame(FIRST_TEXT, &command[..middle]), frame(LAST, &command[middle..])].concat()).await;
    assert_eq!(client.message().await["error"]["code"], 108);
}

pub(super) async fn pings_and_close_are_answered_as_the_standard_says(backend: Backend) {
    let app = TestApp::start(backend).await;
    let mut client = Client::open(app.address()).await;
    for payload in [&b""[..], b"ping", &[0xff; 125]] {
        client.send(&frame(PING, payload)).await;
        assert_eq!(client.next().await, Received::Pong(payload.to_vec()));
    }
    client.connect(&app.ana()).await;
    // Whatever stands before a Close is answered, whatever stands behind it is not.
    let rpc = |id: u32| frame(TEXT, json!({ "id": id, "rpc": {} }).to_string().as_bytes());
    client.send(&[rpc(7), frame(CLOSE, &[0x03, 0xe8, b'b', b'y', b'e']), rpc(8)].concat()).await;
    assert_eq!(client.message().await["id"], 7);
    assert_eq!(client.closed_with().await, 1000);
    let mut wordless = Client::connected(&app, &app.ana()).await;
    wordless.send(&frame(CLOSE, b"")).await;
    assert_eq!(wordless.closed_with().await, 1000);
    // A client that just goes is over at once.
    let gone = Client::connected(&app, &app.ana()).await;
    app.until_metric("connections", "websocket", 1).await;
    drop(gone);
    app.until_metric("connections", "websocket", 0).await;
    assert_eq!(app.metric("disconnects", "3000").await, 3);
}

async fn a_client_may_speak_before_it_is_let_in(backend: Backend) {
    let app = TestApp::with(backend, OPEN).await;
    let connect = json!({ "id": 1, "connect": { "token": app.ana() } });
    let subscribe = json!({ "id": 2, "subscribe": { "channel": "open:x" } });
    let frames = [
        frame(TEXT, format!("{connect}\n{subscribe}").as_bytes()),
        frame(TEXT, padded(&json!({ "id": 3, "rpc": {} }), LIMIT).as_bytes()),
        frame(PING, b"there?"),
    ];
    // In one piece with the request, and cut at any place.
    let bytes = [upgrade().bytes(), frames.concat()].concat();
    let request = upgrade().bytes().len();
    for cut in [bytes.len(), request - 2, request + 1, request + 5, request + 300, request + 30_000] {
        let socket = TcpStream::connect(app.address()).await.expect("a connection");
        let mut client = Client::over(socket, &bytes[..cut.max(request)]).await;
        client.send(&bytes[cut.max(request)..]).await;
        for id in 1..=3 {
            assert_eq!(client.message().await["id"], id);
        }
        assert_eq!(client.next().await, Received::Pong(b"there?".to_vec()));
    }
}

pub(super) async fn a_client_that_says_nothing_is_not_kept(backend: Backend) {
    let patience = "client.stale_close_delay = \"500ms\"\nclient.ping_interval = \"1s\"
        client.pong_timeout = \"800ms\"\n";
    let app = TestApp::with(backend, patience).await;
    let mut silent = Client::open(app.address()).await;
    // A ping of the transport is no connect.
    silent.send(&frame(PING, b"")).await;
    assert_eq!(silent.closed().await, (3502, "stale".to_owned()));
    // Nor is a connect that was refused.
    let mut refused = Client::open(app.address()).await;
    let old = app.token(json!({ "sub": "ana", "exp": 1 }));
    assert_eq!(refused.error(json!({ "connect": { "token": old } })).await, 109);
    assert_eq!(refused.closed_with().await, 3502);
    // A pong of the transport is no answer to a ping of the protocol.
    let mut deaf = Client::connected(&app, &app.ana()).await;
    deaf.pongs = false;
    deaf.send(&frame(PONG, b"")).await;
    let mut alive = Client::connected(&app, &app.ana()).await;
    let (closed, over) = tokio::join!(deaf.closed(), async {
        tokio::time::timeout(std::time::Duration::from_millis(2_500), alive.next()).await.ok()
    });
    assert_eq!((closed, over), ((3012, "no pong".to_owned()), None));
}

/// As many subscribes as fit into one frame, then ten thousand commands over several.
pub(super) async fn a_flood_of_commands_is_answered_in_order(backend: Backend) {
    let app = TestApp::with(backend, OPEN).await;
    let mut client = Client::connected(&app, &app.ana()).await;
    let mut next = 2;
    let mut fill = |most: u32| {
        let mut text = String::new();
        while next <= most {
            let command = json!({ "id": next, "subscribe": { "channel": format!("open:{next}") } });
            let command = command.to_string();
            if text.len() + command.len() + 1 > LIMIT {
                break;
            }
            text = if text.is_empty() { command } else { text + "\n" + &command };
            next += 1;
        }
        (text, next)
    };
    let (first, end) = fill(u32::MAX);
    assert!(end > 1_000 && first.len() > LIMIT - 100);
    client.send_text(&first).await;
    for id in 2..end {
        answered(&mut client, id).await;
    }
    let mut frames = Vec::new();
    loop {
        let (text, _) = fill(10_001);
        if text.is_empty() {
            break;
        }
        frames.extend(frame(TEXT, text.as_bytes()));
    }
    client.send(&frames).await;
    for id in end..=10_001 {
        answered(&mut client, id).await;
    }
    assert_eq!(app.metric("subscriptions", "").await, 128);
    client.is_quiet().await;
}

async fn answered(client: &mut Client, id: u32) {
    let reply = client.message().await;
    assert_eq!(reply["id"], id, "{reply}");
    if id < 130 {
        assert!(reply["subscribe"].is_object(), "{reply}");
    } else {
        assert_eq!(reply["error"], json!({ "code": 106, "message": "limit exceeded" }));
    }
}

on_both!(
    broken_frames_have_their_codes,
    before_the_connect_nothing_else_will_do,
    a_message_of_exactly_the_limit_is_taken,
    pings_and_close_are_answered_as_the_standard_says,
    a_client_may_speak_before_it_is_let_in,
    a_client_that_says_nothing_is_not_kept,
    a_flood_of_commands_is_answered_in_order,
);
