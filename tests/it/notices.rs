//! What nodes on one Postgres call out to each other, and what they are told when they may have
//! missed something.

use campanile::store::{Heard, NOTICE_TOO_LONG, Options, Place, StoreError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::database::Database;
use crate::support::proxy::{Mode, Proxy};
use crate::support::store::*;

async fn next(ear: &mut mpsc::Receiver<Heard>) -> Heard {
    let heard = timeout(std::time::Duration::from_secs(10), ear.recv()).await;
    heard.expect("something is heard within ten seconds").expect("the listener lives")
}

fn said(text: &str) -> Heard {
    Heard::Said(text.to_owned())
}

async fn say(store: &TestStore, texts: &[&str]) {
    store.store.notify(texts.iter().map(ToString::to_string).collect()).await.expect("it is said");
}

#[test]
fn every_node_of_a_store_hears_and_no_other() {
    in_schema(async |place| {
        let ours = TestStore::open(options(place)).await;
        in_another_schema(async |theirs| {
            let mut ears = [ours.store.listen(), ours.second().await.store.listen(), theirs.store.listen()];
            for ear in &mut ears {
                assert_eq!(next(ear).await, Heard::Listening);
            }
            say(&ours, &["one", "two's", ""]).await;
            say(&theirs, &["for us"]).await;
            for ear in &mut ears[..2] {
                for text in ["one", "two's", ""] {
                    assert_eq!(next(ear).await, said(text));
                }
            }
            assert_eq!(next(&mut ears[2]).await, said("for us"));
        })
        .await;
    });
}

/// A second store within the story of a first one.
async fn in_another_schema(story: impl AsyncFnOnce(TestStore)) {
    let server = std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL is missing: run tests/run");
    let schema = format!("other_{}", uuid::Uuid::new_v4().simple());
    let admin = session(&server).await;
    admin.batch_execute(&format!("CREATE SCHEMA {schema}")).await.unwrap();
    let url = with_setting(&server, "search_path", &schema);
    story(TestStore::open(options(Place::Postgres { url, direct_url: None })).await).await;
    admin.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}

#[test]
fn who_was_cut_off_is_told_and_hears_again() {
    on_postgres(async |store| {
        let mut ear = store.store.listen();
        assert_eq!(next(&mut ear).await, Heard::Listening);
        for _ in 0..3 {
            store.end_sessions().await;
            assert_eq!(next(&mut ear).await, Heard::Deaf);
            assert_eq!(next(&mut ear).await, Heard::Listening);
            eventually("the store answers", async || store.store.probe().await.is_ok()).await;
            say(&store, &["again"]).await;
            assert_eq!(next(&mut ear).await, said("again"));
        }
    });
}

#[test]
fn a_server_that_is_silent_or_gone_is_noticed() {
    in_schema(async |place| {
        let Place::Postgres { url, .. } = &place else { panic!("a schema is Postgres's") };
        let proxy = Proxy::to(Database::server()).await;
        let through = url.replace(&Database::server().to_string(), &proxy.address().to_string());
        assert_ne!(*url, through);
        let direct_url = Some(through);
        let place = Place::Postgres { url: url.clone(), direct_url };
        let store = TestStore::open(Options { pool_size: 2, ..options(place) }).await;
        let mut ear = store.store.listen();
        assert_eq!(next(&mut ear).await, Heard::Listening);
        for mode in [Mode::Silent, Mode::Cut] {
            proxy.set(mode);
            assert_eq!(next(&mut ear).await, Heard::Deaf);
            say(&store, &["nobody hears this"]).await;
            proxy.set(Mode::Pass);
            assert_eq!(next(&mut ear).await, Heard::Listening);
            say(&store, &["back"]).await;
            assert_eq!(next(&mut ear).await, said("back"));
        }
    });
}

#[test]
fn who_does_not_keep_up_is_told_what_it_is_worth() {
    on_postgres(async |store| {
        let mut ear = store.store.listen();
        assert_eq!(next(&mut ear).await, Heard::Listening);
        let (mut said, mut heard) = (0, 0);
        'kept_up: loop {
            let more: Vec<String> = (said..said + 3_000).map(|n| n.to_string()).collect();
            said += more.len();
            store.store.notify(more).await.unwrap();
            eventually("the queue is full", async || ear.len() == ear.max_capacity()).await;
            while heard < said {
                match next(&mut ear).await {
                    Heard::Said(text) => assert_eq!(text, heard.to_string()),
                    other => break 'kept_up assert_eq!(other, Heard::Deaf),
                }
                heard += 1;
            }
        }
        // What is left of it may once more be too much.
        loop {
            match next(&mut ear).await {
                Heard::Listening => say(&store, &["after"]).await,
                Heard::Said(text) if text == "after" => break,
                Heard::Said(_) | Heard::Deaf => {}
            }
        }
    });
}

#[test]
fn a_text_that_is_too_long_is_not_said() {
    on_postgres(async |store| {
        let longest = "x".repeat(NOTICE_TOO_LONG - 1);
        let mut ear = store.store.listen();
        assert_eq!(next(&mut ear).await, Heard::Listening);
        let refused = store.store.notify(vec!["short".to_owned(), format!("{longest}x")]).await;
        assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
        say(&store, &[&longest]).await;
        assert_eq!(next(&mut ear).await, said(&longest));
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
        in_another_schema(async |other| assert_ne!(other.store.id(), Some(&*id))).await;
    });
}

#[test]
fn sqlite_has_nobody_to_hear() {
    on_sqlite(async |store| {
        let mut ear = store.store.listen();
        say(&store, &["alone"]).await;
        assert_eq!(ear.try_recv(), Err(mpsc::error::TryRecvError::Empty));
        assert_eq!(store.store.id(), None);
    });
}
