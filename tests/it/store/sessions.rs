//! Sign-in links and sessions in the store: what the janitor takes and leaves, and when a session that is
//! watched counts as over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use campanile::domain::options::{Kept, Namespaces};
use campanile::sign_in::OpenSessions;
use campanile::store::Ts;
use campanile::store::sessions::{self, SecretHash, Session};
use campanile::tasks::Metrics;
use campanile::tasks::janitor;
use campanile::tasks::leases::Lease;
use campanile::telemetry::metrics::Registry;
use futures_util::FutureExt as _;
use uuid::Uuid;

use crate::support::store::*;

on_both![
    the_janitor_takes_what_is_over,
    sessions_that_began_before_retention_end,
    a_session_that_ends_is_noticed_and_no_other,
];

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

async fn sessions_that_began_before_retention_end(store: TestStore) {
    let now = store.store.timestamp();
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    for (number, ago) in [(1, 31), (2, 29)] {
        add(&store, number, now.minus(minutes(ago)), now.plus(minutes(600))).await;
    }
    let kept = Kept { sessions: Some(minutes(30)), ..Kept::default() };
    let namespaces = Namespaces { kept, ..Namespaces::default() };
    let (metrics, lease) = (Metrics::default(), Lease::always_held());
    janitor::sweep(&store.store, &namespaces, &metrics, &lease, &mut Uuid::nil()).await.expect("a round");
    let open = async |number: u8| {
        store
            .read(move |conn| sessions::get(conn, SecretHash([100 + number; 32]), now).boxed())
            .await
            .is_some()
    };
    assert_eq!((open(1).await, open(2).await), (false, true));
}

async fn a_session_that_ends_is_noticed_and_no_other(store: TestStore) {
    let now = store.store.timestamp();
    for number in 1..=3 {
        add(&store, number, now, now.plus(Duration::from_secs(3600))).await;
    }
    let notified = Arc::new(AtomicUsize::new(0));
    let open = OpenSessions::new(store.store.clone(), {
        let notified = notified.clone();
        move || {
            notified.fetch_add(1, Ordering::SeqCst);
        }
    });
    let task = tokio::spawn(open.clone().run());
    let [first, second, third, unknown] = [101, 102, 103, 104].map(|number| SecretHash([number; 32]));
    let (here, twice, there, stays) =
        (open.ended(first), open.ended(first), open.ended(second), open.ended(third));
    open.ended(unknown).await;

    open.end(first).await.expect("the store writes");
    here.await;
    twice.await;
    assert_eq!(notified.load(Ordering::SeqCst), 1, "the other nodes hear of it");

    store.write(move |conn| sessions::end(conn, second).boxed()).await;
    open.check_soon();
    there.await;
    assert!(stays.now_or_never().is_none());
    task.abort();
}
