//! Saves the state of rates with write-behind, so that a restart does not reset a limit. Decisions
//! are made in memory and never wait for the store: while it is slow or down, what was counted since
//! the last write is lost only if the process ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::store::{self, Store, rate_limits};

/// Between two writes. A key that will have recovered by the next one is not written: clients that
/// stay well below the limit cause no write at all, and a crash forgives what recovers in a second.
const ROUND: Duration = Duration::from_secs(1);
/// Rows in one transaction: few, because on SQLite it queues with everything else.
const BATCH: usize = 500;
/// The most keys of one rate that are restored.
const MAX_KEYS: u32 = 100_000;

/// A rate for many keys whose state survives a restart.
pub trait PersistentRate: Send + Sync {
    /// Takes up to `most` keys that changed since they were taken last, and gives those that need
    /// longer than `rest` to earn everything again, each with that time. `None`: none changed.
    fn take_changed(&self, most: usize, rest: Duration) -> Option<Vec<(Arc<str>, Duration)>>;
    /// These could not be written.
    fn put_back(&self, keys: Vec<Arc<str>>);
    /// A key as it was written.
    fn restore(&self, key: &str, left: Duration);
}

/// The rates to save, by their names in the store.
pub type PersistentRates = Vec<(&'static str, Box<dyn PersistentRate>)>;

/// Restores what was saved before the process started.
pub async fn restore(store: &Store, rates: &PersistentRates) -> store::Result<()> {
    for (name, rate) in rates {
        let (name, now): (&'static str, _) = (name, store.timestamp());
        let keys = store
            .read(move |conn| Box::pin(async move { rate_limits::load(conn, name, now, MAX_KEYS).await }))
            .await?;
        for (key, free_at) in keys {
            rate.restore(&key, free_at.since(now));
        }
    }
    Ok(())
}

/// Saves periodically. Never returns.
pub async fn run(store: Store, rates: Arc<PersistentRates>) {
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = write(&store, &rates).await {
            tracing::debug!(%error, "the rates cannot be saved");
        }
    }
}

/// Saves all keys that changed and have not recovered.
pub async fn write(store: &Store, rates: &PersistentRates) -> store::Result<()> {
    for (name, rate) in rates {
        let name: &'static str = name;
        while let Some(changed) = rate.take_changed(BATCH, ROUND) {
            if changed.is_empty() {
                continue;
            }
            let now = store.timestamp();
            let rows = changed.iter().map(|(key, left)| (key.to_string(), now.plus(*left))).collect();
            let written = store
                .write(move |conn| Box::pin(async move { rate_limits::record(conn, name, rows).await }))
                .await;
            if written.is_err() {
                rate.put_back(changed.into_iter().map(|(key, _)| key).collect());
                return written;
            }
        }
    }
    Ok(())
}
