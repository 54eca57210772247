//! How many connections each user has open, over any transport. This node's are counted here, at
//! once and for certain; what other nodes have is asked of Redis where there is one, and of the
//! nodes themselves before anybody is refused because of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::counts::{Claimed, Counts, Tally};

/// Changes that may wait to be written; with more, everything is written anew.
const QUEUE: usize = 4096;
/// Counts in one write.
const AT_ONCE: usize = 256;
/// Between two times that everything is written anew; less than Redis keeps it.
const ANEW: Duration = Duration::from_secs(600);

/// Asks nodes how many connections a user has there; `None` where that cannot be said.
pub type Confirm =
    Arc<dyn Fn(Vec<Uuid>, String) -> BoxFuture<'static, Vec<(Uuid, Option<u32>)>> + Send + Sync>;

/// How many connections each user has open. Cheap to clone: clones count together.
#[derive(Clone)]
pub struct UserConnections(Arc<Inner>);

struct Inner {
    limit: u32,
    open: Mutex<Open>,
    elsewhere: Option<Elsewhere>,
}

#[derive(Default)]
struct Open {
    users: HashMap<Arc<str>, u32>,
    /// Counts the changes.
    changes: u64,
}

/// The way to what others have.
struct Elsewhere {
    counts: Counts,
    nodes: watch::Receiver<Vec<Uuid>>,
    confirm: Confirm,
    changed: mpsc::Sender<Arc<str>>,
    /// A change did not fit into the queue.
    missed: AtomicBool,
}

/// One open connection; counted until dropped.
pub struct OpenConnection {
    all: Arc<Inner>,
    /// `None`: nobody, who is not counted.
    user: Option<Arc<str>>,
}

/// A connection that is counted here, but not yet among those of all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim(Tally);

/// Whether there is room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is, as far as anybody can say.
    Fits,
    /// There is none, for certain.
    Full,
    /// A node that may have some does not say how many.
    InDoubt,
}

impl UserConnections {
    /// At most `limit` for each user on this node, and no other one counts; 0 turns the limit off.
    pub fn new(limit: u32) -> Self {
        Self(Arc::new(Inner { limit, open: Mutex::default(), elsewhere: None }))
    }

    /// At most `limit` for each user on this node and `nodes` together, and the work that tells
    /// these what this node counts, to be spawned.
    pub fn shared(
        limit: u32,
        counts: Counts,
        nodes: watch::Receiver<Vec<Uuid>>,
        confirm: Confirm,
    ) -> (Self, impl Future<Output = ()>) {
        let (changed, queue) = mpsc::channel(QUEUE);
        let elsewhere = Elsewhere { counts, nodes, confirm, changed, missed: AtomicBool::new(false) };
        let inner = Arc::new(Inner { limit, open: Mutex::default(), elsewhere: Some(elsewhere) });
        (Self(inner.clone()), async move { inner.tell(queue).await })
    }

    /// Counts one more of `user`; `None` when that is too many for this node alone. With a claim,
    /// others have a say: it is to be settled before the connection is open. Anonymous users (`""`)
    /// are exempt.
    pub fn open(&self, user: &str) -> Option<(OpenConnection, Option<Claim>)> {
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
        let claim =
            self.0.is_shared().then(|| Claim(Tally { user: (*user).into(), count, change: open.changes }));
        Some((OpenConnection { all: self.0.clone(), user: Some(user) }, claim))
    }

    /// How many `user` has on this node.
    pub fn count(&self, user: &str) -> u32 {
        self.0.open().users.get(user).copied().unwrap_or_default()
    }

    /// Answers that to others, whom this may know in turn: so it keeps nothing alive.
    pub fn counter(&self) -> impl Fn(&str) -> u32 + Send + Sync + 'static {
        let counted = Arc::downgrade(&self.0);
        move |user| counted.upgrade().map_or(0, |counted| Self(counted).count(user))
    }

    /// Whether there is room on all nodes together. While Redis is away, there is.
    pub async fn settle(&self, claim: Claim) -> Room {
        let (Claim(tally), limit) = (claim, self.0.limit);
        let Some(elsewhere) = &self.0.elsewhere else { return Room::Fits };
        let nodes = elsewhere.nodes.borrow().clone();
        if elsewhere.counts.claim(&tally, limit, &nodes).await != Some(Claimed::TooMuch) {
            return Room::Fits;
        }
        // A node that was killed, or could not write, has more in Redis than in truth.
        let answers = (elsewhere.confirm)(nodes, tally.user.clone()).await;
        let others: u32 = answers.iter().filter_map(|(_, count)| *count).sum();
        if tally.count.saturating_add(others) > limit {
            Room::Full
        } else if answers.iter().any(|(_, count)| count.is_none()) {
            Room::InDoubt
        } else {
            elsewhere.say(&tally.user.into());
            Room::Fits
        }
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nobody panics while counting")
    }

    /// Without a limit nobody needs to know.
    fn is_shared(&self) -> bool {
        self.limit > 0 && self.elsewhere.is_some()
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
        if let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| self.limit > 0) {
            elsewhere.say(user);
        }
    }

    /// Writes what changes, and now and then everything: what Redis has lost, and what was not
    /// written while it was away.
    async fn tell(&self, mut queue: mpsc::Receiver<Arc<str>>) {
        let Some(elsewhere) = &self.elsewhere else { return };
        let mut standing = elsewhere.counts.standing();
        let mut losses = standing.borrow().losses;
        let mut anew = tokio::time::interval(ANEW);
        let mut users = Vec::with_capacity(AT_ONCE);
        loop {
            let all = tokio::select! {
                _ = queue.recv_many(&mut users, AT_ONCE) => false,
                _ = anew.tick() => true,
                Ok(()) = standing.changed() => {
                    std::mem::replace(&mut losses, standing.borrow_and_update().losses) != losses
                }
            };
            if elsewhere.missed.swap(false, Ordering::Relaxed) || all {
                users = self.open().users.keys().cloned().collect();
            }
            for some in users.chunks(AT_ONCE) {
                // What is lost with Redis is written anew when it is back.
                if !elsewhere.counts.write(&self.tallies(some)).await {
                    break;
                }
            }
            users.clear();
        }
    }

    /// What is true now, whatever it was when somebody asked for it.
    fn tallies(&self, users: &[Arc<str>]) -> Vec<Tally> {
        let open = self.open();
        let tally = |user: &Arc<str>| Tally {
            user: (**user).into(),
            count: open.users.get(user).copied().unwrap_or_default(),
            change: open.changes,
        };
        users.iter().map(tally).collect()
    }
}

impl Elsewhere {
    fn say(&self, user: &Arc<str>) {
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
