//! Processes that are killed for real: what was answered 2xx is there, once and whole, whenever
//! the process died; epochs stay, readers go on from their cursors. The seeds are fixed and shown
//! when a test fails.

mod drain;
mod flood;
mod full;
mod reader;
mod signals;
mod snapshot;
mod sync;

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use testkit::process::Signal;

use crate::support::process::{Gateway, Home, READY_WITHIN, on_postgres, on_sqlite};
use flood::{Book, Flood};
use reader::{Reader, Seen};
use snapshot::Snapshot;

const KILLS: usize = 5;

#[test]
fn what_was_answered_outlives_kills_on_sqlite() {
    on_sqlite(async |home| kill_again_and_again(home, 20_261_121).await);
}

#[test]
fn what_was_answered_outlives_kills_on_postgres() {
    on_postgres(async |home| kill_again_and_again(home, 20_261_122).await);
}

#[test]
fn a_process_that_stood_still_has_lost_nothing_on_sqlite() {
    on_sqlite(stand_still);
}

#[test]
fn a_process_that_stood_still_has_lost_nothing_on_postgres() {
    on_postgres(stand_still);
}

#[test]
fn a_second_process_on_a_folder_is_refused() {
    on_sqlite(async |home| {
        let book = Arc::new(Book::default());
        let gateway = Gateway::start(&home).await;
        let flood = Flood::start(&book, gateway.address);
        flood.answered(20).await;
        let said = Gateway::refused(&home).await;
        assert!(said.contains("exit status: 1:"), "{said}");
        assert!(said.contains(&format!("{} is in use", home.data().display())), "{said}");
        flood.answered(20).await;
        assert_eq!(gateway.get("/readyz").await.status, 200);
        gateway.kill9().await;
        flood.over().await;
        Snapshot::read(&home).await.check(&book);
    });
}

/// Floods and kills by a seeded plan. After each start everything must agree with the book.
async fn kill_again_and_again(home: Home, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let book = Arc::new(Book::default());
    let mut seen = Seen::default();
    let mut gateway = Gateway::start(&home).await;
    let epoch = epoch(&gateway).await;
    let mut starts = vec![gateway.ready_after];
    for kill in 1..=KILLS {
        let follower = Reader::start(gateway.address, seen).await;
        let flood = Flood::start(&book, gateway.address);
        let (answers, more) = (random.random_range(20..250), random.random_range(0..20_000));
        println!("seed {seed}, kill {kill}: {more} µs after {answers} answers");
        flood.answered(answers).await;
        tokio::time::sleep(Duration::from_micros(more)).await;
        gateway.kill9().await;
        flood.over().await;
        seen = follower.ended().await;

        gateway = Gateway::start(&home).await;
        starts.push(gateway.ready_after);
        assert!(gateway.ready_after < READY_WITHIN, "ready after {:?}", gateway.ready_after);
        assert_eq!(self::epoch(&gateway).await, epoch, "the epoch outlives the process");
        let kept = Snapshot::read(&home).await;
        assert!(kept.epochs().1.iter().all(|part| part.is_empty()), "no channel got a new epoch");
        kept.check(&book);
        println!("  ready after {:?}, {} deliveries there", gateway.ready_after, kept.count());
    }

    let mut follower = Reader::start(gateway.address, seen).await;
    book.post_unanswered(gateway.address).await;
    let kept = Snapshot::read(&home).await;
    kept.check_complete(&book);
    assert_eq!(book.take_refusals(), Vec::<String>::new());
    follower.reach(kept.head("org:acme")).await;
    gateway.stop().await;
    let in_log: Vec<u64> = kept.events["org:acme"].iter().map(|(.., run)| *run).collect();
    assert_eq!(follower.ended().await.runs, in_log, "the reader saw what the log has");
    println!("seed {seed}: {} deliveries, starts {starts:?}", kept.count());
}

/// Stops the process in the middle of a flood as the kernel or a hypervisor may, and lets it go on.
async fn stand_still(home: Home) {
    let book = Arc::new(Book::default());
    let gateway = Gateway::start(&home).await;
    let mut follower = Reader::start(gateway.address, Seen::default()).await;
    let flood = Flood::start(&book, gateway.address);
    for _ in 0..3 {
        flood.answered(40).await;
        gateway.signal(Signal::STOP).expect("it runs");
        tokio::time::sleep(Duration::from_millis(300)).await;
        gateway.signal(Signal::CONT).expect("it runs");
    }
    flood.answered(40).await;
    gateway.kill9().await;
    flood.over().await;
    let gateway = Gateway::start(&home).await;
    book.post_unanswered(gateway.address).await;
    let kept = Snapshot::read(&home).await;
    kept.check_complete(&book);
    assert_eq!(book.take_refusals(), Vec::<String>::new());
    follower = Reader::start(gateway.address, follower.ended().await).await;
    follower.reach(kept.head("org:acme")).await;
}

/// The epoch of `org:acme` as a poll names it.
async fn epoch(gateway: &Gateway) -> String {
    let answer = gateway.get("/api/events?channel=org:acme&limit=1").await;
    let body = answer.json();
    let cursor = body["cursor"].as_str().unwrap_or_else(|| panic!("no cursor in {body}"));
    cursor.rsplit_once('.').expect("epoch and offset").0.to_owned()
}
