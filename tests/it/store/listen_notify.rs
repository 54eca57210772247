//! LISTEN and NOTIFY between nodes on one Postgres, and what a listener learns when it may have
//! missed something.

use campanile::store::{ListenEvent, Location, MAX_NOTIFICATION_LENGTH, Options, StoreError};
use testkit::proxy::{Link, Proxy};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::app::Backend;
use crate::support::database::Database;
use crate::support::store::*;

async fn next(listener: &mut mpsc::Receiver<ListenEvent>) -> ListenEvent {
    let received = timeout(std::time::Duration::from_secs(10), listener.recv()).await;
    received.expect("something is received within ten seconds").expect("the listener lives")
}

fn notification(text: &str) -> ListenEvent {
    ListenEvent::Notification(text.to_owned())
}

async fn notify(store: &TestStore, texts: &[&str]) {
    store.store.notify(texts.iter().map(ToString::to_string).collect()).await.expect("it is sent");
}

#[test]
fn every_node_of_a_store_is_notified_and_no_other() {
    in_schema(async |location| {
        let ours = TestStore::open(options(location)).await;
        let another = Database::new(Backend::Postgres).await;
        let theirs = TestStore::open(options(another.location())).await;
        let mut listeners = [ours.store.listen(), ours.second().await.store.listen(), theirs.store.listen()];
        for listener in &mut listeners {
            assert_eq!(next(listener).await, ListenEvent::Connected);
        }
        notify(&ours, &["one", "two's", ""]).await;
        notify(&theirs, &["for us"]).await;
        for listener in &mut listeners[..2] {
            for text in ["one", "two's", ""] {
                assert_eq!(next(listener).await, notification(text));
            }
        }
        assert_eq!(next(&mut listeners[2]).await, notification("for us"));
    });
}

#[test]
fn a_listener_that_was_cut_off_learns_of_it_and_reconnects() {
    on_postgres(async |store| {
        let mut listener = store.store.listen();
        assert_eq!(next(&mut listener).await, ListenEvent::Connected);
        for _ in 0..3 {
            store.end_sessions().await;
            assert_eq!(next(&mut listener).await, ListenEvent::Lost);
            assert_eq!(next(&mut listener).await, ListenEvent::Connected);
            eventually("the store answers", async || store.store.probe().await.is_ok()).await;
            notify(&store, &["again"]).await;
            assert_eq!(next(&mut listener).await, notification("again"));
        }
    });
}

#[test]
fn a_server_that_is_silent_or_gone_is_noticed() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = &location else { panic!("a schema is Postgres's") };
        let proxy = Proxy::to(Database::server()).await.expect("a proxy");
        let through = url.replace(&Database::server().to_string(), &proxy.address.to_string());
        assert_ne!(*url, through);
        let direct_url = Some(through);
        let location = Location::Postgres { url: url.clone(), direct_url };
        let store = TestStore::open(Options { pool_size: 2, ..options(location) }).await;
        let mut listener = store.store.listen();
        assert_eq!(next(&mut listener).await, ListenEvent::Connected);
        for mode in [Link::Stalled, Link::Refused] {
            proxy.set(mode);
            assert_eq!(next(&mut listener).await, ListenEvent::Lost);
            notify(&store, &["nobody receives this"]).await;
            proxy.set(Link::Open);
            assert_eq!(next(&mut listener).await, ListenEvent::Connected);
            notify(&store, &["back"]).await;
            assert_eq!(next(&mut listener).await, notification("back"));
        }
    });
}

#[test]
fn a_listener_that_is_too_slow_learns_that_it_missed_something() {
    on_postgres(async |store| {
        let mut listener = store.store.listen();
        assert_eq!(next(&mut listener).await, ListenEvent::Connected);
        let (mut sent, mut received) = (0, 0);
        'kept_up: loop {
            let more: Vec<String> = (sent..sent + 3_000).map(|n| n.to_string()).collect();
            sent += more.len();
            store.store.notify(more).await.unwrap();
            eventually("the queue is full", async || listener.len() == listener.max_capacity()).await;
            while received < sent {
                match next(&mut listener).await {
                    ListenEvent::Notification(text) => assert_eq!(text, received.to_string()),
                    other => break 'kept_up assert_eq!(other, ListenEvent::Lost),
                }
                received += 1;
            }
        }
        // What is left of it may once more be too much.
        loop {
            match next(&mut listener).await {
                ListenEvent::Connected => notify(&store, &["after"]).await,
                ListenEvent::Notification(text) if text == "after" => break,
                ListenEvent::Notification(_) | ListenEvent::Lost => {}
            }
        }
    });
}

#[test]
fn a_text_that_is_too_long_is_not_sent() {
    on_postgres(async |store| {
        let longest = "x".repeat(MAX_NOTIFICATION_LENGTH - 1);
        let mut listener = store.store.listen();
        assert_eq!(next(&mut listener).await, ListenEvent::Connected);
        let refused = store.store.notify(vec!["short".to_owned(), format!("{longest}x")]).await;
        assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
        notify(&store, &[&longest]).await;
        assert_eq!(next(&mut listener).await, notification(&longest));
    });
}

#[test]
fn a_store_keeps_its_id_when_its_history_changes() {
    on_postgres(async |store| {
        let id = store.store.id().expect("Postgres has one").to_owned();
        assert!(id.len() == 12 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
        let generation = store.store.generation();
        store.execute("UPDATE meta SET value = 'another' WHERE key = 'marker'").await;
        let again = store.reopen().await;
        assert_ne!(again.store.generation(), generation);
        assert_eq!(again.store.id(), Some(&*id));
        let another = Database::new(Backend::Postgres).await;
        let other = TestStore::open(options(another.location())).await;
        assert_ne!(other.store.id(), Some(&*id));
        drop(other);
    });
}

#[test]
fn on_sqlite_nothing_is_received() {
    on_sqlite(async |store| {
        let mut listener = store.store.listen();
        notify(&store, &["alone"]).await;
        assert_eq!(listener.try_recv(), Err(mpsc::error::TryRecvError::Empty));
        assert_eq!(store.store.id(), None);
    });
}
