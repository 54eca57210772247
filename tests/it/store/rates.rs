//! What rates have counted, in the store: later instants win, and what is over goes.

use std::time::Duration;

use campanile::domain::options::Namespaces;
use campanile::store::{Ts, rate_limits};
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::tasks::metrics::{Metrics, Table};
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![the_later_instant_stays, what_is_over_goes, many_keys_are_written_at_once];

async fn record(store: &TestStore, name: &'static str, keys: Vec<(String, Ts)>) {
    store.write(move |conn| async move { rate_limits::record(conn, name, keys).await }.boxed()).await;
}

async fn load(store: &TestStore, name: &'static str, now: Ts, limit: u32) -> Vec<(String, Ts)> {
    store.read(move |conn| rate_limits::load(conn, name, now, limit).boxed()).await
}

fn keys(all: &[(&str, Ts)]) -> Vec<(String, Ts)> {
    all.iter().map(|(key, at)| ((*key).to_owned(), *at)).collect()
}

async fn the_later_instant_stays(store: TestStore) {
    let now = store.store.timestamp();
    let at = |secs| now.plus(Duration::from_secs(secs));
    record(&store, "polls", keys(&[("u:ben", at(20)), ("u:ana", at(10))])).await;
    record(&store, "polls", keys(&[("u:ana", at(5)), ("u:ben", at(30))])).await;
    record(&store, "others", keys(&[("u:ana", at(50))])).await;
    assert_eq!(load(&store, "polls", now, 9).await, keys(&[("u:ben", at(30)), ("u:ana", at(10))]));
    assert_eq!(load(&store, "polls", now, 1).await, keys(&[("u:ben", at(30))]), "who needs longest");
    assert_eq!(load(&store, "polls", at(10), 9).await, keys(&[("u:ben", at(30))]));
    assert_eq!(load(&store, "others", now, 9).await, keys(&[("u:ana", at(50))]));
}

async fn what_is_over_goes(store: TestStore) {
    let (past, future) =
        (ago(&store.store, Duration::from_secs(1)), store.store.timestamp().plus(Duration::from_secs(600)));
    let old = (0..1100).map(|n| (format!("u:{n}"), past)).collect();
    record(&store, "polls", old).await;
    record(&store, "polls", keys(&[("u:ana", future)])).await;
    let metrics = Metrics::default();
    janitor::sweep(&store.store, &Namespaces::default(), &metrics, &Lease::always_held(), &mut Uuid::nil())
        .await
        .unwrap();
    assert_eq!(metrics.rows_removed.with(Table("rate_limits")).get(), 1100);
    assert_eq!(store.count("rate_limits").await, 1);
}

async fn many_keys_are_written_at_once(store: TestStore) {
    let now = store.store.timestamp();
    let at = |n: u64| now.plus(Duration::from_secs(60 + n));
    let all = |plus: u64| (0..1500).map(|n| (format!("u:{n}"), at(n + plus))).collect::<Vec<_>>();
    record(&store, "polls", all(0)).await;
    record(&store, "polls", all(1)).await;
    let found = load(&store, "polls", now, 2000).await;
    assert_eq!((found.len(), found[0].1), (1500, at(1500)));
}
