//! The janitor: removes what retention no longer covers, in small transactions, so that nobody
//! waits for it. Reads apply retention themselves; the janitor only gives the space back.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::channel::ChannelName;
use crate::domain::options::{Namespaces, SharedNamespaces};
use crate::store::{self, Store, builds, deliveries, log, rate_limits, revocations, sessions};
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

/// Sweeps now and then, for ever.
pub async fn run(store: Store, namespaces: SharedNamespaces, metrics: Arc<Metrics>) {
    let mut payloads_dropped_to = Uuid::nil();
    loop {
        tokio::time::sleep(ROUND).await;
        if let Err(error) = sweep(&store, &namespaces.load_full(), &metrics, &mut payloads_dropped_to).await {
            tracing::warn!(%error, "the janitor gives up this round");
        }
    }
}

/// One round. `payloads_dropped_to` remembers between rounds up to which delivery the payloads
/// are gone, so that their rows are not looked at again.
pub async fn sweep(
    store: &Store,
    namespaces: &Namespaces,
    metrics: &Metrics,
    payloads_dropped_to: &mut Uuid,
) -> store::Result<()> {
    trim_logs(store, namespaces, metrics).await?;
    let count = |kind, rows: usize| {
        metrics.trimmed.get_or_create(&Kind { kind }).inc_by(rows as u64);
    };
    loop {
        let now = store.timestamp();
        let rows = store
            .write(move |conn| Box::pin(async move { log::forget_keys(conn, now, BATCH).await }))
            .await?;
        count("idempotency", rows);
        if rows < BATCH as usize {
            break;
        }
    }
    let now = store.timestamp();
    let over = store.write(move |conn| Box::pin(async move { sessions::forget_expired(conn, now).await }));
    count("sessions", over.await?);
    let rows = store.write(move |conn| Box::pin(async move { revocations::forget(conn, now).await })).await?;
    count("revocations", rows);
    loop {
        let now = store.timestamp();
        let rows = store
            .write(move |conn| Box::pin(async move { rate_limits::forget(conn, now, BATCH).await }))
            .await?;
        count("rate_limits", rows);
        if rows < BATCH as usize {
            break;
        }
    }
    let retention = namespaces.retention_of(&ChannelName::build(Uuid::nil()));
    while let Some(retention) = retention {
        let now = store.timestamp();
        let cutoff = now.minus(retention.age);
        let (seen, gone) = store
            .write(move |conn| Box::pin(async move { builds::forget(conn, cutoff, now, BATCH).await }))
            .await?;
        count("builds", gone);
        if seen < BATCH as usize {
            break;
        }
    }
    loop {
        let (after, cutoff) = (*payloads_dropped_to, store.timestamp().minus(PAYLOADS_KEPT));
        let dropped = store
            .write(move |conn| {
                Box::pin(async move { deliveries::drop_payloads(conn, after, cutoff, BATCH).await })
            })
            .await?;
        let Some(last) = dropped.last() else { break };
        *payloads_dropped_to = *last;
        count("payloads", dropped.len());
    }
    loop {
        let cutoff = store.timestamp().minus(DELIVERIES_KEPT);
        let rows = store
            .write(move |conn| Box::pin(async move { deliveries::forget(conn, cutoff, BATCH).await }))
            .await?;
        count("webhook_deliveries", rows);
        if rows < BATCH as usize {
            return Ok(());
        }
    }
}

async fn trim_logs(store: &Store, namespaces: &Namespaces, metrics: &Metrics) -> store::Result<()> {
    let mut after = String::new();
    loop {
        let from = after.clone();
        let names = store
            .read(move |conn| Box::pin(async move { log::names_after(conn, &from, NAMES).await }))
            .await?;
        let Some(last) = names.last() else { return Ok(()) };
        after = last.as_str().to_owned();
        for name in names {
            let rows = trim(store, namespaces, name).await?;
            metrics.trimmed.get_or_create(&Kind { kind: "events" }).inc_by(rows);
        }
    }
}

async fn trim(store: &Store, namespaces: &Namespaces, name: ChannelName) -> store::Result<u64> {
    let Some(retention) = namespaces.retention_of(&name) else { return Ok(0) };
    let mut removed = 0;
    loop {
        let (asked, channel) = (store.clone(), name.clone());
        let (first, bounds) = store
            .read(move |conn| {
                Box::pin(async move {
                    let (generation, now) = (asked.generation(), asked.timestamp());
                    let bounds = log::bounds(conn, &generation, &channel, retention, now).await?;
                    store::Result::Ok((log::first_stored(conn, &channel).await?, bounds))
                })
            })
            .await?;
        if first.is_none_or(|first| first > bounds.before_oldest) {
            return Ok(removed);
        }
        let channel = name.clone();
        let rows = store
            .write(move |conn| Box::pin(async move { log::trim(conn, &channel, &bounds, BATCH).await }))
            .await?;
        if rows == 0 {
            return Ok(removed);
        }
        removed += rows as u64;
    }
}
