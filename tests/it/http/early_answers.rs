//! Who is refused before its body is read, reads the refusal: the node goes on reading for a while
//! (RFC 9112 §9.6), within bounds.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::app::{Backend, TestApp};
use crate::support::client::{Answer, DEADLINE, Request};

/// More than any socket's buffers hold.
const LONG: usize = 16 << 20;

/// A request whose sender does not listen before it has said everything.
struct Sender(TcpStream);

impl Sender {
    async fn begin(address: SocketAddr, head: &str) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(head.as_bytes()).await.expect("written");
        Self(socket)
    }

    /// Sends `count` bytes more; fails when the node has torn the connection down.
    async fn send(&mut self, count: usize) -> std::io::Result<()> {
        let body = vec![b'x'; count];
        timeout(DEADLINE, self.0.write_all(&body)).await.expect("somebody reads")
    }

    /// All that the node has said, to the end of the connection.
    async fn answer(mut self) -> std::io::Result<Answer> {
        let mut said = Vec::new();
        timeout(DEADLINE, self.0.read_to_end(&mut said)).await.expect("an end in time")?;
        let (head, length) = Answer::parse_head(&said).expect("an answer");
        Ok(Answer { body: said[length..].to_vec(), ..head })
    }
}

fn long(request: Request) -> String {
    request.header("Content-Length", &LONG.to_string()).head() + "\r\n"
}

#[tokio::test]
async fn whoever_is_refused_early_reads_the_refusal_at_every_door() {
    let app = TestApp::with(Backend::Sqlite, "uni_sse.enabled = false\nlimits.webhook_body = \"1MiB\"").await;
    let foreign = Request::post("/api/publish").header("Origin", "https://elsewhere.example");
    let upgrade = Request::get("/nowhere").header("Connection", "Upgrade").header("Upgrade", "websocket");
    let chunked = Request::post("/webhooks/github").header("Transfer-Encoding", "chunked");
    let doors = [
        (long(Request::post("/webhooks/github")), 401),
        (long(app.webhook("star", "")), 413),
        (long(Request::post("/api/publish")), 401),
        (long(Request::post("/api/builds/7/events")), 401),
        (long(Request::post("/api/builds/7/events").bearer(&app.ana())), 400),
        (long(Request::post("/emulation")), 413),
        (long(Request::post("/emulation").header("Content-Type", "application/octet-stream")), 415),
        (long(Request::post("/connection/http_stream")), 413),
        (long(Request::post("/connection/uni_sse")), 404),
        (long(Request::post("/nowhere")), 404),
        (long(Request::new("PUT", "/readyz")), 405),
        (long(foreign), 403),
        (upgrade.head() + "\r\n", 404),
        (chunked.head() + "\r\n1000000\r\n", 401),
        // Not even a request, and a head without an end.
        ("NONSENSE\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(200_000)), 431),
    ];
    for (head, status) in doors {
        let name = head.lines().next().unwrap_or_default().to_owned();
        let mut sender = Sender::begin(app.address(), &head).await;
        sender.send(LONG).await.unwrap_or_else(|error| panic!("{name} ({status}): {error}"));
        let answer = sender.answer().await.unwrap_or_else(|error| panic!("{name} ({status}): {error}"));
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
    }
    app.until_metric("limit_used", "lingering", 0).await;
}

/// A sender that has been refused, and could go on.
async fn refused(app: &TestApp) -> Sender {
    let mut sender = Sender::begin(app.address(), &long(Request::post("/webhooks/github"))).await;
    let mut first = [0; 12];
    sender.0.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 401");
    sender
}

/// Sends until the connection is torn down.
async fn cut(mut sender: Sender) {
    while sender.send(64 << 10).await.is_ok() {}
}

#[tokio::test]
async fn it_listens_to_so_many_bytes_of_what_it_has_refused() {
    let app = TestApp::with(Backend::Sqlite, "limits.lingering_size = \"1MiB\"").await;
    cut(refused(&app).await).await;
    app.until_metric("lingering_cut", "size", 1).await;
    app.until_metric("limit_used", "lingering", 0).await;
}

#[tokio::test]
async fn it_listens_so_long() {
    let app = TestApp::with(Backend::Sqlite, "limits.lingering_timeout = \"200ms\"").await;
    let silent = refused(&app).await;
    app.until_metric("lingering_cut", "time", 1).await;
    app.until_metric("limit_used", "lingering", 0).await;
    cut(silent).await;
}

#[tokio::test]
async fn it_listens_to_so_many_at_once_and_to_the_newest() {
    let options = "limits.lingering_connections = 2\nlimits.lingering_timeout = \"1h\"";
    let app = TestApp::with(Backend::Sqlite, options).await;
    let oldest = refused(&app).await;
    app.until_metric("limit_used", "lingering", 1).await;
    let second = refused(&app).await;
    app.until_metric("limit_used", "lingering", 2).await;
    let mut newest = refused(&app).await;
    app.until_metric("lingering_cut", "evicted", 1).await;
    cut(oldest).await;
    newest.send(LONG).await.expect("it listens");
    drop((second, newest));
    app.until_metric("limit_used", "lingering", 0).await;
}

#[tokio::test]
async fn whoever_has_said_everything_keeps_its_connection() {
    let app = TestApp::start(Backend::Sqlite).await;
    let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
    for _ in 0..3 {
        let forged = app.webhook("star", "{}").header("X-Hub-Signature-256", &format!("sha256={:064}", 0));
        let request = format!("{}Content-Length: 2\r\n\r\n{{}}", forged.head());
        socket.write_all(request.as_bytes()).await.expect("written");
        let answer = Answer::read(&mut socket).await.refused(401, "signature_invalid");
        assert_eq!(answer.header("connection"), None);
    }
}
