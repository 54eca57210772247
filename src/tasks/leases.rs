//! Work that one node does for all of a database: who holds the lease does it. A holder that is
//! gone, or cut off, is followed by another one within seconds. A holder counts by its own clock
//! and from before it asked, so it stops before anybody else may begin.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use uuid::Uuid;

use crate::store::{Store, leases};
use crate::telemetry::{Metrics, Name};

/// Between two times of asking for it.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long it lasts without.
const TTL: Duration = Duration::from_secs(4);

/// A handle on one lease; all clones are one.
#[derive(Clone)]
pub struct Lease(Option<Arc<Shared>>);

struct Shared {
    held_until: watch::Sender<Option<Instant>>,
    /// To be asked for no more.
    over: watch::Sender<bool>,
}

impl Lease {
    /// What the one node of a store holds.
    pub fn of_one() -> Self {
        Self(None)
    }

    /// Holds `name` for `node` whenever nobody else does, until it is released: the work for that
    /// comes along, to be spawned.
    pub fn keep(
        store: Store,
        name: &'static str,
        node: Uuid,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Future<Output = ()>) {
        let shared =
            Arc::new(Shared { held_until: watch::Sender::new(None), over: watch::Sender::new(false) });
        let lease = if store.id().is_some() { Self(Some(shared.clone())) } else { Self::of_one() };
        let is_shared = lease.0.is_some();
        let work = async move {
            let level = metrics.leases_held.get_or_create(&Name { name }).clone();
            if is_shared {
                shared.keep(&store, name, node, |held| _ = level.set(held.into())).await;
            } else {
                level.set(1);
            }
        };
        (lease, work)
    }

    /// Whether this node has it, for certain.
    pub fn is_held(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.is_held())
    }

    /// Returns when this node has it.
    pub async fn held(&self) {
        let Some(shared) = &self.0 else { return };
        let mut held_until = shared.held_until.subscribe();
        // The sender is in the handle.
        let _ = held_until.wait_for(|until| until.is_some_and(|until| Instant::now() < until)).await;
    }

    /// Gives it back, so that another node need not wait, and asks for it no more.
    pub fn release(&self) {
        if let Some(shared) = &self.0 {
            shared.over.send_replace(true);
        }
    }

    /// Returns when it is given back, or the database does not answer.
    pub async fn released(&self) {
        let Some(shared) = &self.0 else { return };
        // The work has a receiver until it ends.
        shared.over.closed().await;
    }
}

impl Shared {
    fn is_held(&self) -> bool {
        self.held_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    async fn keep(&self, store: &Store, name: &'static str, node: Uuid, tell: impl Fn(bool)) {
        let mut over = self.over.subscribe();
        let mut ticks = tokio::time::interval(RENEWAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut had = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = over.wait_for(|over| *over) => break,
            }
            let until = Instant::now() + TTL;
            match timeout(RENEWAL, leases::hold(store, name, node, TTL)).await {
                Ok(Ok(held)) => drop(self.held_until.send_replace(held.then_some(until))),
                Ok(Err(error)) => tracing::debug!(lease = name, %error, "a lease cannot be renewed"),
                Err(_) => tracing::debug!(lease = name, "a lease cannot be renewed in time"),
            }
            let has = self.is_held();
            tell(has);
            if has != std::mem::replace(&mut had, has) {
                tracing::info!(lease = name, held = has, "a lease has moved");
            }
        }
        self.held_until.send_replace(None);
        tell(false);
        let released = timeout(RENEWAL, leases::release(store, name, node)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::debug!(lease = name, "a lease is left to run out");
        }
    }
}
