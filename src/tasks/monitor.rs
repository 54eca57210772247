//! Monitors the store and the followed channels: probes the store, more often while it can
//! keep nothing, and compares positions with the log at every interval, and at once when the store is back
//! or has a new generation.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::hub::Hub;
use crate::store::{self, Store};

/// Between two probes while the store answers.
const HEALTHY_INTERVAL: Duration = Duration::from_secs(5);
/// Between two probes while it does not.
const UNHEALTHY_INTERVAL: Duration = Duration::from_millis(500);
/// Between two checks of the log while the bus is not live.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Keeps `campanile_store_up` and the store's generation and clock up to date.
pub async fn watch_store(store: Store, metrics: Arc<store::Metrics>) {
    let mut health = store.health();
    let mut was_healthy = true;
    loop {
        let healthy = *health.borrow_and_update();
        metrics.up.set(i64::from(healthy));
        // Whether a failure was more than that of one call is found out at once.
        let pause = match (healthy, was_healthy) {
            (true, _) => HEALTHY_INTERVAL,
            (false, true) => Duration::ZERO,
            (false, false) => UNHEALTHY_INTERVAL,
        };
        was_healthy = healthy;
        let changed = tokio::time::timeout(pause, health.changed()).await;
        if changed.is_err()
            && let Err(error) = store.probe().await
        {
            tracing::warn!(%error, "the store can keep nothing");
        }
    }
}

/// Compares the followed channels with the log: at every interval, and often while the bus is not
/// live.
pub async fn check_positions(store: Store, hub: Hub, mut live: watch::Receiver<bool>, interval: Duration) {
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut health, mut generations) = (store.health(), store.generations());
    loop {
        let not_live = !*live.borrow_and_update();
        tokio::select! {
            _ = ticks.tick() => {
                if *health.borrow() {
                    hub.check_all().await;
                }
            }
            () = tokio::time::sleep(POLL_INTERVAL), if not_live => {
                if *health.borrow() {
                    hub.check_all().await;
                }
            }
            Ok(()) = live.changed() => {}
            Ok(()) = health.changed() => {
                if *health.borrow_and_update() {
                    hub.recheck_all().await;
                }
            }
            Ok(()) = generations.changed() => {
                generations.borrow_and_update();
                hub.recheck_all().await;
            }
        }
    }
}
