//! Following a channel over HTTP: across broken connections, resets and expired tokens.

use super::*;

/// A stream in small chunks, whose last one is missing: the connection breaks.
fn stream(text: &str) -> String {
    let text = format!("retry: 1\n\n{text}");
    let chunk = |piece: &[u8]| format!("{:x}\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece));
    let chunks: String = text.as_bytes().chunks(7).map(chunk).collect();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
    )
}

fn event(data: u32) -> String {
    format!("event: message\nid: k.{data}\ndata: {data}\n\n")
}

fn own() -> Credential {
    Credential::Own { secret: Secret::new("hunter2"), claims: NewToken::default() }
}

/// How it ended, what it showed, what it remarked, and where it was.
struct Tailed {
    ended: anyhow::Result<()>,
    shown: String,
    remarks: String,
    cursor: Option<String>,
}

fn tail(server: &Scripted, credential: Credential, since: Option<&str>, count: Option<u64>) -> Tailed {
    let (remote, channel) = (server.remote(), ChannelName::parse("repo:acme/api").unwrap());
    let (mut shown, mut remarks) = (Vec::new(), Vec::new());
    let mut follower = Follower {
        remote: &remote,
        channel: &channel,
        credential,
        cursor: since.map(Into::into),
        left: count,
        output: Output { events: &mut shown, line: &line::json, remarks: &mut remarks },
        pauses: Pauses::new(),
    };
    let ended = block_on(async {
        let in_time = tokio::time::timeout(std::time::Duration::from_secs(20), follower.run()).await;
        in_time.expect("it does not go on for ever")
    });
    let cursor = follower.cursor;
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Tailed { ended, shown: text(shown), remarks: text(remarks), cursor }
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let half = "event: message\nid: k.3\ndata: not yet";
    let server = Scripted::start([
        stream(&(event(1) + &event(2) + half)),
        json("503 Service Unavailable", "{}"),
        stream(&(event(3) + &event(4) + &event(5))),
    ]);
    let tailed = tail(&server, own(), Some("k.0"), Some(4));
    tailed.ended.unwrap();
    assert_eq!(tailed.shown, "1\n2\n3\n4\n");
    assert_eq!(tailed.cursor.as_deref(), Some("k.4"));
    assert!(tailed.remarks.contains("connected again"), "{}", tailed.remarks);
    let requests = server.requests();
    let asked = |cursor: &str| {
        format!("GET /api/events/stream?channels=repo%3Aacme%2Fapi&cursor={cursor} HTTP/1.1\r\n")
    };
    assert!(requests[0].starts_with(&asked("k.0")), "{}", requests[0]);
    assert!(requests[1].starts_with(&asked("k.2")), "{}", requests[1]);
    assert!(requests[2].starts_with(&asked("k.2")), "{}", requests[2]);
    assert!(requests[0].to_lowercase().contains("\r\nauthorization: bearer ey"), "{}", requests[0]);
    assert!(requests[0].to_lowercase().contains("\r\naccept: text/event-stream\r\n"), "{}", requests[0]);
}

#[test]
fn a_stream_that_broke_before_its_first_event_is_taken_up_at_its_opening() {
    let server = Scripted::start([stream("id: k.7\n\n: ping\n\n"), stream(&event(8))]);
    let tailed = tail(&server, own(), None, Some(1));
    assert_eq!(tailed.shown, "8\n");
    let requests = server.requests();
    assert!(requests[0].contains("stream?channels=repo%3Aacme%2Fapi HTTP/1.1"), "{}", requests[0]);
    assert!(requests[1].contains("&cursor=k.7 "), "{}", requests[1]);
}

#[test]
fn a_reset_is_reported_and_the_stream_goes_on() {
    let reset = "event: stream:reset\nid: m.2\ndata: {\"channel\":\"repo:acme/api\",\"oldest\":\"m.0\",\"head\":\"m.2\"}\n\n";
    let server = Scripted::start([stream(&(reset.to_owned() + &event(3)))]);
    let tailed = tail(&server, own(), Some("k.9"), Some(1));
    assert_eq!(tailed.shown, "3\n");
    assert!(tailed.remarks.contains("campanile tail repo:acme/api --since m.0"), "{}", tailed.remarks);
}

#[test]
fn an_own_token_is_renewed_and_a_given_one_ends_the_matter() {
    let expired = event(1) + "event: stream:expired\ndata: {}\n\n";
    let server = Scripted::start([stream(&expired), stream(&event(2))]);
    assert_eq!(tail(&server, own(), None, Some(2)).shown, "1\n2\n");

    let tailed =
        tail(&Scripted::start([stream(&expired)]), Credential::Given(Secret::new("a.b.c")), None, None);
    assert!(tailed.ended.unwrap_err().to_string().contains("the token has expired"));
    assert_eq!(tailed.cursor.as_deref(), Some("k.1"));
}

#[test]
fn what_will_not_change_is_final() {
    let cases = [
        (
            "401 Unauthorized",
            r#"{"error":{"code":"invalid_token","message":"invalid token"}}"#,
            "invalid token",
        ),
        (
            "403 Forbidden",
            r#"{"error":{"code":"forbidden","message":"not for you"}}"#,
            "not for you (forbidden)",
        ),
        (
            "400 Bad Request",
            r#"{"error":{"code":"bad_cursor","message":"malformed"}}"#,
            "malformed (bad_cursor)",
        ),
        ("404 Not Found", "", "404 Not Found"),
        ("301 Moved Permanently", "", "301 Moved Permanently"),
        ("200 OK", "{}", "this is no stream of events"),
    ];
    for (status, body, said) in cases {
        let tailed = tail(&Scripted::start([json(status, body)]), own(), None, None);
        let error = format!("{:#}", tailed.ended.unwrap_err());
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        assert_eq!(tailed.remarks, "");
    }
}

#[test]
fn a_gateway_that_was_never_there_is_not_waited_for() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Scripted { base: format!("http://{free}"), requests: std::thread::spawn(Vec::new) };
    let error = tail(&gone, own(), None, None).ended.unwrap_err().to_string();
    assert!(error.contains("is `campanile serve` running?"), "{error}");
}
