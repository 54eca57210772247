//! A disk that takes no more: webhooks are put off, not lost, and they are taken again as soon as
//! there is room, without a restart. The disk is played by the limit of a file's size.

use std::process::Command;
use std::sync::Arc;

use super::flood::{Book, Flood};
use super::reader::{Reader, Seen};
use super::snapshot::Snapshot;
use crate::support::process::{Gateway, Home};

/// Enough for the schema and a few hundred deliveries.
const LIMIT: &str = "--fsize=1500000:unlimited";

#[tokio::test]
async fn a_full_disk_puts_webhooks_off_until_there_is_room() {
    let home = Home::new(None);
    // The signal that comes with the limit would kill the process; a full disk sends none.
    let limited = ["sh", "-c", "trap '' XFSZ; exec prlimit \"$@\"", "sh", LIMIT];
    let gateway = Gateway::start_under(&home, &limited).await;
    let book = Arc::new(Book::default());
    let mut follower = Reader::start(gateway.address, Seen::default()).await;
    let flood = Flood::start(&book, gateway.address);
    // Every connection ends with the first 503.
    flood.over().await;
    let refusals = book.take_refusals();
    assert!(refusals.iter().all(|refusal| refusal.starts_with("503 ")), "{refusals:?}");
    assert!(!refusals.is_empty() && book.count_answered() > 0, "there was some room at first");
    Snapshot::read(&home).await.check(&book);

    let pid = gateway.id().expect("it runs").to_string();
    let room = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:unlimited"]).status();
    assert!(room.expect("prlimit runs").success());
    book.post_unanswered(gateway.address).await;
    book.post_new(gateway.address, 10).await;
    let kept = Snapshot::read(&home).await;
    kept.check_complete(&book);
    follower.reach(kept.head("org:acme")).await;
}
