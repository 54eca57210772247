//! Builds in the store: made once, never taken over, forgotten with their last event.

use std::time::Duration;

use campanile::domain::channel::ChannelName;
use campanile::domain::options::Namespaces;
use campanile::store::Ts;
use campanile::store::builds::{self, Build};
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::tasks::metrics::{Metrics, Table};
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![
    a_build_stays_whose_it_is,
    a_build_goes_with_its_last_event,
    a_build_that_somebody_else_told_of_stays,
    many_old_builds_go_in_one_round,
];

const HOUR: Duration = Duration::from_secs(3600);

fn of(owner: &str, org: Option<&str>) -> Build {
    Build { owner: owner.to_owned(), org: org.map(str::to_owned) }
}

async fn touch(store: &TestStore, id: Uuid, build: Build, at: Ts) -> bool {
    store.write(move |conn| async move { builds::touch(conn, id, &build, at).await }.boxed()).await
}

async fn get(store: &TestStore, id: Uuid) -> Option<Build> {
    store.read(move |conn| builds::get(conn, id).boxed()).await
}

/// A round of the janitor; how many builds it removed.
async fn sweep(store: &TestStore) -> u64 {
    let metrics = Metrics::default();
    janitor::sweep(&store.store, &Namespaces::default(), &metrics, &Lease::always_held(), &mut Uuid::nil())
        .await
        .unwrap();
    metrics.rows_removed.with(Table("builds")).get()
}

async fn a_build_stays_whose_it_is(store: TestStore) {
    let (one, two, now) = (Uuid::now_v7(), Uuid::now_v7(), store.store.timestamp());
    assert_eq!(get(&store, one).await, None);
    assert!(touch(&store, one, of("ana", Some("acme")), now).await);
    assert!(touch(&store, two, of("ben", None), now).await);
    assert!(!touch(&store, one, of("ben", None), now).await);
    assert!(!touch(&store, one, of("Ana", Some("acme")), now).await, "names count letter by letter");
    assert!(touch(&store, one, of("ana", None), now).await);
    assert_eq!(get(&store, one).await, Some(of("ana", Some("acme"))));
    assert_eq!(get(&store, two).await, Some(of("ben", None)));
}

async fn a_build_goes_with_its_last_event(store: TestStore) {
    let (old, young) = (Uuid::now_v7(), Uuid::now_v7());
    touch(&store, old, of("ana", None), ago(&store.store, 25 * HOUR)).await;
    touch(&store, young, of("ana", None), ago(&store.store, 23 * HOUR)).await;
    let channel = ChannelName::build(old);
    store.fill(&channel, 3).await;
    store.age(&channel, 3, 25 * HOUR).await;
    assert_eq!((sweep(&store).await, sweep(&store).await), (1, 0));
    assert_eq!((get(&store, old).await, get(&store, young).await), (None, Some(of("ana", None))));
    assert!(store.stored(&channel).await.is_empty());
    for owner in ["ana", "ben"] {
        assert!(!touch(&store, old, of(owner, None), store.store.timestamp()).await, "nobody begins again");
    }
    assert_eq!(get(&store, old).await, None);
}

async fn a_build_that_somebody_else_told_of_stays(store: TestStore) {
    let id = Uuid::now_v7();
    touch(&store, id, of("ana", None), ago(&store.store, 25 * HOUR)).await;
    store.fill(&ChannelName::build(id), 1).await;
    assert_eq!(sweep(&store).await, 0);
    store.age(&ChannelName::build(id), 1, 25 * HOUR).await;
    assert_eq!(sweep(&store).await, 0, "it is looked at again in a day");
    assert_eq!(get(&store, id).await, Some(of("ana", None)));
}

async fn many_old_builds_go_in_one_round(store: TestStore) {
    let old = ago(&store.store, 25 * HOUR);
    // In several transactions: each has the store's deadline.
    for _ in 0..11 {
        store
            .write(move |conn| {
                async move {
                    for _ in 0..100 {
                        builds::touch(conn, Uuid::now_v7(), &of("ana", None), old).await?;
                    }
                    campanile::store::Result::Ok(())
                }
                .boxed()
            })
            .await;
    }
    assert_eq!((sweep(&store).await, store.count("builds").await), (1100, 0));
}
