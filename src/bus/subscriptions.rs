//! Which channels this node follows, and which of them Redis has confirmed. Channel actors change
//! the table; one task applies the changes to Redis, so that the commands stay in order and one
//! command covers many channels.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};

use crate::domain::channel::ChannelName;

#[derive(Default)]
pub(super) struct Subscriptions {
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    /// Whether there is a connection to Redis.
    up: bool,
    channels: HashMap<ChannelName, ChannelEntry>,
    /// The channels whose subscription may have to change.
    changed: BTreeSet<ChannelName>,
}

#[derive(Default)]
struct ChannelEntry {
    followers: usize,
    state: State,
    /// Followers that wait for the confirmation.
    waiters: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    None,
    Requested,
    Confirmed,
}

/// What is to change at Redis.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SubscriptionChanges {
    pub(super) subscribe: Vec<ChannelName>,
    pub(super) unsubscribe: Vec<ChannelName>,
}

impl Subscriptions {
    /// Adds a follower. The receiver resolves when Redis has confirmed the subscription; `None`: it is
    /// confirmed already, or there is no connection.
    pub(super) fn follow(&self, channel: &ChannelName) -> Option<oneshot::Receiver<()>> {
        let mut table = self.table();
        let up = table.up;
        let entry = table.channels.entry(channel.clone()).or_default();
        entry.followers += 1;
        if !up || entry.state == State::Confirmed {
            return None;
        }
        let (confirm, confirmed) = oneshot::channel();
        entry.waiters.push(confirm);
        table.changed.insert(channel.clone());
        drop(table);
        self.changed.notify_one();
        Some(confirmed)
    }

    /// Removes a follower.
    pub(super) fn leave(&self, channel: &ChannelName) {
        let mut table = self.table();
        let Some(entry) = table.channels.get_mut(channel) else { return };
        entry.followers = entry.followers.saturating_sub(1);
        if entry.followers > 0 {
            return;
        }
        if table.up {
            table.changed.insert(channel.clone());
            drop(table);
            self.changed.notify_one();
        } else {
            table.channels.remove(channel);
        }
    }

    /// There is a new connection, on which everything has to be subscribed.
    pub(super) fn connected(&self) {
        let mut table = self.table();
        table.up = true;
        table.changed = table.channels.keys().cloned().collect();
        drop(table);
        self.changed.notify_one();
    }

    /// The connection is lost. Nobody waits for a confirmation any more.
    pub(super) fn disconnected(&self) {
        let mut table = self.table();
        table.up = false;
        table.changed.clear();
        table.channels.retain(|_, entry| {
            entry.state = State::None;
            entry.waiters.clear();
            entry.followers > 0
        });
    }

    /// Waits for changes, and takes at most `max` of each kind.
    pub(super) async fn next_changes(&self, max: usize) -> SubscriptionChanges {
        loop {
            let changed = self.changed.notified();
            let changes = self.try_next_changes(max);
            if changes != SubscriptionChanges::default() {
                return changes;
            }
            changed.await;
        }
    }

    /// Takes at most `max` changes of each kind, without waiting.
    pub(super) fn try_next_changes(&self, max: usize) -> SubscriptionChanges {
        let mut table = self.table();
        let mut changes = SubscriptionChanges::default();
        while changes.subscribe.len() < max
            && changes.unsubscribe.len() < max
            && let Some(channel) = table.changed.pop_first()
        {
            let Some(entry) = table.channels.get_mut(&channel) else { continue };
            match (entry.followers > 0, entry.state) {
                (true, State::None) => {
                    entry.state = State::Requested;
                    changes.subscribe.push(channel);
                }
                (false, State::Confirmed) => {
                    // A new follower subscribes after this command.
                    entry.state = State::None;
                    changes.unsubscribe.push(channel);
                }
                (false, State::None) => drop(table.channels.remove(&channel)),
                // A requested subscription is looked at again when it is confirmed.
                (true, State::Confirmed) | (_, State::Requested) => {}
            }
        }
        if !table.changed.is_empty() {
            drop(table);
            self.changed.notify_one();
        }
        changes
    }

    /// Redis has confirmed these subscriptions. Returns those whose followers stopped waiting: they
    /// have started without, and must check the log once more.
    pub(super) fn confirmed(&self, channels: Vec<ChannelName>) -> Vec<ChannelName> {
        let mut table = self.table();
        let mut missed = Vec::new();
        for channel in channels {
            let Some(entry) = table.channels.get_mut(&channel) else { continue };
            entry.state = State::Confirmed;
            let waiters = std::mem::take(&mut entry.waiters);
            let followed = entry.followers > 0;
            let answered: Vec<bool> = waiters.into_iter().map(|one| one.send(()).is_ok()).collect();
            if !followed {
                table.changed.insert(channel);
            } else if answered.contains(&false) {
                missed.push(channel);
            }
        }
        missed
    }

    /// Redis has unsubscribed these channels; they are removed unless they have new followers.
    pub(super) fn unsubscribed(&self, channels: &[ChannelName]) {
        let mut table = self.table();
        for channel in channels {
            let unused = |one: &ChannelEntry| one.followers == 0 && one.state == State::None;
            if table.channels.get(channel).is_some_and(unused) {
                table.channels.remove(channel);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no thread panics while holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name).unwrap()
    }

    fn subscribe(names: &[&str]) -> SubscriptionChanges {
        SubscriptionChanges {
            subscribe: names.iter().map(|name| channel(name)).collect(),
            unsubscribe: Vec::new(),
        }
    }

    #[test]
    fn nobody_waits_where_there_is_no_connection() {
        let subscriptions = Subscriptions::default();
        assert!(subscriptions.follow(&channel("a")).is_none());
        assert!(subscriptions.follow(&channel("b")).is_none());
        subscriptions.leave(&channel("b"));
        subscriptions.connected();
        assert_eq!(
            subscriptions.try_next_changes(10),
            subscribe(&["a"]),
            "a channel without followers is removed"
        );
    }

    #[test]
    fn who_follows_waits_until_it_is_confirmed() {
        let subscriptions = Subscriptions::default();
        subscriptions.connected();
        let mut first = subscriptions.follow(&channel("a")).expect("not yet");
        assert_eq!(subscriptions.try_next_changes(10), subscribe(&["a"]));
        let mut second = subscriptions.follow(&channel("a")).expect("still not");
        assert!(first.try_recv().is_err());
        assert!(subscriptions.confirmed(vec![channel("a")]).is_empty());
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(()), Ok(())));
        assert!(subscriptions.follow(&channel("a")).is_none(), "now it is");
        assert_eq!(subscriptions.try_next_changes(10), SubscriptionChanges::default());
    }

    #[test]
    fn who_does_not_wait_any_longer_is_named() {
        let subscriptions = Subscriptions::default();
        subscriptions.connected();
        drop(subscriptions.follow(&channel("a")));
        subscriptions.try_next_changes(10);
        assert_eq!(subscriptions.confirmed(vec![channel("a")]), [channel("a")]);
    }

    #[test]
    fn the_last_one_ends_the_subscription_and_the_next_begins_it_again() {
        let subscriptions = Subscriptions::default();
        subscriptions.connected();
        let first = subscriptions.follow(&channel("a"));
        subscriptions.try_next_changes(10);
        subscriptions.confirmed(vec![channel("a")]);
        drop(first);
        subscriptions.leave(&channel("a"));
        let ended = SubscriptionChanges { subscribe: Vec::new(), unsubscribe: vec![channel("a")] };
        assert_eq!(subscriptions.try_next_changes(10), ended);
        let waits = subscriptions.follow(&channel("a"));
        assert!(waits.is_some(), "the unsubscription is under way");
        subscriptions.unsubscribed(&ended.unsubscribe);
        assert_eq!(subscriptions.try_next_changes(10), subscribe(&["a"]));
    }

    #[test]
    fn who_left_while_the_subscription_was_on_its_way_ends_it_afterwards() {
        let subscriptions = Subscriptions::default();
        subscriptions.connected();
        let _waits = subscriptions.follow(&channel("a"));
        subscriptions.try_next_changes(10);
        subscriptions.leave(&channel("a"));
        assert_eq!(subscriptions.try_next_changes(10), SubscriptionChanges::default());
        subscriptions.confirmed(vec![channel("a")]);
        assert_eq!(subscriptions.try_next_changes(10).unsubscribe, [channel("a")]);
    }

    #[test]
    fn a_lost_connection_leaves_nobody_waiting() {
        let subscriptions = Subscriptions::default();
        subscriptions.connected();
        let mut waits = subscriptions.follow(&channel("a")).expect("not yet");
        subscriptions.disconnected();
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        subscriptions.connected();
        assert_eq!(subscriptions.try_next_changes(10), subscribe(&["a"]));
    }
}
