//! The audit log of deliveries: verbatim payloads, newest first, settled once, forgotten in time.

use std::time::Duration;

use campanile::domain::delivery::{DeliveryId, DeliveryStatus};
use campanile::domain::options::{Kept, Namespaces};
use campanile::publish::{Dedup, UnitOfWork};
use campanile::store::deliveries::{self, Delivery, NewDelivery, Payload};
use campanile::tasks::leases::Lease;
use campanile::tasks::{Metrics, janitor};
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![
    a_payload_comes_back_byte_for_byte,
    a_delivery_comes_back_as_it_was_taken,
    deliveries_are_listed_newest_first,
    a_failed_delivery_is_settled_once,
    payloads_are_dropped_before_their_deliveries,
    half_an_hour_of_deliveries_is_kept_where_that_is_wanted,
    payloads_are_kept_for_half_an_hour_where_that_is_wanted,
];

/// A delivery that came `age` ago; its id says so too.
fn from_the_past(store: &TestStore, id: &str, age: Duration) -> NewDelivery {
    let at = (store.store.now() - age).timestamp_millis() as u64;
    let time = uuid::Timestamp::from_unix(uuid::NoContext, at / 1000, (at % 1000) as u32 * 1_000_000);
    NewDelivery { id: Uuid::new_v7(time), ..delivery(id, store.store.now() - age) }
}

async fn take(store: &TestStore, delivery: NewDelivery) {
    let dedup = Dedup::Delivery(Box::new(delivery));
    store.commit(UnitOfWork { dedup, ..UnitOfWork::of(Vec::new()) }).await;
}

async fn get(store: &TestStore, id: Uuid) -> Option<(Delivery, Option<Payload>)> {
    store.read(move |conn| deliveries::get(conn, id).boxed()).await
}

async fn listed(store: &TestStore, before: Option<Uuid>, limit: u32) -> Vec<String> {
    let list = store.read(move |conn| deliveries::list(conn, before, limit).boxed()).await;
    list.into_iter().map(|delivery| delivery.delivery_id).collect()
}

async fn half_an_hour_of_deliveries_is_kept_where_that_is_wanted(store: TestStore) {
    for (id, minutes) in [("old", 31), ("young", 29)] {
        take(&store, from_the_past(&store, id, Duration::from_secs(minutes * 60))).await;
    }
    let half_an_hour = Duration::from_secs(30 * 60);
    let kept = Kept { delivery_ids: half_an_hour, delivery_payloads: half_an_hour, ..Kept::default() };
    let namespaces = Namespaces { kept, ..Namespaces::default() };
    let (metrics, lease) = (Metrics::default(), Lease::always_held());
    janitor::sweep(&store.store, &namespaces, &metrics, &lease, &mut Uuid::nil()).await.expect("a round");
    assert_eq!(store.count("webhook_deliveries").await, 1);
}

async fn payloads_are_kept_for_half_an_hour_where_that_is_wanted(store: TestStore) {
    for (id, minutes) in [("old", 31), ("young", 29)] {
        take(&store, from_the_past(&store, id, Duration::from_secs(minutes * 60))).await;
    }
    let kept = Kept { delivery_payloads: Duration::from_secs(30 * 60), ..Kept::default() };
    let namespaces = Namespaces { kept, ..Namespaces::default() };
    let (metrics, lease) = (Metrics::default(), Lease::always_held());
    janitor::sweep(&store.store, &namespaces, &metrics, &lease, &mut Uuid::nil()).await.expect("a round");
    let payloads = store.number("SELECT count(payload) AS number FROM webhook_deliveries".into()).await;
    assert_eq!((store.count("webhook_deliveries").await, payloads), (2, 1));
}

async fn a_payload_comes_back_byte_for_byte(store: TestStore) {
    let texts: [&[u8]; 4] = [b"", b" {\"a\" :1e400}\r\n", b"\xff\x00 not even UTF-8", &[b'x'; 3 << 20]];
    for (i, text) in texts.into_iter().enumerate() {
        let payload = Payload::pack(text).unwrap();
        let taken = NewDelivery { payload, ..delivery(&i.to_string(), store.store.now()) };
        let id = taken.id;
        take(&store, taken).await;
        let (_, payload) = get(&store, id).await.unwrap();
        assert_eq!(payload.unwrap().unpack().unwrap(), text);
    }
}

async fn a_delivery_comes_back_as_it_was_taken(store: TestStore) {
    let at = store.store.now();
    let full = NewDelivery { action: Some("opened".into()), ..delivery("full", at) };
    let bare = NewDelivery {
        repo: None,
        status: DeliveryStatus::Failed,
        error: Some("no \u{1F600} action".into()),
        ..delivery("bare", at)
    };
    for taken in [full, bare] {
        take(&store, taken.clone()).await;
        let processed = taken.status == DeliveryStatus::Processed;
        let expected = Delivery {
            id: taken.id,
            delivery_id: taken.delivery_id.as_str().into(),
            event: taken.event,
            action: taken.action,
            repo: taken.repo,
            status: taken.status,
            error: taken.error,
            received_at: at,
            processed_at: processed.then_some(at),
        };
        assert_eq!(get(&store, taken.id).await.unwrap().0, expected);
        let known = store
            .read(move |conn| async move { deliveries::is_known(conn, &taken.delivery_id).await }.boxed());
        assert!(known.await);
    }
    assert_eq!(get(&store, Uuid::now_v7()).await, None);
    let other = DeliveryId::parse("other").unwrap();
    assert!(!store.read(move |conn| async move { deliveries::is_known(conn, &other).await }.boxed()).await);
}

async fn deliveries_are_listed_newest_first(store: TestStore) {
    let mut ids = Vec::new();
    for (name, age) in [("c", 1), ("a", 3), ("e", 0), ("b", 2), ("d", 0)] {
        let taken = from_the_past(&store, name, Duration::from_secs(60 * age));
        ids.push((taken.id, name));
        take(&store, taken).await;
    }
    ids.sort();
    let names: Vec<&str> = ids.iter().rev().map(|(_, name)| *name).collect();
    assert_eq!(listed(&store, None, 10).await, names);
    assert_eq!(listed(&store, None, 2).await, names[..2]);
    assert_eq!(listed(&store, Some(ids[3].0), 2).await, names[2..4]);
    assert!(listed(&store, Some(ids[0].0), 2).await.is_empty());
}

async fn a_failed_delivery_is_settled_once(store: TestStore) {
    let taken = NewDelivery {
        status: DeliveryStatus::Failed,
        error: Some("not understood".into()),
        ..delivery("x", store.store.now())
    };
    let (id, now) = (taken.id, store.store.timestamp());
    take(&store, taken).await;
    let settle = async |status, error: Option<&'static str>| {
        store
            .write(move |conn| {
                deliveries::settle(conn, id, status, error, Some("a/b"), Some("opened"), now).boxed()
            })
            .await
    };
    assert!(settle(DeliveryStatus::Failed, Some("still not")).await);
    let (failed, _) = get(&store, id).await.unwrap();
    assert_eq!((failed.error.as_deref(), failed.processed_at), (Some("still not"), None));
    assert!(settle(DeliveryStatus::Processed, None).await);
    assert!(!settle(DeliveryStatus::Failed, Some("late")).await, "processed is for good");
    let (settled, payload) = get(&store, id).await.unwrap();
    assert_eq!((settled.status, settled.error), (DeliveryStatus::Processed, None));
    assert_eq!((settled.repo.as_deref(), settled.action.as_deref()), (Some("a/b"), Some("opened")));
    assert_eq!(settled.processed_at, Some(now.into()));
    assert!(payload.is_some());
}

async fn payloads_are_dropped_before_their_deliveries(store: TestStore) {
    for (name, hours) in [("d", 1), ("c", 3), ("b", 4), ("a", 5)] {
        take(&store, from_the_past(&store, name, Duration::from_secs(3600 * hours))).await;
    }
    let cutoff = ago(&store.store, Duration::from_secs(2 * 3600));
    let drop_some = async |after: Uuid| {
        store.write(move |conn| deliveries::drop_payloads(conn, after, cutoff, 2).boxed()).await
    };
    let first = drop_some(Uuid::nil()).await;
    let second = drop_some(first[1]).await;
    assert_eq!((first.len(), second.len(), first[0] < first[1], first[1] < second[0]), (2, 1, true, true));
    assert!(drop_some(second[0]).await.is_empty() && drop_some(Uuid::nil()).await.is_empty());
    let left = store.number("SELECT count(payload) AS number FROM webhook_deliveries".into()).await;
    assert_eq!((left, store.count("webhook_deliveries").await), (1, 4));

    let forget = async || store.write(move |conn| deliveries::forget(conn, cutoff, 2).boxed()).await;
    assert_eq!([forget().await, forget().await, forget().await], [2, 1, 0]);
    assert_eq!(listed(&store, None, 10).await, ["d"]);
}
