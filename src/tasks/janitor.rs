//! The janitor: removes what retention no longer covers, in small transactions, so that it blocks
//! nobody. Reads apply retention themselves; the janitor only frees space. One node does it for all
//! that share a database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::leases::Lease;
use super::metrics::{Metrics, Table};
use crate::domain::channel::ChannelName;
use crate::domain::options::{Namespaces, Retention, SharedNamespaces};
use crate::store::{self, Conn, Store, Ts, builds, deliveries, log, rate_limits, revocations, sessions};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(60);
/// Rows in one transaction.
const BATCH: u32 = 500;
/// Channels in one read.
const CHANNELS: u32 = 500;
/// Channels in one transaction.
const TRIMMED_AT_ONCE: usize = 50;

/// A clock that has jumped is believed after so long: what was removed cannot be put back.
const JUMP_TOLERANCE: Duration = Duration::from_secs(600);
const DISTRUST: Duration = Duration::from_secs(3600);
/// Events of channels that keep nothing, because their namespace is gone or its history was turned off.
const ABANDONED: Retention = Retention { events: 10_000, age: Duration::from_secs(7 * 24 * 3600) };

/// Sweeps periodically while this node has the lease. Never returns.
pub async fn run(store: Store, namespaces: SharedNamespaces, metrics: Arc<Metrics>, lease: Lease) {
    let mut payloads_dropped_to = Uuid::nil();
    let mut clock = ClockWatch::new(store.timestamp(), Instant::now());
    loop {
        tokio::time::sleep(ROUND).await;
        lease.held().await;
        if !clock.is_steady(store.timestamp(), Instant::now()) {
            continue;
        }
        let namespaces = namespaces.load_full();
        let swept = sweep(&store, &namespaces, &metrics, &lease, &mut payloads_dropped_to);
        if let Err(error) = swept.await {
            tracing::warn!(%error, "the janitor could not finish this round");
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
    round.remove_batches("idempotency", |conn, now| Box::pin(log::forget_keys(conn, now, BATCH))).await?;
    let kept = namespaces.kept.sessions;
    round
        .remove_batches("sessions", move |conn, now| {
            Box::pin(sessions::forget_expired(conn, now, kept.map(|kept| now.minus(kept))))
        })
        .await?;
    round.remove_batches("revocations", |conn, now| Box::pin(revocations::forget(conn, now))).await?;
    round.remove_batches("rate_limits", |conn, now| Box::pin(rate_limits::forget(conn, now, BATCH))).await?;
    round.forget_builds(namespaces).await?;
    round.drop_payloads(payloads_dropped_to, namespaces.kept.delivery_payloads).await?;
    let kept = namespaces.kept.delivery_ids;
    round
        .remove_batches("webhook_deliveries", move |conn, now| {
            Box::pin(deliveries::forget(conn, now.minus(kept), BATCH))
        })
        .await
}

/// Compares the clock that retention goes by with one that cannot be set.
struct ClockWatch {
    wall: Ts,
    mono: Instant,
    distrusted_since: Option<Instant>,
}

impl ClockWatch {
    fn new(wall: Ts, mono: Instant) -> Self {
        Self { wall, mono, distrusted_since: None }
    }

    /// Whether the clock has gone evenly since the last call, or has been steady for long after a jump.
    fn is_steady(&mut self, wall: Ts, mono: Instant) -> bool {
        let (gone, expected) = (wall.since(self.wall), mono.duration_since(self.mono));
        let back = self.wall.since(wall);
        (self.wall, self.mono) = (wall, mono);
        if gone > expected + JUMP_TOLERANCE {
            self.distrusted_since = Some(mono);
            tracing::warn!(
                ahead_s = (gone - expected).as_secs(),
                "the clock has jumped ahead; nothing is removed for an hour"
            );
        } else if back > JUMP_TOLERANCE {
            // It is back where it was.
            self.distrusted_since = None;
        }
        self.distrusted_since.is_none_or(|since| mono.duration_since(since) >= DISTRUST)
    }
}

struct Round<'r> {
    store: &'r Store,
    metrics: &'r Metrics,
    lease: &'r Lease,
}

impl Round<'_> {
    fn count(&self, table: &'static str, rows: u64) {
        self.metrics.rows_removed.with(Table(table)).inc_by(rows);
    }

    /// Removes batches from a table until one is not full.
    async fn remove_batches<W>(&self, table: &'static str, batch: W) -> store::Result<()>
    where
        W: for<'c> FnOnce(&'c mut Conn, Ts) -> BoxFuture<'c, store::Result<usize>> + Copy + Send + 'static,
    {
        while self.lease.is_held() {
            let now = self.store.timestamp();
            let rows = self.store.write(move |conn| batch(conn, now)).await?;
            self.count(table, rows as u64);
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

    async fn drop_payloads(&self, dropped_to: &mut Uuid, kept: Duration) -> store::Result<()> {
        while self.lease.is_held() {
            let (after, cutoff) = (*dropped_to, self.store.timestamp().minus(kept));
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
            let oldest = self
                .store
                .read(move |conn| Box::pin(async move { log::oldest_after(conn, &from, CHANNELS).await }))
                .await?;
            let Some(last) = oldest.last() else { break };
            after = last.channel.as_str().to_owned();
            let now = self.store.timestamp();
            let due = oldest.into_iter().filter_map(|oldest| {
                let retention = namespaces.retention_of(&oldest.channel).unwrap_or(ABANDONED);
                oldest.has_expired(retention, now).then_some((oldest.channel, retention))
            });
            self.trim(due.collect()).await?;
        }
        Ok(())
    }

    /// Removes what is too much from each of the channels, many of them in one transaction: a
    /// channel that is in use has a few events too many in each round.
    async fn trim(&self, mut due: Vec<(ChannelName, Retention)>) -> store::Result<()> {
        while self.lease.is_held() && !due.is_empty() {
            let some: Vec<_> = due.iter().take(TRIMMED_AT_ONCE).cloned().collect();
            let (rows, done) = self
                .store
                .write_log(move |mut tx| {
                    Box::pin(async move {
                        let (mut left, mut done) = (BATCH, 0);
                        for (channel, retention) in &some {
                            let bounds = tx.bounds(channel, *retention).await?;
                            left -= log::trim(&mut tx, channel, &bounds, left).await? as u32;
                            if left == 0 {
                                break;
                            }
                            done += 1;
                        }
                        store::Result::Ok((BATCH - left, done))
                    })
                })
                .await?;
            self.count("events", rows.into());
            due.drain(..done);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_by_a_clock_that_has_just_jumped() {
        let (wall, mono) = (Ts::from(chrono::Utc::now()), Instant::now());
        let seconds = Duration::from_secs;
        let mut clock = ClockWatch::new(wall, mono);
        let mut at =
            |wall_s: u64, mono_s: u64| clock.is_steady(wall.plus(seconds(wall_s)), mono + seconds(mono_s));
        assert!(at(60, 60) && at(130, 120), "a correction is no jump");
        let year = 365 * 24 * 3600;
        assert!(!at(year, 180) && !at(year + 60, 240));
        assert!(!at(year + 3_500, 3_680) && at(year + 3_600, 3_780), "after an hour it is believed");
        assert!(!at(2 * year, 3_840));
        assert!(at(3_900, 3_900), "somebody has set it right");
    }
}
