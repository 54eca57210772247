//! Work that one node does for all nodes of a database: the holder of the lease does it. A holder
//! that is gone, or cut off, is replaced by another node within seconds. A holder measures the lease
//! by its own clock from before it asked, so it stops before another node may begin.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use uuid::Uuid;

use super::metrics::{LeaseName, Metrics};
use crate::store::{Store, leases};

/// Between two attempts to acquire or renew.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long a lease lasts without renewal.
const TTL: Duration = Duration::from_secs(4);

/// A handle on one lease; all clones are one.
#[derive(Clone)]
pub struct Lease(Option<Arc<LeaseState>>);

struct LeaseState {
    held_until: watch::Sender<Option<Instant>>,
    /// Set to give the lease up.
    released: watch::Sender<bool>,
}

impl Lease {
    /// The lease of the only node of a store.
    pub fn always_held() -> Self {
        Self(None)
    }

    /// Holds `name` for `node` whenever no other node does, until it is released. Returns the task for
    /// that too, to be spawned.
    pub fn acquire(
        store: Store,
        name: &'static str,
        node: Uuid,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()>) {
        let shared = Arc::new(LeaseState {
            held_until: watch::Sender::new(None),
            released: watch::Sender::new(false),
        });
        let lease = if store.id().is_some() { Self(Some(shared.clone())) } else { Self::always_held() };
        let is_shared = lease.0.is_some();
        let work = async move {
            let level = metrics.lease_held.with(LeaseName(name));
            if is_shared {
                shared.keep(&store, name, node, |held| _ = level.set(held.into())).await;
            } else {
                level.set(1);
            }
        };
        (lease, work)
    }

    /// Whether this node certainly holds it.
    pub fn is_held(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.is_held())
    }

    /// Waits until this node holds it.
    pub async fn held(&self) {
        let Some(shared) = &self.0 else { return };
        let mut held_until = shared.held_until.subscribe();
        // The sender is in the handle.
        let _ = held_until.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await;
    }

    /// Releases it for good, so that another node need not wait.
    pub fn release(&self) {
        if let Some(shared) = &self.0 {
            shared.released.send_replace(true);
        }
    }

    /// Waits until it is released, or the database does not answer.
    pub async fn released(&self) {
        let Some(shared) = &self.0 else { return };
        // The work has a receiver until it ends.
        shared.released.closed().await;
    }
}

impl LeaseState {
    fn is_held(&self) -> bool {
        self.held_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    async fn keep(&self, store: &Store, name: &'static str, node: Uuid, on_change: impl Fn(bool)) {
        let mut released = self.released.subscribe();
        let mut ticks = tokio::time::interval(RENEWAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut had = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = released.wait_for(|released| *released) => break,
            }
            let until = Instant::now() + TTL;
            match timeout(RENEWAL, leases::hold(store, name, node, TTL)).await {
                Ok(Ok(held)) => drop(self.held_until.send_replace(held.then_some(until))),
                Ok(Err(error)) => tracing::debug!(lease = name, %error, "a lease could not be renewed"),
                Err(_) => tracing::debug!(lease = name, "renewing a lease timed out"),
            }
            let has = self.is_held();
            on_change(has);
            if has != std::mem::replace(&mut had, has) {
                tracing::info!(lease = name, held = has, "this node has acquired or lost a lease");
            }
        }
        self.held_until.send_replace(None);
        on_change(false);
        let released = timeout(RENEWAL, leases::release(store, name, node)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::debug!(lease = name, "a lease could not be released and will expire");
        }
    }
}
