//! Sign-in links and sessions in the store: what the janitor takes, and what it leaves.

use std::sync::Arc;
use std::time::Duration;

use campanile::domain::options::Namespaces;
use campanile::store::Ts;
use campanile::store::sessions::{self, SecretHash, Session};
use campanile::tasks::Metrics;
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::telemetry::metrics::Registry;
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![the_janitor_takes_what_is_over];

async fn add(store: &TestStore, number: u8, now: Ts, end: Ts) {
    let (link, secret) = (SecretHash([number; 32]), SecretHash([number + 100; 32]));
    let session = Session { subject: "ana".into(), scope: "admin".into(), expires_at: end.into() };
    let redeemed = store.write(move |conn| {
        async move {
            sessions::add_link(conn, link, now, now.plus(Duration::from_secs(60)), 100).await?;
            let redeemed = sessions::redeem(conn, link, secret, session, now, 100).await?;
            sessions::add_link(conn, link, now, end, 100).await?;
            Ok(redeemed)
        }
        .boxed()
    });
    assert!(redeemed.await);
}

async fn the_janitor_takes_what_is_over(store: TestStore) {
    let now = store.store.timestamp();
    let hour = Duration::from_secs(3600);
    add(&store, 1, now.minus(hour), now.minus(Duration::from_secs(1))).await;
    add(&store, 2, now, now.plus(hour)).await;
    let mut registry = Registry::default();
    let metrics: Arc<Metrics> = registry.add();
    janitor::sweep(&store.store, &Namespaces::default(), &metrics, &Lease::always_held(), &mut Uuid::nil())
        .await
        .expect("a round");
    assert_eq!((store.count("sign_in_links").await, store.count("sessions").await), (1, 1));
    assert!(registry.encode().contains("campanile_rows_removed_total{table=\"sessions\"} 2"));
    let kept = store.read(move |conn| sessions::get(conn, SecretHash([102; 32]), now).boxed()).await;
    assert_eq!(kept.map(|session| session.subject).as_deref(), Some("ana"));
}
