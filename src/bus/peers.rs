//! Whether the other nodes are heard over Redis. A ping to oneself does not show that: two nodes may each be on
//! a Redis of its own. So each node that is on some Redis says so there and by NOTIFY, and whoever hears only
//! the latter hears not all.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// How far the two may be apart: some of both.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node that is silent for so long is gone.
const GONE: Duration = Duration::from_secs(6);

/// When each node was last heard.
#[derive(Default)]
pub(super) struct Peers(HashMap<Uuid, Peer>);

struct Peer {
    /// Over Redis; for one that never was, when it turned up.
    over_redis: Instant,
    by_notify: Option<Instant>,
}

impl Peers {
    /// Something of `node` came over Redis.
    pub(super) fn over_redis(&mut self, node: Uuid, now: Instant) {
        self.of(node, now).over_redis = now;
    }

    /// `node` says by NOTIFY that it sends over Redis.
    pub(super) fn by_notify(&mut self, node: Uuid, now: Instant) {
        self.of(node, now).by_notify = Some(now);
    }

    /// A node that is not heard over Redis although it sends there.
    pub(super) fn unheard(&mut self, now: Instant) -> Option<Uuid> {
        let lately = |at: Instant| now - at < GONE;
        self.0.retain(|_, peer| peer.by_notify.is_some_and(lately) || lately(peer.over_redis));
        let mut peers = self.0.iter();
        peers
            .find(|(_, peer)| peer.by_notify.is_some_and(|at| at > peer.over_redis + PATIENCE))
            .map(|(id, _)| *id)
    }

    /// The connection is new: what was not heard before says nothing.
    pub(super) fn start_anew(&mut self) {
        self.0.clear();
    }

    fn of(&mut self, node: Uuid, now: Instant) -> &mut Peer {
        self.0.entry(node).or_insert(Peer { over_redis: now, by_notify: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_heard_by_notify_alone_is_missed_until_it_is_heard_or_gone() {
        let (mut peers, node, began) = (Peers::default(), Uuid::from_u128(7), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        for second in [0, 2, 4] {
            peers.by_notify(node, at(second));
            assert_eq!(peers.unheard(at(second)), None);
        }
        peers.by_notify(node, at(6));
        assert_eq!(peers.unheard(at(6)), Some(node));
        peers.over_redis(node, at(7));
        assert_eq!(peers.unheard(at(7)), None);
        peers.by_notify(node, at(13));
        assert_eq!(peers.unheard(at(13)), Some(node));
        assert_eq!(peers.unheard(at(24)), None, "it is gone");
        peers.by_notify(node, at(30));
        peers.by_notify(node, at(36));
        assert_eq!(peers.unheard(at(36)), Some(node));
        peers.start_anew();
        peers.by_notify(node, at(37));
        assert_eq!(peers.unheard(at(37)), None, "it is waited for anew");
    }

    #[test]
    fn who_sends_over_redis_alone_is_no_reason_for_doubt() {
        let (mut peers, node, began) = (Peers::default(), Uuid::from_u128(7), Instant::now());
        peers.over_redis(node, began);
        assert_eq!(peers.unheard(began + Duration::from_secs(4)), None);
    }
}
