//! Which other nodes are alive. Silence is counted in one's own signs of life: a process that was
//! stopped for a while has not missed those of others, it has missed everything.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::watch;
use uuid::Uuid;

use super::message::Alive;

/// Nodes that are remembered as silent; with more all are forgotten.
const MOST_SILENT: usize = 1000;

/// Signs of life that may be missed: after five seconds of silence a node does not count.
pub const PATIENCE: u32 = 5;

pub(super) struct Registry {
    known: Mutex<HashMap<Uuid, Known>>,
    others: watch::Sender<Vec<Uuid>>,
    /// Who has left the table without a goodbye, and may be there all the same.
    silent: Mutex<HashSet<Uuid>>,
    /// Rounds since others could last not be heard.
    hearing: AtomicU32,
}

struct Known {
    /// Rounds since it was heard.
    silent: u32,
    /// Whether it hears others.
    hears: bool,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            others: watch::Sender::new(Vec::new()),
            silent: Mutex::default(),
            hearing: AtomicU32::new(0),
        }
    }
}

impl Registry {
    /// A sign of life. Answers whether the node is new.
    pub(super) fn alive(&self, node: Uuid, alive: &Alive) -> bool {
        let mut known = self.known();
        let new = known.insert(node, Known { silent: 0, hears: alive.hears }).is_none();
        if new {
            self.silent().remove(&node);
            self.publish(&known);
        }
        new
    }

    /// A node has said that it goes.
    pub(super) fn gone(&self, node: Uuid) {
        let mut known = self.known();
        self.silent().remove(&node);
        if known.remove(&node).is_some() {
            tracing::info!(%node, "another node has left");
            self.publish(&known);
        }
    }

    /// A second has passed, at whose end others can be heard or not.
    pub(super) fn round(&self, hears: bool) {
        let before = self.hearing.load(Ordering::Relaxed);
        self.hearing.store(if hears { before.saturating_add(1) } else { 0 }, Ordering::Relaxed);
        let mut known = self.known();
        let before = known.len();
        known.retain(|node, one| {
            one.silent += 1;
            let alive = one.silent <= PATIENCE;
            if !alive {
                let mut silent = self.silent();
                if silent.len() >= MOST_SILENT {
                    silent.clear();
                }
                silent.insert(*node);
                tracing::warn!(%node, "another node is silent: it does not count any more");
            }
            alive
        });
        if known.len() != before {
            self.publish(&known);
        }
    }

    /// Whether a node is gone for good, of which no sign of life comes. One that fell silent without a
    /// goodbye may go on, whoever has just begun to hear may not have heard it yet, and whoever hears
    /// nobody has lost sight of all.
    pub(super) fn is_gone(&self, node: Uuid) -> bool {
        self.hearing.load(Ordering::Relaxed) > PATIENCE && !self.silent().contains(&node)
    }

    /// Whether one of them does not hear what is said over the usual way.
    pub(super) fn somebody_is_deaf(&self) -> bool {
        self.known().values().any(|one| !one.hears)
    }

    /// All that are alive.
    pub(super) fn others(&self) -> watch::Receiver<Vec<Uuid>> {
        self.others.subscribe()
    }

    fn publish(&self, known: &HashMap<Uuid, Known>) {
        let mut others: Vec<Uuid> = known.keys().copied().collect();
        others.sort();
        self.others.send_replace(others);
    }

    fn silent(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.silent.lock().expect("nobody panics with the registry in hand")
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Uuid, Known>> {
        self.known.lock().expect("nobody panics with the registry in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(hears: bool) -> Alive {
        Alive { name: "n".into(), version: "1".into(), hears, please_answer: false }
    }

    #[test]
    fn who_is_silent_for_long_does_not_count() {
        let (registry, [a, b]) = (Registry::default(), [1, 2].map(Uuid::from_u128));
        assert!(registry.alive(b, &sign(true)));
        assert!(registry.alive(a, &sign(true)));
        let others = registry.others();
        assert_eq!(*others.borrow(), [a, b]);
        for _ in 0..PATIENCE {
            registry.round(true);
            assert!(!registry.alive(a, &sign(true)), "it is known");
        }
        assert_eq!(*others.borrow(), [a, b]);
        registry.round(true);
        assert_eq!(*others.borrow(), [a]);
        registry.gone(a);
        assert!(others.borrow().is_empty());
        assert!(registry.alive(b, &sign(true)), "it comes back");
    }

    #[test]
    fn a_node_is_gone_only_for_those_who_have_listened_and_heard_no_silence() {
        let (registry, [a, nobody]) = (Registry::default(), [1, 2].map(Uuid::from_u128));
        for _ in 0..2 {
            for _ in 0..=PATIENCE {
                assert!(!registry.is_gone(nobody));
                registry.round(true);
            }
            assert!(registry.is_gone(nobody));
            registry.round(false);
        }
        registry.alive(a, &sign(true));
        (0..=PATIENCE).for_each(|_| registry.round(true));
        assert!(registry.others().borrow().is_empty() && !registry.is_gone(a), "it has not said so");
        registry.alive(a, &sign(true));
        registry.gone(a);
        assert!(registry.is_gone(a));
    }

    #[test]
    fn one_deaf_node_makes_all_speak_up() {
        let registry = Registry::default();
        registry.alive(Uuid::from_u128(1), &sign(true));
        assert!(!registry.somebody_is_deaf());
        registry.alive(Uuid::from_u128(2), &sign(false));
        assert!(registry.somebody_is_deaf());
        registry.gone(Uuid::from_u128(2));
        assert!(!registry.somebody_is_deaf());
    }
}
