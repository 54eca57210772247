//! SIGTERM in the middle of a flood: the process finishes what it has begun, tells its streams and
//! goes with 0; the next one goes on for their readers without a gap or a repeat.

use std::sync::Arc;
use std::time::Duration;

use testkit::http::{self, Client, RequestBuilder as _};
use testkit::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::flood::{self, Book, Flood};
use super::reader::{Reader, Seen};
use super::snapshot::Snapshot;
use crate::support::app::signature;
use crate::support::client::{Answer, Request};
use crate::support::process::{Gateway, Home, WEBHOOK_SECRET, on_postgres, on_sqlite};

/// `server.drain_timeout` is 30 s for what hangs; an orderly end under load takes no such time.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn sigterm_loses_nothing_and_ends_soon_on_sqlite() {
    on_sqlite(stop_and_go_on);
}

#[test]
fn sigterm_loses_nothing_and_ends_soon_on_postgres() {
    on_postgres(stop_and_go_on);
}

#[test]
fn what_has_begun_is_finished_and_what_comes_is_refused() {
    on_sqlite(async |home| {
        let mut gateway = Gateway::start(&home).await;
        let mut idle = Client::connect(gateway.address).await.expect("the gateway accepts");
        let ready = || http::get("/readyz").with("");
        assert_eq!(idle.send(ready()).await.expect("an answer").status, 200);
        let mut busy = TcpStream::connect(gateway.address).await.expect("the gateway accepts");
        let body = flood::body(1);
        let request = Request::post("/webhooks/github")
            .header("X-GitHub-Event", "workflow_run")
            .header("X-GitHub-Delivery", &flood::id(1).to_string())
            .header("X-Hub-Signature-256", &signature(WEBHOOK_SECRET, body.as_bytes()))
            .header("Content-Type", "application/json")
            .header("Expect", "100-continue")
            .body(body.as_bytes())
            .bytes();
        let (begin, rest) = request.split_at(request.len() - body.len());
        busy.write_all(begin).await.expect("the gateway reads");
        assert_eq!(status(&mut busy).await, 100, "it has begun");

        gateway.signal(Signal::TERM).expect("it runs");
        let refused = async { while TcpStream::connect(gateway.address).await.is_ok() {} };
        timeout(SOON, refused).await.expect("clients are refused");
        let stopping = idle.send(ready()).await.expect("an answer");
        assert_eq!((stopping.status, stopping.header("connection")), (503, Some("close")));
        busy.write_all(rest).await.expect("the gateway reads");
        assert_eq!(status(&mut busy).await, 202);
        gateway.ended().await.expect("it ends with 0");
        assert_eq!(Snapshot::read(&home).await.count(), 1);
    });
}

async fn stop_and_go_on(home: Home) {
    let book = Arc::new(Book::default());
    let mut seen = Seen::default();
    for _ in 0..2 {
        let gateway = Gateway::start(&home).await;
        let follower = Reader::start(gateway.address, seen).await;
        let flood = Flood::start(&book, gateway.address);
        flood.answered(150).await;
        let took = gateway.stop().await;
        flood.over().await;
        seen = follower.ended().await;
        println!("drained in {took:?}, {} answered", book.count_answered());
        assert!(took < SOON, "the end took {took:?}");
        assert!(seen.closed, "the stream was told that the server goes");
        assert_eq!(book.take_refusals(), Vec::<String>::new());
    }
    let gateway = Gateway::start(&home).await;
    let mut follower = Reader::start(gateway.address, seen).await;
    book.post_unanswered(gateway.address).await;
    let kept = Snapshot::read(&home).await;
    kept.check_complete(&book);
    follower.reach(kept.head("org:acme")).await;
}

/// The status of the next head.
async fn status(stream: &mut TcpStream) -> u16 {
    let mut input = Vec::new();
    loop {
        if let Some((answer, _)) = Answer::parse_head(&input) {
            return answer.status;
        }
        assert!(stream.read_buf(&mut input).await.expect("an answer") > 0, "the answer breaks off");
    }
}
