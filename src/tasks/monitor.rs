//! Watches the store and the followed channels: asks the store at rest now and then and often
//! while it does not answer, compares positions with the log at every interval and at once when
//! the store is back or has a new generation.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::hub::Hub;
use crate::store::Store;
use crate::telemetry::Metrics;

/// Between two questions while the store answers.
const AT_REST: Duration = Duration::from_secs(5);
/// Between two questions while it does not.
const IN_TROUBLE: Duration = Duration::from_millis(500);
/// Between two looks at the log while other nodes are not heard.
const UNHEARD: Duration = Duration::from_millis(500);

/// Keeps `campanile_store_up` and the store's generation and clock true.
pub async fn watch_store(store: Store, metrics: Arc<Metrics>) {
    let mut health = store.health();
    loop {
        let healthy = *health.borrow_and_update();
        metrics.store_up.set(i64::from(healthy));
        let pause = if healthy { AT_REST } else { IN_TROUBLE };
        // A failed call elsewhere ends the pause.
        let changed = tokio::time::timeout(pause, health.changed()).await;
        if changed.is_err()
            && let Err(error) = store.probe().await
        {
            tracing::warn!(%error, "the store does not answer");
        }
    }
}

/// Compares the followed channels with the log: now and then, and often while other nodes are not
/// heard at once.
pub async fn check_positions(store: Store, hub: Hub, mut live: watch::Receiver<bool>, interval: Duration) {
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut health, mut generations) = (store.health(), store.generations());
    loop {
        let deaf = !*live.borrow_and_update();
        tokio::select! {
            _ = ticks.tick() => {
                if *health.borrow() {
                    hub.check_all().await;
                }
            }
            () = tokio::time::sleep(UNHEARD), if deaf => {
                if *health.borrow() {
                    hub.check_all().await;
                }
            }
            Ok(()) = live.changed() => {}
            Ok(()) = health.changed() => {
                if *health.borrow_and_update() {
                    hub.look_at_all().await;
                }
            }
            Ok(()) = generations.changed() => {
                generations.borrow_and_update();
                hub.look_at_all().await;
            }
        }
    }
}
