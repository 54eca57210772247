//! Which other nodes are alive. Silence is counted in heartbeats of this node, not in seconds: a
//! process that was stopped for a while must not conclude that all others are dead.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;
use uuid::Uuid;

use super::message::Heartbeat;

/// The most silent nodes that are remembered; with more, all are forgotten.
const MAX_SILENT: usize = 1000;

/// Heartbeats that a node may miss: after five seconds of silence it is not alive.
pub const MAX_MISSED_HEARTBEATS: u32 = 5;

pub(super) struct Membership {
    known: Mutex<HashMap<Uuid, Known>>,
    others: watch::Sender<Vec<Uuid>>,
    /// Nodes that fell silent without announcing that they leave, and may still be running.
    silent: Mutex<HashSet<Uuid>>,
    /// Ticks for which messages of other nodes have arrived without interruption.
    receiving_for: AtomicU32,
}

struct Known {
    /// Ticks since its last heartbeat.
    silent: u32,
    /// Whether it receives messages of others.
    receives: bool,
}

impl Default for Membership {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            others: watch::Sender::new(Vec::new()),
            silent: Mutex::default(),
            receiving_for: AtomicU32::new(0),
        }
    }
}

impl Membership {
    /// Records a heartbeat. Returns whether the node is new.
    pub(super) fn on_heartbeat(&self, node: Uuid, heartbeat: &Heartbeat) -> bool {
        let mut known = self.known();
        let new = known.insert(node, Known { silent: 0, receives: heartbeat.receives }).is_none();
        if new {
            self.silent().remove(&node);
            self.publish(&known);
        }
        new
    }

    /// A node has announced that it leaves.
    pub(super) fn on_leave(&self, node: Uuid) {
        let mut known = self.known();
        self.silent().remove(&node);
        if known.remove(&node).is_some() {
            tracing::info!(%node, "a node has left");
            self.publish(&known);
        }
    }

    /// A second has passed; `receives` says whether messages of others arrive.
    pub(super) fn tick(&self, receives: bool) {
        let before = self.receiving_for.load(Ordering::Relaxed);
        self.receiving_for.store(if receives { before.saturating_add(1) } else { 0 }, Ordering::Relaxed);
        let mut known = self.known();
        let before = known.len();
        known.retain(|node, one| {
            one.silent += 1;
            let alive = one.silent <= MAX_MISSED_HEARTBEATS;
            if !alive {
                let mut silent = self.silent();
                if silent.len() >= MAX_SILENT {
                    silent.clear();
                }
                silent.insert(*node);
                tracing::warn!(%node, "another node is silent and counts as dead");
            }
            alive
        });
        if known.len() != before {
            self.publish(&known);
        }
    }

    /// Whether a node that sends no heartbeats is certainly gone. A node that fell silent may still be
    /// running, a node that has just started may not have received its heartbeat yet, and a node that
    /// receives nothing knows nothing of others.
    pub(super) fn is_gone(&self, node: Uuid) -> bool {
        self.receiving_for.load(Ordering::Relaxed) > MAX_MISSED_HEARTBEATS && !self.silent().contains(&node)
    }

    /// Whether a node does not receive what is sent over Redis.
    pub(super) fn any_peer_not_receiving(&self) -> bool {
        self.known().values().any(|one| !one.receives)
    }

    /// All other nodes that are alive, with change notification.
    pub(super) fn others(&self) -> watch::Receiver<Vec<Uuid>> {
        self.others.subscribe()
    }

    fn publish(&self, known: &HashMap<Uuid, Known>) {
        let mut others: Vec<Uuid> = known.keys().copied().collect();
        others.sort();
        self.others.send_replace(others);
    }

    fn silent(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.silent.lock().expect("no thread panics while holding this lock")
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Uuid, Known>> {
        self.known.lock().expect("no thread panics while holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(receives: bool) -> Heartbeat {
        Heartbeat { name: "n".into(), version: "1".into(), receives, reply_requested: false }
    }

    #[test]
    fn a_node_that_is_silent_for_long_is_not_alive() {
        let (membership, [a, b]) = (Membership::default(), [1, 2].map(Uuid::from_u128));
        assert!(membership.on_heartbeat(b, &heartbeat(true)));
        assert!(membership.on_heartbeat(a, &heartbeat(true)));
        let others = membership.others();
        assert_eq!(*others.borrow(), [a, b]);
        for _ in 0..MAX_MISSED_HEARTBEATS {
            membership.tick(true);
            assert!(!membership.on_heartbeat(a, &heartbeat(true)), "it is known");
        }
        assert_eq!(*others.borrow(), [a, b]);
        membership.tick(true);
        assert_eq!(*others.borrow(), [a]);
        membership.on_leave(a);
        assert!(others.borrow().is_empty());
        assert!(membership.on_heartbeat(b, &heartbeat(true)), "it comes back");
    }

    #[test]
    fn a_node_is_gone_only_if_messages_arrived_meanwhile_and_it_did_not_fall_silent() {
        let (membership, [a, nobody]) = (Membership::default(), [1, 2].map(Uuid::from_u128));
        for _ in 0..2 {
            for _ in 0..=MAX_MISSED_HEARTBEATS {
                assert!(!membership.is_gone(nobody));
                membership.tick(true);
            }
            assert!(membership.is_gone(nobody));
            membership.tick(false);
        }
        membership.on_heartbeat(a, &heartbeat(true));
        (0..=MAX_MISSED_HEARTBEATS).for_each(|_| membership.tick(true));
        assert!(
            membership.others().borrow().is_empty() && !membership.is_gone(a),
            "it has not announced that it leaves"
        );
        membership.on_heartbeat(a, &heartbeat(true));
        membership.on_leave(a);
        assert!(membership.is_gone(a));
    }

    #[test]
    fn a_peer_that_does_not_receive_is_noticed() {
        let membership = Membership::default();
        membership.on_heartbeat(Uuid::from_u128(1), &heartbeat(true));
        assert!(!membership.any_peer_not_receiving());
        membership.on_heartbeat(Uuid::from_u128(2), &heartbeat(false));
        assert!(membership.any_peer_not_receiving());
        membership.on_leave(Uuid::from_u128(2));
        assert!(!membership.any_peer_not_receiving());
    }
}
