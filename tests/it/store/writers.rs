//! Two nodes write to one Postgres, most units to several channels in any order, while a third
//! session locks rows the other way round and some units are bad. Whatever the database rolls
//! back, offsets stay whole, nobody fails who should not, and what each node announces is the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use campanile::domain::channel::ChannelName;
use campanile::domain::event::{Event, NewEvent};
use campanile::domain::workflow::{RepoUpdate, StateChange};
use campanile::publish::{Apply, Committed, Dedup, PublishError, Publisher, UnitOfWork, Verdict};
use campanile::sources::github::WorkflowRows;
use campanile::store::log::IdempotencyKey;
use campanile::store::{LockKey, Result, Store, Table, Transaction};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

use crate::support::store::*;

const SEED: u64 = 20_260_101;
const TASKS: u64 = 8;
const UNITS: u64 = 60;

/// A repository that each unit of its number sees under another name.
struct Sees(RepoUpdate);

impl Apply for Sees {
    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<Verdict>> {
        tx.buffer::<WorkflowRows>().add(&StateChange::RepoUpdated(self.0.clone()));
        async { Ok(Verdict::Proceed) }.boxed()
    }
}

struct Sent {
    events: Vec<NewEvent>,
    bad: bool,
    outcome: std::result::Result<Committed, PublishError>,
}

fn channels() -> Vec<ChannelName> {
    (10..26).map(|n| channel(&format!("crowd:{n}"))).collect()
}

/// One task of a node: a unit after the other.
async fn write(publisher: Publisher, store: Store, seed: u64) -> Vec<Sent> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sent = Vec::new();
    for n in 0..UNITS {
        let mut names = channels();
        names.shuffle(&mut random);
        names.truncate(random.random_range(1..=6));
        names.push(names[0].clone());
        let events: Vec<_> = names.iter().map(|name| event(name, &format!("[{seed},{n}]"))).collect();
        let bad = random.random_ratio(1, 8);
        let apply: Option<Box<dyn Apply>> = match random.random_range(0..4) {
            _ if bad && n % 2 == 0 => Some(Box::new(Change::broken())),
            _ if bad => Some(Box::new(Change { order: 99, statements: Vec::new(), end: End::Fail })),
            0 => None,
            // Few numbers and many of them new, so that both nodes meet over one row.
            _ => Some(Box::new(Sees(RepoUpdate {
                github_id: (n / 4) as i64,
                owner: "acme".into(),
                name: format!("{seed}-{n}"),
                default_branch: None,
                private: None,
                installation_id: None,
            }))),
        };
        let dedup = match random.random_range(0..3) {
            0 => Dedup::None,
            1 => Dedup::Delivery(Box::new(delivery(&format!("{seed}-{n}"), store.now()))),
            _ => Dedup::Key(IdempotencyKey {
                channel: names.choose(&mut random).expect("there are names").clone(),
                key: format!("{seed}-{n}"),
                expires_at: store.timestamp().plus(std::time::Duration::from_secs(60)),
            }),
        };
        let unit = UnitOfWork { dedup, apply, ..UnitOfWork::of(events.clone()) };
        let outcome = publisher.commit(unit).await;
        sent.push(Sent { events, bad, outcome });
    }
    sent
}

/// Locks two rows against the order of their names, the second when somebody waits for the first,
/// until it is told to stop. Answers how often it was the one that the database gave up.
async fn disturb(store: &TestStore, mut stop: tokio::sync::oneshot::Receiver<()>) -> u32 {
    let (session, watcher) = (store.session().await, store.session().await);
    // Mostly it is the store that gives up.
    session.batch_execute("SET deadlock_timeout = '300ms'").await.unwrap();
    let pid: i32 = session.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let waits = format!("SELECT 1 FROM pg_stat_activity WHERE {pid} = ANY(pg_blocking_pids(pid))");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut given_up = 0;
    while stop.try_recv().is_err() {
        let (low, high) = (random.random_range(10..18), random.random_range(18..26));
        let lock = |n: i32| format!("UPDATE channels SET version = version + 1 WHERE name = 'crowd:{n}'");
        session.batch_execute(&format!("BEGIN; {}", lock(high))).await.unwrap();
        for _ in 0..20 {
            if !watcher.query(&waits, &[]).await.unwrap().is_empty() {
                break;
            }
        }
        given_up += u32::from(session.batch_execute(&lock(low)).await.is_err());
        session.batch_execute(if random.random() { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
    }
    given_up
}

#[test]
fn two_writers_keep_every_channel_whole() {
    in_schema(async |location| {
        let campanile::store::Location::Postgres { url, .. } = &location else {
            panic!("a schema is Postgres's")
        };
        let url = with_setting(url, "deadlock_timeout", "10ms");
        let location = campanile::store::Location::Postgres { url, direct_url: None };
        let first = TestStore::open(options(location)).await;
        let second = first.second().await;
        let watcher = first.session().await;
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        let deadlocks = async || -> i64 { watcher.query_one(deadlocks, &[]).await.unwrap().get(0) };
        let before = deadlocks().await;
        // Rows to lock before the first unit makes them.
        first.append(channels().iter().map(|name| event(name, "0")).collect()).await;

        let (stop, stopped) = tokio::sync::oneshot::channel();
        let nodes = [first.publisher(), second.publisher()];
        let mut tasks = Vec::new();
        for ((publisher, _), store) in nodes.iter().zip([&first, &second]) {
            for _ in 0..TASKS {
                let seed = SEED + tasks.len() as u64;
                tasks.push(tokio::spawn(write(publisher.clone(), store.store.clone(), seed)));
            }
        }
        let writers = async {
            let sent = futures_util::future::try_join_all(tasks).await;
            let _ = stop.send(());
            sent.unwrap().into_iter().flatten().collect::<Vec<_>>()
        };
        let (sent, given_up) = tokio::join!(writers, disturb(&first, stopped));

        let mut told: BTreeMap<ChannelName, Vec<Event>> = BTreeMap::new();
        for Sent { events, bad, outcome } in sent {
            match outcome {
                Ok(Committed::Done(positions)) if !bad => {
                    assert_eq!(positions.len(), events.len());
                    for (event, position) in events.iter().zip(positions) {
                        assert_eq!(position.epoch, first.store.generation());
                        told.entry(event.channel.clone()).or_default().push(event.at(position.offset));
                    }
                }
                Err(PublishError::Failed(_)) if bad => {}
                other => panic!("bad: {bad}, outcome: {other:?}"),
            }
        }
        for (name, mut told) in told {
            told.sort_by_key(|event| event.offset);
            let log = first.whole_log(&name).await;
            assert_eq!(told, log[1..], "every answer is in the log, and nothing else is");
            let mut announced: Vec<_> =
                nodes.iter().flat_map(|(_, recorded)| recorded.logged(&name)).collect();
            assert!(announced.iter().all(|(epoch, _)| *epoch == first.store.generation()));
            announced.sort_by_key(|(_, event)| event.offset);
            let announced: Vec<_> = announced.into_iter().map(|(_, event)| event).collect();
            assert_eq!(announced, told, "each event was announced once, by the node that has it");
        }
        assert!(nodes.iter().all(|(_, recorded)| recorded.checks().is_empty()));
        eventually("there were deadlocks that the store had to give up for", async || {
            deadlocks().await > before + i64::from(given_up)
        })
        .await;
    });
}

#[test]
fn two_writers_that_meet_over_a_new_repository_both_commit() {
    on_postgres(async |store| {
        let second = store.second().await;
        let nodes = [store.publisher(), second.publisher()];
        // Of these meetings a few are so close that the second insert gets past ON CONFLICT.
        for github_id in 0..300 {
            let units = (0..6).map(|n| {
                let update = RepoUpdate {
                    github_id,
                    owner: "acme".into(),
                    name: n.to_string(),
                    default_branch: None,
                    private: None,
                    installation_id: None,
                };
                let apply: Option<Box<dyn Apply>> = Some(Box::new(Sees(update)));
                let publisher = nodes[n % 2].0.clone();
                tokio::spawn(async move {
                    publisher.commit(UnitOfWork { apply, ..UnitOfWork::of(Vec::new()) }).await
                })
            });
            for committed in futures_util::future::try_join_all(units).await.unwrap() {
                assert_eq!(committed.unwrap(), Committed::Done(Vec::new()));
            }
        }
        assert_eq!(store.count("repos").await, 300);
    });
}

/// Changes two rows in the given order, each often enough that two of these overlap.
struct TwoRows {
    rows: [&'static str; 2],
    runs: Arc<AtomicUsize>,
}

impl Apply for TwoRows {
    fn locks(&self) -> Vec<LockKey> {
        [Table::Deliveries, Table::Builds].map(|table| LockKey::of(table, Uuid::nil())).into()
    }

    fn apply<'a>(&'a self, tx: &'a mut Transaction<'_>) -> BoxFuture<'a, Result<Verdict>> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        async move {
            for row in self.rows {
                for _ in 0..20 {
                    let update = format!("UPDATE meta SET value = 'changed' WHERE key = '{row}'");
                    tx.conn.execute(diesel::sql_query(update)).await?;
                }
            }
            Ok(Verdict::Proceed)
        }
        .boxed()
    }
}

#[test]
fn two_publishers_never_deadlock_on_rows_of_several_tables() {
    on_postgres(async |store| {
        let second = store.second().await;
        store.execute("INSERT INTO meta (key, value) VALUES ('one', ''), ('two', '')").await;
        let runs = Arc::new(AtomicUsize::new(0));
        let nodes = [(store.publisher().0, ["one", "two"]), (second.publisher().0, ["two", "one"])];
        let tasks = nodes.map(|(publisher, rows)| {
            let runs = runs.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let apply: Option<Box<dyn Apply>> = Some(Box::new(TwoRows { rows, runs: runs.clone() }));
                    let unit = UnitOfWork { apply, ..UnitOfWork::of(Vec::new()) };
                    assert_eq!(publisher.commit(unit).await.unwrap(), Committed::Done(Vec::new()));
                }
            })
        });
        futures_util::future::try_join_all(tasks).await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 50, "no transaction was rolled back and tried again");
    });
}
