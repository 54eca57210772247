//! A connection of SQLite's writer remembers the heads that it moved. Whatever else moves a head or
//! changes an epoch, or undoes a move, the next event gets the next place of the log as it is.

use std::time::Duration;

use campanile::domain::channel::ChannelName;
use campanile::domain::options::Retention;
use campanile::domain::position::{Epoch, Position};
use campanile::publish::{
    Apply as _, Committed, Dedup, NewRow, PublishError, Publisher, UnitOfWork, Version,
};
use campanile::store::{Location, Result, Transaction, generation, log};
use diesel::prelude::*;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::support::store::*;

on_both![
    a_head_that_others_moved_is_counted_on,
    what_was_trimmed_or_cleared_keeps_its_numbers,
    another_epoch_is_the_epoch_of_the_next_event,
    a_move_that_was_rolled_back_is_forgotten,
    a_commit_that_fails_gives_its_offsets_back,
    many_channels_move_by_ones_and_together,
];

/// A row that breaks a constraint after the event was appended.
struct NoRow;

impl NewRow for NoRow {
    fn insert<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<()>> {
        async move { Change::broken().apply(tx).await.map(drop) }.boxed()
    }
}

async fn append_elsewhere(store: &TestStore, channel: &ChannelName) {
    let sql = |id: &str| {
        format!(
            "UPDATE channels SET head = head + 1 WHERE name = '{channel}';
             INSERT INTO events (channel, \"offset\", event_id, kind, data, created_at)
                 SELECT name, head, {id}, 'message', '0', updated_at FROM channels WHERE name = '{channel}'"
        )
    };
    match &store.options.location {
        Location::Sqlite { path } => {
            let mut other = SqliteConnection::establish(&path.to_string_lossy()).unwrap();
            let sql = format!("BEGIN IMMEDIATE; {}; COMMIT", sql("randomblob(16)"));
            diesel::connection::SimpleConnection::batch_execute(&mut other, &sql).unwrap();
        }
        Location::Postgres { .. } => {
            store.session().await.batch_execute(&sql("gen_random_uuid()")).await.unwrap();
        }
    }
}

async fn next(publisher: &Publisher, channel: &ChannelName) -> Position {
    placed(publisher.commit(unit(channel, "1")).await)
}

fn placed(committed: Result<Committed, PublishError>) -> Position {
    match committed {
        Ok(Committed::Done(mut positions)) => positions.pop().expect("the unit has an event"),
        other => panic!("{other:?}"),
    }
}

async fn a_head_that_others_moved_is_counted_on(store: TestStore) {
    let news = channel("news");
    let (publisher, _) = store.publisher();
    assert_eq!(next(&publisher, &news).await.offset, 1);
    append_elsewhere(&store, &news).await;
    assert_eq!(next(&publisher, &news).await.offset, 3);
    append_elsewhere(&store, &news).await;
    let keyed = UnitOfWork {
        dedup: Dedup::by_key(news.clone(), "once".into(), store.store.now()),
        ..unit(&news, "2")
    };
    assert_eq!(placed(publisher.commit(keyed).await).offset, 5);
    append_elsewhere(&store, &news).await;
    let versioned =
        UnitOfWork { version: Some(Version { number: 1, epoch: String::new() }), ..unit(&news, "3") };
    assert_eq!(placed(publisher.commit(versioned).await).offset, 7);
    assert_eq!(store.whole_log(&news).await.len(), 7);
}

async fn what_was_trimmed_or_cleared_keeps_its_numbers(store: TestStore) {
    let news = channel("news");
    let (publisher, _) = store.publisher();
    for offset in 1..=5 {
        assert_eq!(next(&publisher, &news).await.offset, offset);
    }
    let name = news.clone();
    let trim = store.write_log(move |mut tx| {
        async move {
            let kept = Retention { events: 2, age: Duration::from_secs(3600) };
            let bounds = tx.bounds(&name, kept).await?;
            log::trim(&mut tx, &name, &bounds, 500).await
        }
        .boxed()
    });
    assert_eq!(trim.await, 3);
    assert_eq!(next(&publisher, &news).await.offset, 6);
    campanile::history::remove(&store.store, news.clone()).await.unwrap();
    assert_eq!(next(&publisher, &news).await.offset, 7);
    assert_eq!(offsets(&store.stored(&news).await), [7]);
}

async fn another_epoch_is_the_epoch_of_the_next_event(store: TestStore) {
    let news = channel("news");
    let (publisher, _) = store.publisher();
    let first = next(&publisher, &news).await;
    let (name, old) = (news.clone(), first.epoch.clone());
    store
        .write_log(move |mut tx| async move { log::leave_epoch(&mut tx, &name, &old, "aaaa").await }.boxed())
        .await;
    let epoch = Epoch::parse(&format!("{}-aaaa", first.epoch)).unwrap();
    assert_eq!(next(&publisher, &news).await, Position::new(epoch, 2));
    store
        .write_log(|mut tx| {
            async move { generation::renew(&mut tx, &generation::new_marker()).await }.boxed()
        })
        .await;
    store.store.probe().await.unwrap();
    let renewed = store.store.generation();
    assert_ne!(renewed, first.epoch);
    let epoch = Epoch::parse(&format!("{renewed}-aaaa")).unwrap();
    assert_eq!(next(&publisher, &news).await, Position::new(epoch, 3));
    assert_eq!(next(&publisher, &channel("other")).await, Position::new(renewed, 1));
}

async fn a_move_that_was_rolled_back_is_forgotten(store: TestStore) {
    let news = channel("news");
    for round in 0..3 {
        let bad = UnitOfWork { rows: vec![Box::new(NoRow)], ..unit(&news, "2") };
        let mut outcomes = store.commit_together(vec![unit(&news, "1"), bad]).await;
        assert!(matches!(outcomes.pop(), Some(Err(PublishError::Failed(_)))));
        assert_eq!(placed(outcomes.pop().unwrap()).offset, 2 * round + 1);
        assert_eq!(placed(Ok(store.commit(unit(&news, "3")).await)).offset, 2 * round + 2);
    }
    assert_eq!(store.whole_log(&news).await.len(), 6);
}

/// The constraint is checked by the commit itself, when the head has been moved and the event inserted.
async fn a_commit_that_fails_gives_its_offsets_back(store: TestStore) {
    store.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)").await;
    store
        .execute(
            "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)",
        )
        .await;
    let news = channel("news");
    let (publisher, recorded) = store.publisher();
    for offset in 1..=3 {
        let statements = vec!["INSERT INTO children (parent) VALUES (7)".to_owned()];
        let orphan = Change { order: 1, statements, end: End::Proceed }.on(unit(&news, "2"));
        assert!(matches!(publisher.commit(orphan).await, Err(PublishError::Unconfirmed(_))));
        assert_eq!(next(&publisher, &news).await.offset, offset);
    }
    assert_eq!(recorded.checks(), [news.clone(), news.clone(), news.clone()]);
    assert_eq!(store.whole_log(&news).await.len(), 3);
}

async fn many_channels_move_by_ones_and_together(store: TestStore) {
    let names: Vec<_> = (0..40).map(|n| channel(&format!("news:{n}"))).collect();
    let (publisher, _) = store.publisher();
    for round in 0..3 {
        for name in &names[..20] {
            assert_eq!(next(&publisher, name).await.offset, 2 * round + 1);
        }
        let all = UnitOfWork::of(names.iter().map(|name| event(name, "1")).collect());
        let Ok(Committed::Done(positions)) = publisher.commit(all).await else { panic!("it commits") };
        let places: Vec<u64> = positions.iter().map(|position| position.offset).collect();
        assert_eq!(places[..20], [2 * round + 2; 20]);
        assert_eq!(places[20..], [round + 1; 20]);
    }
    for name in &names {
        store.whole_log(name).await;
    }
}
