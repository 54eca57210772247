//! The publisher: a unit of work is committed whole or not at all, counts once under its name,
//! and fails alone.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use campanile::bus::{Content, HubEvent};
use campanile::domain::channel::ChannelName;
use campanile::domain::event::NewEvent;
use campanile::domain::position::Position;
use campanile::publish::{Apply, Committed, Dedup, NewRow, PublishError, Reaction, UnitOfWork, Verdict};
use campanile::store::log::IdempotencyKey;
use campanile::store::{LockKey, Options, Result, Transaction, Ts};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::support::store::*;

on_both![
    what_is_answered_is_stored_and_announced,
    units_that_wait_together_share_a_transaction,
    a_delivery_is_taken_once,
    a_delivery_that_comes_twice_at_once_is_taken_once,
    a_key_counts_once_on_its_channel,
    a_key_that_comes_twice_at_once_counts_once,
    an_expired_key_is_free_again,
    a_known_key_changes_no_state,
    a_key_that_comes_twice_at_once_changes_state_once,
    equal_keys_of_a_batch_cost_one_more_transaction,
    a_bad_unit_costs_its_batch_few_transactions,
    a_refused_unit_appends_nothing_and_keeps_its_mates,
    a_bad_unit_fails_alone,
    a_unit_over_several_channels_is_all_or_nothing,
    events_that_are_not_kept_have_no_place,
    what_is_not_kept_goes_out_in_its_order,
    a_change_without_events_is_a_unit_too,
    changes_of_state_run_in_their_order,
    one_unit_too_many_is_refused_at_once,
    a_publisher_without_handles_finishes_its_queue,
    rows_of_a_reaction_are_committed_once_with_their_event,
    a_row_that_cannot_be_inserted_fails_its_unit_alone,
];

fn key(channel: &ChannelName, key: &str, expires_at: Ts) -> Dedup {
    Dedup::Key(IdempotencyKey { channel: channel.clone(), key: key.into(), expires_at })
}

fn in_a_minute(store: &TestStore) -> Ts {
    store.store.timestamp().plus(Duration::from_secs(60))
}

fn done(positions: &[Position]) -> Committed {
    Committed::Done(positions.to_vec())
}

async fn what_is_answered_is_stored_and_announced(store: TestStore) {
    let (repo, org) = (channel("repo:acme/api"), channel("org:acme"));
    let (publisher, recorded) = store.publisher();
    for n in 1..=3u64 {
        let events = vec![event(&repo, &n.to_string()), event(&org, &n.to_string())];
        let committed = publisher.commit(UnitOfWork::of(events)).await.unwrap();
        let epoch = store.store.generation();
        assert_eq!(committed, done(&[Position::new(epoch.clone(), n), Position::new(epoch, n)]));
    }
    for channel in [&repo, &org] {
        let told: Vec<_> = recorded.logged(channel).into_iter().map(|(_, event)| event).collect();
        assert_eq!(told, store.whole_log(channel).await);
    }
    assert!(recorded.checks().is_empty());
}

async fn units_that_wait_together_share_a_transaction(store: TestStore) {
    let news = channel("news");
    let (publisher, recorded, work) = store.idle_publisher();
    let outcomes = commit_together(&publisher, (1..=300).map(|n| unit(&news, &n.to_string())), work).await;
    let log = store.whole_log(&news).await;
    assert_eq!(log.len(), 300);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let Ok(Committed::Done(positions)) = outcome else { panic!("{outcome:?}") };
        let stored = &log[positions[0].offset as usize - 1];
        assert_eq!(*stored.data, *(n + 1).to_string(), "the answer names the event's own place");
    }
    assert_eq!(recorded.events().len(), 2, "256 units and the rest");
}

async fn a_delivery_is_taken_once(store: TestStore) {
    let news = channel("news");
    let deliver = |id: &str| UnitOfWork {
        dedup: Dedup::Delivery(Box::new(delivery(id, store.store.now()))),
        ..unit(&news, "1")
    };
    assert!(matches!(store.commit(deliver("first")).await, Committed::Done(_)));
    assert_eq!(store.commit(deliver("first")).await, Committed::Duplicate(None));
    assert!(matches!(store.commit(deliver("second")).await, Committed::Done(_)));
    assert_eq!(store.commit(deliver("first")).await, Committed::Duplicate(None));
    assert_eq!((store.whole_log(&news).await.len(), store.count("webhook_deliveries").await), (2, 2));
}

async fn a_delivery_that_comes_twice_at_once_is_taken_once(store: TestStore) {
    store.prepare_marks().await;
    let news = channel("news");
    let units = ["b", "a", "b", "a", "b"].iter().enumerate().map(|(i, id)| {
        let dedup = Dedup::Delivery(Box::new(delivery(id, store.store.now())));
        Change::mark(0, &i.to_string()).on(UnitOfWork { dedup, ..unit(&news, &i.to_string()) })
    });
    let outcomes = store.commit_together(units.collect()).await;
    let fresh: Vec<bool> = outcomes.into_iter().map(|o| matches!(o.unwrap(), Committed::Done(_))).collect();
    assert_eq!(fresh, [true, true, false, false, false], "the first of each id");
    assert_eq!(store.marks().await, "01");
    assert_eq!(store.whole_log(&news).await.len(), 2);
}

async fn a_key_counts_once_on_its_channel(store: TestStore) {
    let (news, other) = (channel("news"), channel("other"));
    let keyed = |channel: &ChannelName, data: &str| UnitOfWork {
        dedup: key(channel, "k", in_a_minute(&store)),
        ..UnitOfWork::of(vec![event(&other, data), event(channel, data), event(channel, data)])
    };
    let Committed::Done(first) = store.commit(keyed(&news, "1")).await else { panic!("it is new") };
    let known = Committed::Duplicate(Some(first[1].clone()));
    assert_eq!(store.commit(keyed(&news, "2")).await, known, "where its channel's first event is");
    let Committed::Done(elsewhere) = store.commit(keyed(&other, "3")).await else { panic!("it is new") };
    assert_eq!(elsewhere.iter().map(|p| p.offset).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(store.commit(keyed(&news, "4")).await, known);
    assert_eq!((store.whole_log(&news).await.len(), store.whole_log(&other).await.len()), (2, 4));
}

async fn a_key_that_comes_twice_at_once_counts_once(store: TestStore) {
    let (news, other) = (channel("news"), channel("other"));
    let units = [(&news, "a"), (&news, "b"), (&other, "a"), (&news, "a"), (&news, "b"), (&other, "a")];
    let expires = in_a_minute(&store);
    let units =
        units.map(|(channel, name)| UnitOfWork { dedup: key(channel, name, expires), ..unit(channel, "1") });
    let outcomes = store.commit_together(units.into()).await;
    let epoch = store.store.generation();
    let at = |offset| Position::new(epoch.clone(), offset);
    let known = |offset| Committed::Duplicate(Some(at(offset)));
    let expected = [done(&[at(1)]), done(&[at(2)]), done(&[at(1)]), known(1), known(2), known(1)];
    assert_eq!(outcomes.into_iter().map(|o| o.unwrap()).collect::<Vec<_>>(), expected);
    assert_eq!((store.whole_log(&news).await.len(), store.whole_log(&other).await.len()), (2, 1));
}

async fn an_expired_key_is_free_again(store: TestStore) {
    let news = channel("news");
    let until = |expires_at| UnitOfWork { dedup: key(&news, "k", expires_at), ..unit(&news, "1") };
    let past = ago(&store.store, Duration::from_secs(1));
    assert!(matches!(store.commit(until(past)).await, Committed::Done(_)));
    assert!(matches!(store.commit(until(in_a_minute(&store))).await, Committed::Done(_)));
    let known = Committed::Duplicate(Some(store.head(&news).await));
    assert_eq!(store.commit(until(in_a_minute(&store))).await, known, "the newer one counts now");
    assert_eq!(store.whole_log(&news).await.len(), 2);
}

async fn a_known_key_changes_no_state(store: TestStore) {
    store.prepare_marks().await;
    let news = channel("news");
    let dedup = || key(&news, "k", in_a_minute(&store));
    let marked = |mark: &str| Change::mark(0, mark).on(UnitOfWork { dedup: dedup(), ..unit(&news, "1") });
    assert!(matches!(store.commit(marked("a")).await, Committed::Done(_)));
    assert!(matches!(store.commit(marked("b")).await, Committed::Duplicate(Some(_))));
    assert_eq!(store.marks().await, "a");
}

async fn a_key_that_comes_twice_at_once_changes_state_once(store: TestStore) {
    store.prepare_marks().await;
    let news = channel("news");
    let expires = in_a_minute(&store);
    // The first with the key refuses, so the second is the one that counts.
    let units = [
        ("a", "x", End::Refuse),
        ("b", "x", End::Proceed),
        ("c", "x", End::Proceed),
        ("d", "y", End::Proceed),
    ];
    let units = units.map(|(mark, name, end)| {
        let change = match end {
            End::Refuse => Change { order: 9, statements: Vec::new(), end },
            end => Change::mark(9 - i64::from(mark.as_bytes()[0] - b'a'), mark).ending(end),
        };
        change.on(UnitOfWork { dedup: key(&news, name, expires), ..unit(&news, "1") })
    });
    let outcomes: Vec<_> =
        store.commit_together(units.into()).await.into_iter().map(|o| o.unwrap()).collect();
    assert_eq!(outcomes[0], Committed::Refused);
    assert!(matches!(outcomes[1], Committed::Done(_)), "{outcomes:?}");
    assert!(matches!(outcomes[2], Committed::Duplicate(Some(_))));
    assert!(matches!(outcomes[3], Committed::Done(_)));
    let mut marks: Vec<char> = store.marks().await.chars().collect();
    marks.sort_unstable();
    assert_eq!(marks, ['b', 'd']);
    assert_eq!(store.whole_log(&news).await.len(), 2);
}

fn commits(store: &TestStore) -> u64 {
    store.options.metrics.commits.get()
}

async fn equal_keys_of_a_batch_cost_one_more_transaction(store: TestStore) {
    store.prepare_marks().await;
    let (news, expires) = (channel("news"), in_a_minute(&store));
    let keyed = |n: i64| {
        let unit = UnitOfWork { dedup: key(&news, "x", expires), ..unit(&news, "1") };
        Change::mark(n, "k").on(unit)
    };
    let before = commits(&store);
    let units = (0..20).flat_map(|n| [keyed(n), unit(&news, "2")]).collect();
    let outcomes = store.commit_together(units).await;
    assert_eq!(commits(&store) - before, 2, "one for what is new, one for all that is known");
    let known = |outcome: &Result<Committed, _>| matches!(outcome, Ok(Committed::Duplicate(Some(_))));
    assert_eq!(outcomes.iter().filter(|outcome| known(outcome)).count(), 19, "{outcomes:?}");
    assert_eq!((store.marks().await, store.whole_log(&news).await.len()), ("k".to_owned(), 21));
}

async fn a_bad_unit_costs_its_batch_few_transactions(store: TestStore) {
    let news = channel("news");
    let before = commits(&store);
    let mut units: Vec<_> = (0..64).map(|n| unit(&news, &n.to_string())).collect();
    units[40] = Change::broken().on(unit(&news, "0"));
    let outcomes = store.commit_together(units).await;
    assert_eq!(commits(&store) - before, 6, "32, 16, 8, 4, 2 and 1");
    assert!(matches!(outcomes[40], Err(PublishError::Failed(_))));
    assert_eq!(store.whole_log(&news).await.len(), 63);
}

async fn a_refused_unit_appends_nothing_and_keeps_its_mates(store: TestStore) {
    store.prepare_marks().await;
    let news = channel("news");
    let refuse = Change { order: 2, statements: Vec::new(), end: End::Refuse };
    let dedup = Dedup::Delivery(Box::new(delivery("refused", store.store.now())));
    let outcomes = store
        .commit_together(vec![
            Change::mark(1, "a").on(unit(&news, "\"a\"")),
            refuse.on(UnitOfWork { dedup, ..unit(&news, "\"no\"") }),
            Change::mark(3, "c").on(unit(&news, "\"c\"")),
        ])
        .await;
    let epoch = store.store.generation();
    let at = |offset| done(&[Position::new(epoch.clone(), offset)]);
    let expected = [at(1), Committed::Refused, at(2)];
    assert_eq!(outcomes.into_iter().map(|o| o.unwrap()).collect::<Vec<_>>(), expected);
    assert_eq!(store.marks().await, "ac");
    assert_eq!(store.count("webhook_deliveries").await, 1, "the audit log shows it");
    store.whole_log(&news).await;
}

async fn a_bad_unit_fails_alone(store: TestStore) {
    store.prepare_marks().await;
    let (news, other) = (channel("news"), channel("other"));
    for (round, bad) in [Change::mark(5, "!").ending(End::Fail), Change::broken()].into_iter().enumerate() {
        let fine = |n: usize| {
            let id = format!("round-{round}-{n}");
            let dedup = Dedup::Delivery(Box::new(delivery(&id, store.store.now())));
            Change::mark(n as i64, &n.to_string()).on(UnitOfWork { dedup, ..unit(&news, &n.to_string()) })
        };
        let dedup = Dedup::Delivery(Box::new(delivery("bad", store.store.now())));
        let bad = bad.on(UnitOfWork { dedup, ..UnitOfWork::of(vec![event(&news, "1"), event(&other, "1")]) });
        let outcomes = store.commit_together(vec![fine(1), fine(2), bad, fine(3)]).await;
        let names: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Ok(Committed::Done(positions)) => positions[0].offset.to_string(),
                Err(PublishError::Failed(_)) => "failed".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect();
        let offset = |n: usize| (3 * round + n).to_string();
        assert_eq!(names, [offset(1), offset(2), "failed".into(), offset(3)]);
    }
    assert_eq!(store.marks().await, "123123");
    assert_eq!(store.count("webhook_deliveries").await, 6, "a bad delivery may come again");
    assert_eq!((store.whole_log(&news).await.len(), store.head(&other).await.offset), (6, 0));
}

async fn a_unit_over_several_channels_is_all_or_nothing(store: TestStore) {
    let channels = ["c", "a", "b"].map(channel);
    let events = || channels.iter().map(|channel| event(channel, "1")).collect::<Vec<_>>();
    let outcomes = store.commit_together(vec![Change::broken().on(UnitOfWork::of(events()))]).await;
    assert!(matches!(outcomes[..], [Err(PublishError::Failed(_))]));
    assert_eq!((store.count("channels").await, store.count("events").await), (0, 0));

    let Committed::Done(positions) = store.commit(UnitOfWork::of(events())).await else {
        panic!("it is fine")
    };
    assert!(positions.iter().all(|position| position.offset == 1));
    for channel in &channels {
        assert_eq!(store.whole_log(channel).await.len(), 1);
    }
}

async fn events_that_are_not_kept_have_no_place(store: TestStore) {
    let news = channel("news");
    let (publisher, recorded) = store.publisher();
    let passing = NewEvent { kept: false, ..event(&news, "\"passing\"") };
    let kept = event(&news, "\"kept\"");
    let unit = UnitOfWork::of(vec![passing.clone(), kept.clone(), passing.clone()]);
    let committed = publisher.commit(unit).await.unwrap();
    assert_eq!(committed, done(&[Position::new(store.store.generation(), 1)]));
    let committed = publisher.commit(UnitOfWork::of(vec![passing.clone()])).await.unwrap();
    assert_eq!(committed, done(&[]));
    assert_eq!(store.whole_log(&news).await, [kept.at(1)]);

    let announced: Vec<_> = recorded
        .events()
        .into_iter()
        .flat_map(|event| match event {
            HubEvent::Appended(announcements) => announcements,
            _ => Vec::new(),
        })
        .flat_map(|announcement| match announcement.content {
            Content::Ephemeral(events) | Content::Logged { events, .. } => events,
        })
        .map(|event| event.offset)
        .collect();
    assert_eq!(announced, [0, 0, 1, 0]);
}

/// The data of what was announced without a place, in that order.
fn passed(recorded: &RecordedEvents) -> Vec<String> {
    let announcements = recorded.events().into_iter().flat_map(|event| match event {
        HubEvent::Appended(announcements) => announcements,
        _ => Vec::new(),
    });
    let events = announcements.flat_map(|announcement| match announcement.content {
        Content::Ephemeral(events) => events,
        Content::Logged { .. } => Vec::new(),
    });
    events.map(|event| event.data.to_string()).collect()
}

fn passing(channel: &ChannelName, data: &str) -> UnitOfWork {
    UnitOfWork::of(vec![NewEvent { kept: false, ..event(channel, data) }])
}

async fn what_is_not_kept_goes_out_in_its_order(store: TestStore) {
    let news = channel("news");
    for also_kept in [false, true] {
        let (publisher, recorded, work) = store.idle_publisher();
        let mut units: Vec<_> = (0..300).map(|n| passing(&news, &n.to_string())).collect();
        if also_kept {
            units.insert(9, unit(&news, "\"kept\""));
        }
        let outcomes = commit_together(&publisher, units, work).await;
        let unplaced = outcomes.iter().filter(|outcome| matches!(outcome, Ok(d) if *d == done(&[])));
        assert_eq!(unplaced.count(), 300);
        assert_eq!(passed(&recorded), (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(store.whole_log(&news).await.len(), 1);
}

#[test]
fn what_is_not_kept_does_not_wait_for_sqlite() {
    use diesel::connection::SimpleConnection as _;
    use diesel::prelude::*;
    in_folder(async |place| {
        let store = TestStore::open(options(place)).await;
        let mut other = SqliteConnection::establish(&store.file().to_string_lossy()).unwrap();
        other.batch_execute("BEGIN IMMEDIATE").unwrap();
        nothing_of_it_needs_the_store(&store).await;
        other.batch_execute("ROLLBACK").unwrap();
    });
}

#[test]
fn what_is_not_kept_does_not_wait_for_postgres() {
    in_schema(async |place| {
        let store = TestStore::open(Options { pool_size: 1, ..options(place) }).await;
        let (held, holds) = tokio::sync::oneshot::channel();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let reader = store.store.clone();
        let reading = tokio::spawn(async move {
            reader
                .read(move |_| {
                    async move {
                        held.send(()).expect("somebody waits");
                        let _ = released.await;
                        Ok(())
                    }
                    .boxed()
                })
                .await
        });
        holds.await.unwrap();
        nothing_of_it_needs_the_store(&store).await;
        drop(release);
        reading.await.unwrap().unwrap();
    });
}

async fn nothing_of_it_needs_the_store(store: &TestStore) {
    let news = channel("news");
    let (publisher, recorded) = store.publisher();
    let quick = Duration::from_secs(2);
    for data in ["1", "2"] {
        let committed = tokio::time::timeout(quick, publisher.commit(passing(&news, data))).await;
        assert_eq!(committed.expect("nobody is waited for").unwrap(), done(&[]));
    }
    assert_eq!(passed(&recorded), ["1", "2"]);
}

async fn a_change_without_events_is_a_unit_too(store: TestStore) {
    store.prepare_marks().await;
    let (publisher, recorded) = store.publisher();
    let committed = publisher.commit(Change::mark(0, "a").on(UnitOfWork::of(Vec::new()))).await.unwrap();
    assert_eq!((committed, store.marks().await), (done(&[]), "a".to_owned()));
    assert!(recorded.events().is_empty());
}

/// Notes in which order the changes of a transaction ran.
struct Noted(i64, &'static str, Arc<Mutex<Vec<&'static str>>>);

impl Apply for Noted {
    fn locks(&self) -> Vec<LockKey> {
        vec![lock(self.0)]
    }

    fn apply<'a>(&'a self, _: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<Verdict>> {
        self.2.lock().unwrap().push(self.1);
        async { Ok(Verdict::Proceed) }.boxed()
    }
}

async fn changes_of_state_run_in_their_order(store: TestStore) {
    let (news, notes) = (channel("news"), Arc::default());
    let units = [(3, "d"), (-1, "a"), (2, "b"), (2, "c"), (3, "e")].map(|(order, name)| {
        let noted = Noted(order, name, Arc::clone(&notes));
        UnitOfWork { apply: Some(Box::new(noted)), ..unit(&news, &format!("\"{name}\"")) }
    });
    store.commit_together(units.into()).await;
    assert_eq!(*notes.lock().unwrap(), ["a", "b", "c", "d", "e"], "owner by owner, then as they came");
    let log = store.whole_log(&news).await;
    let data: Vec<_> = log.iter().map(|event| &*event.data).collect();
    assert_eq!(data, ["\"d\"", "\"a\"", "\"b\"", "\"c\"", "\"e\""], "events stay as they came");
}

async fn one_unit_too_many_is_refused_at_once(store: TestStore) {
    let news = channel("news");
    let (publisher, _, work) = store.idle_publisher();
    let mut commits = futures_util::future::join_all((0..4096).map(|_| publisher.commit(unit(&news, "1"))));
    assert!(futures_util::poll!(&mut commits).is_pending());
    assert!(matches!(publisher.commit(unit(&news, "1")).await, Err(PublishError::Busy)));
    tokio::spawn(work);
    assert!(commits.await.iter().all(Result::is_ok));
    assert_eq!(store.whole_log(&news).await.len(), 4096);
}

async fn a_publisher_without_handles_finishes_its_queue(store: TestStore) {
    let news = channel("news");
    let (publisher, _, work) = store.idle_publisher();
    for n in 0..3 {
        // Its caller stops waiting; the unit goes on.
        assert!(publisher.commit(unit(&news, &n.to_string())).now_or_never().is_none());
    }
    drop(publisher);
    work.await;
    assert_eq!(store.whole_log(&news).await.len(), 3);
}

/// A mark for each event whose data is a letter, and a broken row for what is `"broken"`.
struct Marking(Arc<Mutex<u32>>);

struct Mark(String);

impl Reaction for Marking {
    fn react(&self, event: &NewEvent) -> Vec<Box<dyn NewRow>> {
        *self.0.lock().unwrap() += 1;
        vec![Box::new(Mark(event.data.trim_matches('"').to_owned()))]
    }
}

impl NewRow for Mark {
    fn insert<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<()>> {
        let change = if self.0 == "broken" { Change::broken() } else { Change::mark(0, &self.0) };
        async move { change.apply(tx).await.map(drop) }.boxed()
    }
}

async fn rows_of_a_reaction_are_committed_once_with_their_event(store: TestStore) {
    store.prepare_marks().await;
    let (news, seen) = (channel("news"), Arc::default());
    let reactions: Vec<Box<dyn Reaction>> = vec![Box::new(Marking(Arc::clone(&seen)))];
    let (publisher, _, work) = store.reacting_publisher(reactions);
    let key = || {
        let expires_at = store.store.timestamp().plus(Duration::from_secs(60));
        IdempotencyKey { channel: news.clone(), key: "k".into(), expires_at }
    };
    let keyed = || UnitOfWork { dedup: Dedup::Key(key()), ..unit(&news, "\"b\"") };
    let refused = Change { order: 1, statements: Vec::new(), end: End::Refuse };
    // Together: the first time of a key, its repetition, and a refusal; the bad unit has the batch
    // tried again one by one.
    let units = [
        unit(&news, "\"a\""),
        keyed(),
        keyed(),
        refused.on(unit(&news, "\"c\"")),
        Change::broken().on(unit(&news, "\"d\"")),
        passing(&news, "\"e\""),
    ];
    let ended = commit_together(&publisher, units, work).await;
    assert!(matches!(ended[0], Ok(Committed::Done(_))) && matches!(ended[1], Ok(Committed::Done(_))));
    assert!(matches!(ended[2], Ok(Committed::Duplicate(Some(_)))));
    assert!(matches!(ended[3], Ok(Committed::Refused)) && matches!(ended[4], Err(PublishError::Failed(_))));
    assert!(matches!(publisher.commit(keyed()).await, Ok(Committed::Duplicate(Some(_)))));
    assert_eq!(store.marks().await, "abe", "once for what took place, also if it is not kept");
    assert_eq!(*seen.lock().unwrap(), 7, "once for each event");
    assert_eq!(store.whole_log(&news).await.len(), 2);
}

async fn a_row_that_cannot_be_inserted_fails_its_unit_alone(store: TestStore) {
    store.prepare_marks().await;
    let news = channel("news");
    let (publisher, recorded, work) = store.reacting_publisher(vec![Box::new(Marking(Arc::default()))]);
    let units = ["\"a\"", "\"broken\"", "\"b\""].map(|data| unit(&news, data));
    let ended = commit_together(&publisher, units, work).await;
    assert!(matches!(ended[1], Err(PublishError::Failed(_))));
    assert!(matches!(ended[0], Ok(Committed::Done(_))) && matches!(ended[2], Ok(Committed::Done(_))));
    assert_eq!(store.marks().await, "ab");
    assert_eq!(store.whole_log(&news).await.len(), 2, "the event of a failed row is gone as well");
    assert_eq!(recorded.logged(&news).len(), 2, "and is not announced");
}
