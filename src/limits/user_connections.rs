//! How many connections each user has open, over any transport. The connections of this node are
//! counted here, immediately and exactly. Those of other nodes are counted in Redis, if there is
//! one; before a connection is refused because of them, the nodes themselves are asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::shared::{ClaimResult, SharedCounters, UserCount};

/// Changes that may wait to be written; if there are more, all counts are written again.
const QUEUE: usize = 4096;
/// The number of counts in one write.
const AT_ONCE: usize = 256;
/// How often all counts are written again; must be shorter than their lifetime in Redis.
const ANEW: Duration = Duration::from_secs(600);

/// Asks nodes how many connections a user has there; `None` where that is unknown.
pub type Confirm =
    Arc<dyn Fn(Vec<Uuid>, String) -> BoxFuture<'static, Vec<(Uuid, Option<u32>)>> + Send + Sync>;

/// How many connections each user has open. It is cheap to clone, and all clones share the counts.
#[derive(Clone)]
pub struct UserConnections(Arc<Inner>);

struct Inner {
    limit: u32,
    open: Mutex<Open>,
    remote: Option<RemoteCounts>,
}

#[derive(Default)]
struct Open {
    users: HashMap<Arc<str>, u32>,
    /// The number of changes so far.
    changes: u64,
}

/// Access to the counts of other nodes.
struct RemoteCounts {
    counters: SharedCounters,
    nodes: watch::Receiver<Vec<Uuid>>,
    confirm: Confirm,
    changed: mpsc::Sender<Arc<str>>,
    /// Whether a change did not fit into the queue.
    missed: AtomicBool,
}

/// One open connection; it counts until it is dropped.
pub struct OpenConnection {
    all: Arc<Inner>,
    /// `None` for an anonymous user, who is not counted.
    user: Option<Arc<str>>,
}

/// A connection that counts on this node but has not been checked against all nodes yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotClaim(UserCount);

/// Whether the user may open another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// The limit is not reached, as far as is known.
    Available,
    /// The limit is certainly reached.
    Exceeded,
    /// A node that may have connections of the user does not answer.
    Unknown,
}

impl UserConnections {
    /// At most `limit` connections of each user on this node; 0 turns the limit off.
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(Inner { limit, open: Mutex::default(), remote: None }))
    }

    /// At most `limit` connections of each user on this node and `nodes` together. The returned future
    /// publishes the counts of this node to the others and must be spawned.
    pub fn shared(
        limit: u32,
        counters: SharedCounters,
        nodes: watch::Receiver<Vec<Uuid>>,
        confirm: Confirm,
    ) -> (Self, impl Future<Output = ()>) {
        let (changed, queue) = mpsc::channel(QUEUE);
        let remote = RemoteCounts { counters, nodes, confirm, changed, missed: AtomicBool::new(false) };
        let inner = Arc::new(Inner { limit, open: Mutex::default(), remote: Some(remote) });
        (Self(inner.clone()), async move { inner.write_changes(queue).await })
    }

    /// Counts one more connection of `user`; `None` if the limit is reached on this node alone. A
    /// returned claim must be resolved before the connection is open. Anonymous users (`""`) are exempt.
    pub fn open(&self, user: &str) -> Option<(OpenConnection, Option<SlotClaim>)> {
        if user.is_empty() {
            return Some((OpenConnection { all: self.0.clone(), user: None }, None));
        }
        let mut open = self.0.open();
        let user = open.users.get_key_value(user).map_or_else(|| user.into(), |(known, _)| known.clone());
        let count = open.users.entry(user.clone()).or_default();
        if self.0.limit > 0 && *count >= self.0.limit {
            return None;
        }
        *count += 1;
        let count = *count;
        open.changes += 1;
        let claim = self.0.is_shared().then(|| {
            SlotClaim(UserCount { user: (*user).into(), connections: count, version: open.changes })
        });
        Some((OpenConnection { all: self.0.clone(), user: Some(user) }, claim))
    }

    /// How many connections `user` has on this node.
    pub fn count(&self, user: &str) -> u32 {
        self.0.open().users.get(user).copied().unwrap_or_default()
    }

    /// Checks the limit across all nodes. While Redis is not available, the limit counts as not reached.
    pub async fn resolve(&self, claim: SlotClaim) -> Capacity {
        let (SlotClaim(count), limit) = (claim, self.0.limit);
        let Some(remote) = &self.0.remote else { return Capacity::Available };
        let nodes = remote.nodes.borrow().clone();
        if remote.counters.claim(&count, limit, &nodes).await != Some(ClaimResult::LimitExceeded) {
            return Capacity::Available;
        }
        // Redis may list too many connections for a node that was killed or could not write.
        let answers = (remote.confirm)(nodes, count.user.clone()).await;
        let others: u32 = answers.iter().filter_map(|(_, count)| *count).sum();
        if count.connections.saturating_add(others) > limit {
            Capacity::Exceeded
        } else if answers.iter().any(|(_, count)| count.is_none()) {
            Capacity::Unknown
        } else {
            remote.mark_changed(&count.user.into());
            Capacity::Available
        }
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("the counts of connections are not poisoned")
    }

    /// Without a limit there is nothing to share.
    fn is_shared(&self) -> bool {
        self.limit > 0 && self.remote.is_some()
    }

    fn close(&self, user: &Arc<str>) {
        let mut open = self.open();
        open.changes += 1;
        if let Some(count) = open.users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                open.users.remove(user);
            }
        }
        drop(open);
        if let Some(remote) = self.remote.as_ref().filter(|_| self.limit > 0) {
            remote.mark_changed(user);
        }
    }

    /// Writes changed counts, and all counts from time to time: that restores what Redis has lost and
    /// what could not be written while it was not available.
    async fn write_changes(&self, mut queue: mpsc::Receiver<Arc<str>>) {
        let Some(remote) = &self.remote else { return };
        let mut status = remote.counters.status();
        let mut losses = status.borrow().losses;
        let mut anew = tokio::time::interval(ANEW);
        let mut users = Vec::with_capacity(AT_ONCE);
        loop {
            let all = tokio::select! {
                _ = queue.recv_many(&mut users, AT_ONCE) => false,
                _ = anew.tick() => true,
                Ok(()) = status.changed() => {
                    std::mem::replace(&mut losses, status.borrow_and_update().losses) != losses
                }
            };
            if remote.missed.swap(false, Ordering::Relaxed) || all {
                users = self.open().users.keys().cloned().collect();
            }
            for some in users.chunks(AT_ONCE) {
                // All counts are written again when Redis is back.
                if !remote.counters.write(&self.current_counts(some)).await {
                    break;
                }
            }
            users.clear();
        }
    }

    /// The current counts of `users`, whatever they were when the change was queued.
    fn current_counts(&self, users: &[Arc<str>]) -> Vec<UserCount> {
        let open = self.open();
        let count = |user: &Arc<str>| UserCount {
            user: (**user).into(),
            connections: open.users.get(user).copied().unwrap_or_default(),
            version: open.changes,
        };
        users.iter().map(count).collect()
    }
}

impl RemoteCounts {
    fn mark_changed(&self, user: &Arc<str>) {
        if self.changed.try_send(user.clone()).is_err() {
            self.missed.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(user) = &self.user {
            self.all.close(user);
        }
    }
}
