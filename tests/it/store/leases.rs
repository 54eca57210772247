//! Work that one node of several does: it moves when its holder dies, is cut off or goes.

use std::sync::Arc;
use std::time::Duration;

use campanile::domain::options::Namespaces;
use campanile::store::{Location, leases};
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::tasks::metrics::{LeaseName, Metrics};
use testkit::proxy::{Link, Proxy};
use uuid::Uuid;

use crate::support::database::Database;
use crate::support::process::{self, Gateway};
use crate::support::store::*;

const TTL: Duration = Duration::from_secs(600);

#[test]
fn a_lease_has_one_holder_until_it_runs_out_or_is_given_back() {
    on_postgres(async |store| {
        let (ana, ben) = (Uuid::new_v4(), Uuid::new_v4());
        let hold = async |who| leases::hold(&store.store, "work", who, TTL).await.unwrap();
        assert!(hold(ana).await && hold(ana).await && !hold(ben).await);
        assert!(leases::hold(&store.store, "other work", ben, TTL).await.unwrap());
        leases::release(&store.store, "work", ben).await.unwrap();
        assert!(!hold(ben).await, "nobody gives back what is another's");
        leases::release(&store.store, "work", ana).await.unwrap();
        assert!(hold(ben).await && !hold(ana).await);
        store.execute("UPDATE leases SET expires_at = clock_timestamp()").await;
        assert!(hold(ana).await && !hold(ben).await);
    });
}

#[test]
fn of_many_that_ask_at_once_one_gets_it() {
    on_postgres(async |store| {
        for round in 0..20 {
            let ask = (0..8).map(|_| leases::hold(&store.store, "work", Uuid::new_v4(), TTL));
            let held = futures_util::future::try_join_all(ask).await.unwrap();
            assert_eq!(held.iter().filter(|held| **held).count(), 1, "round {round}: {held:?}");
            store.execute("DELETE FROM leases").await;
        }
    });
}

#[test]
fn the_janitor_leaves_all_to_the_node_that_has_the_lease() {
    on_postgres(async |store| {
        let repo = channel("repo:acme/api");
        store.fill(&repo, 3).await;
        store.age(&repo, 2, Duration::from_secs(1_000 * 24 * 3600)).await;
        let sweep = async |metrics: &Metrics, lease: &Lease| {
            let namespaces = Namespaces::default();
            janitor::sweep(&store.store, &namespaces, metrics, lease, &mut Uuid::nil()).await.unwrap();
        };
        let metrics = Arc::<Metrics>::default();
        let (lease, work) = Lease::acquire(store.store.clone(), "janitor", Uuid::nil(), metrics.clone());
        sweep(&metrics, &lease).await;
        assert_eq!(store.count("events").await, 3);
        tokio::spawn(work);
        lease.held().await;
        sweep(&metrics, &lease).await;
        assert_eq!(store.count("events").await, 1);
    });
}

#[test]
fn a_node_that_is_cut_off_stops_before_another_one_begins() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = &location else { panic!("a schema is Postgres's") };
        let proxy = Proxy::to(Database::server()).await.expect("a proxy");
        let through = url.replace(&Database::server().to_string(), &proxy.address.to_string());
        let far = Location::Postgres { url: through, direct_url: Some(url.clone()) };
        let stores = [TestStore::open(options(far)).await, TestStore::open(options(location)).await];
        let metrics: Vec<Arc<Metrics>> = (0..2).map(|_| Arc::default()).collect();
        let mut kept = Vec::new();
        for (store, metrics) in stores.iter().zip(&metrics) {
            let (lease, work) = Lease::acquire(store.store.clone(), "work", Uuid::new_v4(), metrics.clone());
            tokio::spawn(work);
            if kept.is_empty() {
                lease.held().await;
            }
            kept.push(lease);
        }
        proxy.set(Link::Stalled);
        kept[1].held().await;
        assert!(!kept[0].is_held());
        proxy.set(Link::Open);
        kept[1].release();
        kept[1].released().await;
        kept[0].held().await;
        assert!(!kept[1].is_held());
    });
}

/// What each node says of the lease.
async fn held(nodes: &[&Gateway]) -> Vec<bool> {
    let mut held = Vec::new();
    for node in nodes {
        let text = node.get("/metrics").await.text().to_owned();
        held.push(text.contains("campanile_lease_held{lease=\"janitor\"} 1"));
    }
    held
}

async fn until_held(nodes: &[&Gateway], expected: &[bool]) {
    eventually("the lease is where it should be", async || held(nodes).await == expected).await;
}

#[test]
fn the_lease_moves_when_its_node_is_killed_or_stopped() {
    process::on_postgres(async |home| {
        let first = Gateway::start(&home).await;
        until_held(&[&first], &[true]).await;
        let second = Gateway::start(&home).await;
        until_held(&[&first, &second], &[true, false]).await;
        first.kill9().await;
        until_held(&[&second], &[true]).await;
        let third = Gateway::start(&home).await;
        until_held(&[&second, &third], &[true, false]).await;
        let rows = "SELECT count(*) FROM leases";
        let sql = session(home.database().expect("Postgres")).await;
        // It is stopped: what it gave back is there for the next one, which need not wait.
        second.stop().await;
        assert!(sql.query_one(rows, &[]).await.unwrap().get::<_, i64>(0) <= 1);
        until_held(&[&third], &[true]).await;
        third.stop().await;
        assert_eq!(sql.query_one(rows, &[]).await.unwrap().get::<_, i64>(0), 0);
    });
}

#[test]
fn the_only_node_of_sqlite_does_everything_and_writes_nothing_down() {
    on_sqlite(async |store| {
        let metrics = Arc::<Metrics>::default();
        let (lease, work) = Lease::acquire(store.store.clone(), "work", Uuid::new_v4(), metrics.clone());
        work.await;
        assert!(lease.is_held());
        assert_eq!(metrics.lease_held.with(LeaseName("work")).get(), 1);
        lease.release();
        lease.released().await;
        assert_eq!(store.count("leases").await, 0);
    });
}
