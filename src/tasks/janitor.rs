//! The janitor: removes what retention no longer covers, in small transactions, so that nobody
//! waits for it. Reads apply retention themselves; the janitor only gives the space back. One node
//! does it for all that share a database.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::leases::Lease;
use crate::domain::channel::ChannelName;
use crate::domain::options::{Namespaces, SharedNamespaces};
use crate::store::{self, Conn, Store, Ts, builds, deliveries, log, rate_limits, revocations, sessions};
use crate::telemetry::{Kind, Metrics};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(60);
/// Rows in one transaction.
const BATCH: u32 = 500;
/// Channel names in one read.
const NAMES: u32 = 500;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Delivery ids are known for so long: a replay of an older one would count as new.
const DELIVERIES_KEPT: Duration = Duration::from_secs(90 * DAY.as_secs());
/// Payloads are kept for so long.
const PAYLOADS_KEPT: Duration = Duration::from_secs(30 * DAY.as_secs());

/// Sweeps now and then, for ever, while this node has the lease.
pub async fn run(store: Store, namespaces: SharedNamespaces, metrics: Arc<Metrics>, lease: Lease) {
    let mut payloads_dropped_to = Uuid::nil();
    loop {
        tokio::time::sleep(ROUND).await;
        lease.held().await;
        let namespaces = namespaces.load_full();
        let swept = sweep(&store, &namespaces, &metrics, &lease, &mut payloads_dropped_to);
        if let Err(error) = swept.await {
            tracing::warn!(%error, "the janitor gives up this round");
        }
    }
}

/// One round; it ends early when the lease is lost. `payloads_dropped_to` remembers between rounds
/// up to which delivery the payloads are gone, so that their rows are not looked at again.
pub async fn sweep(
    store: &Store,
    namespaces: &Namespaces,
    metrics: &Metrics,
    lease: &Lease,
    payloads_dropped_to: &mut Uuid,
) -> store::Result<()> {
    let round = Round { store, metrics, lease };
    round.trim_logs(namespaces).await?;
    round.all("idempotency", |conn, now| Box::pin(log::forget_keys(conn, now, BATCH))).await?;
    round.all("sessions", |conn, now| Box::pin(sessions::forget_expired(conn, now))).await?;
    round.all("revocations", |conn, now| Box::pin(revocations::forget(conn, now))).await?;
    round.all("rate_limits", |conn, now| Box::pin(rate_limits::forget(conn, now, BATCH))).await?;
    round.forget_builds(namespaces).await?;
    round.drop_payloads(payloads_dropped_to).await?;
    round
        .all("webhook_deliveries", |conn, now| {
            Box::pin(deliveries::forget(conn, now.minus(DELIVERIES_KEPT), BATCH))
        })
        .await
}

struct Round<'r> {
    store: &'r Store,
    metrics: &'r Metrics,
    lease: &'r Lease,
}

impl Round<'_> {
    fn count(&self, kind: &'static str, rows: u64) {
        self.metrics.trimmed.get_or_create(&Kind { kind }).inc_by(rows);
    }

    /// Removes batches of a kind until one is not full.
    async fn all<W>(&self, kind: &'static str, batch: W) -> store::Result<()>
    where
        W: for<'c> FnOnce(&'c mut Conn, Ts) -> BoxFuture<'c, store::Result<usize>> + Copy + Send + 'static,
    {
        while self.lease.is_held() {
            let now = self.store.timestamp();
            let rows = self.store.write(move |conn| batch(conn, now)).await?;
            self.count(kind, rows as u64);
            if rows < BATCH as usize {
                break;
            }
        }
        Ok(())
    }

    async fn forget_builds(&self, namespaces: &Namespaces) -> store::Result<()> {
        let Some(retention) = namespaces.retention_of(&ChannelName::build(Uuid::nil())) else {
            return Ok(());
        };
        while self.lease.is_held() {
            let now = self.store.timestamp();
            let cutoff = now.minus(retention.age);
            let forget = self.store.write(move |conn| Box::pin(builds::forget(conn, cutoff, now, BATCH)));
            let (seen, gone) = forget.await?;
            self.count("builds", gone as u64);
            if seen < BATCH as usize {
                break;
            }
        }
        Ok(())
    }

    async fn drop_payloads(&self, dropped_to: &mut Uuid) -> store::Result<()> {
        while self.lease.is_held() {
            let (after, cutoff) = (*dropped_to, self.store.timestamp().minus(PAYLOADS_KEPT));
            let drop =
                self.store.write(move |conn| Box::pin(deliveries::drop_payloads(conn, after, cutoff, BATCH)));
            let dropped = drop.await?;
            let Some(last) = dropped.last() else { break };
            *dropped_to = *last;
            self.count("payloads", dropped.len() as u64);
        }
        Ok(())
    }

    async fn trim_logs(&self, namespaces: &Namespaces) -> store::Result<()> {
        let mut after = String::new();
        while self.lease.is_held() {
            let from = after.clone();
            let names = self
                .store
                .read(move |conn| Box::pin(async move { log::names_after(conn, &from, NAMES).await }))
                .await?;
            let Some(last) = names.last() else { break };
            after = last.as_str().to_owned();
            for name in names {
                self.trim(namespaces, name).await?;
            }
        }
        Ok(())
    }

    async fn trim(&self, namespaces: &Namespaces, name: ChannelName) -> store::Result<()> {
        let Some(retention) = namespaces.retention_of(&name) else { return Ok(()) };
        while self.lease.is_held() {
            let (asked, channel) = (self.store.clone(), name.clone());
            let (first, bounds) = self
                .store
                .read(move |conn| {
                    Box::pin(async move {
                        let (generation, now) = (asked.generation(), asked.timestamp());
                        let bounds = log::bounds(conn, &generation, &channel, retention, now).await?;
                        store::Result::Ok((log::first_stored(conn, &channel).await?, bounds))
                    })
                })
                .await?;
            if first.is_none_or(|first| first > bounds.before_oldest) {
                break;
            }
            let channel = name.clone();
            let rows = self
                .store
                .write(move |conn| Box::pin(async move { log::trim(conn, &channel, &bounds, BATCH).await }))
                .await?;
            if rows == 0 {
                break;
            }
            self.count("events", rows as u64);
        }
        Ok(())
    }
}
