//! SIGTERM in the middle of a flood: the process finishes what it has begun, tells its streams and
//! goes with 0; the next one goes on for their readers without a gap or a repeat.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::flood::{self, Book, Flood};
use super::reader::{Reader, Seen};
use super::snapshot::Snapshot;
use crate::support::process::{Gateway, Home, on_postgres, on_sqlite};
use crate::support::wire::{Wire, text};

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
        let gateway = Gateway::start(&home).await;
        let mut idle = Wire::to(gateway.address).await.expect("the gateway accepts");
        assert_eq!(idle.ask("GET /readyz", "", "").await.expect("an answer").status, 200);
        let mut busy = Wire::to(gateway.address).await.expect("the gateway accepts");
        let (headers, body) = flood::request(1);
        let headers = format!("{headers}Expect: 100-continue\r\n");
        let request = text("POST /webhooks/github", &headers, &body);
        let (begin, rest) = request.split_at(request.len() - body.len());
        busy.send(begin).await.expect("the gateway reads");
        assert_eq!(busy.head().await.expect("a word").0, 100, "it has begun");

        gateway.signal("TERM");
        let refused = async { while Wire::to(gateway.address).await.is_ok() {} };
        timeout(SOON, refused).await.expect("clients are refused");
        let stopping = idle.ask("GET /readyz", "", "").await.expect("an answer");
        assert_eq!((stopping.status, stopping.header("connection")), (503, Some("close")));
        busy.send(rest).await.expect("the gateway reads");
        assert_eq!(busy.answer().await.expect("an answer").status, 202);
        assert_eq!(gateway.ended().await, Some(0));
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
        let (code, took) = gateway.terminate().await;
        flood.over().await;
        seen = follower.ended().await;
        println!("drained in {took:?}, {} answered", book.count_answered());
        assert_eq!(code, Some(0));
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
