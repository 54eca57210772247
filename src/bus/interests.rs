//! Which channels this node follows, and which of them Redis has confirmed. Channel actors come and
//! go here; one task makes the subscriptions be like the table, so that their commands keep an order
//! and many go in one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};

use crate::domain::channel::ChannelName;

#[derive(Default)]
pub(super) struct Interests {
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    /// Whether somebody makes the subscriptions be like this.
    up: bool,
    channels: HashMap<ChannelName, Interest>,
    /// Where table and subscriptions differ, or did.
    changed: BTreeSet<ChannelName>,
}

#[derive(Default)]
struct Interest {
    followers: usize,
    subscription: Subscription,
    /// They wait for the confirmation.
    waiting: Vec<oneshot::Sender<()>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Subscription {
    #[default]
    None,
    Asked,
    Confirmed,
}

/// What is to be said to Redis.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) subscribe: Vec<ChannelName>,
    pub(super) unsubscribe: Vec<ChannelName>,
}

impl Interests {
    /// One more follower. The answer comes when Redis has confirmed; `None`: it has, or there is none.
    pub(super) fn follow(&self, channel: &ChannelName) -> Option<oneshot::Receiver<()>> {
        let mut table = self.table();
        let up = table.up;
        let interest = table.channels.entry(channel.clone()).or_default();
        interest.followers += 1;
        if !up || interest.subscription == Subscription::Confirmed {
            return None;
        }
        let (confirm, confirmed) = oneshot::channel();
        interest.waiting.push(confirm);
        table.changed.insert(channel.clone());
        drop(table);
        self.changed.notify_one();
        Some(confirmed)
    }

    /// One follower less.
    pub(super) fn leave(&self, channel: &ChannelName) {
        let mut table = self.table();
        let Some(interest) = table.channels.get_mut(channel) else { return };
        interest.followers = interest.followers.saturating_sub(1);
        if interest.followers > 0 {
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

    /// There is a connection without subscriptions: everything is to be said.
    pub(super) fn begin(&self) {
        let mut table = self.table();
        table.up = true;
        table.changed = table.channels.keys().cloned().collect();
        drop(table);
        self.changed.notify_one();
    }

    /// There is no connection any more. Nobody waits for it.
    pub(super) fn lost(&self) {
        let mut table = self.table();
        table.up = false;
        table.changed.clear();
        table.channels.retain(|_, interest| {
            interest.subscription = Subscription::None;
            interest.waiting.clear();
            interest.followers > 0
        });
    }

    /// Waits until something is to be said, and takes at most `most` of each kind.
    pub(super) async fn changes(&self, most: usize) -> Changes {
        loop {
            let changed = self.changed.notified();
            let changes = self.take(most);
            if changes != Changes::default() {
                return changes;
            }
            changed.await;
        }
    }

    /// The same without waiting.
    pub(super) fn take(&self, most: usize) -> Changes {
        let mut table = self.table();
        let mut changes = Changes::default();
        while changes.subscribe.len() < most
            && changes.unsubscribe.len() < most
            && let Some(channel) = table.changed.pop_first()
        {
            let Some(interest) = table.channels.get_mut(&channel) else { continue };
            match (interest.followers > 0, interest.subscription) {
                (true, Subscription::None) => {
                    interest.subscription = Subscription::Asked;
                    changes.subscribe.push(channel);
                }
                (false, Subscription::Confirmed) => {
                    // Who comes meanwhile subscribes behind it.
                    interest.subscription = Subscription::None;
                    changes.unsubscribe.push(channel);
                }
                (false, Subscription::None) => drop(table.channels.remove(&channel)),
                // What was asked for is looked at again when it is confirmed.
                (true, Subscription::Confirmed) | (_, Subscription::Asked) => {}
            }
        }
        if !table.changed.is_empty() {
            drop(table);
            self.changed.notify_one();
        }
        changes
    }

    /// Redis has confirmed these. Answers those for which nobody waited any longer: their followers
    /// have begun without, and must look at the log once more.
    pub(super) fn confirmed(&self, channels: Vec<ChannelName>) -> Vec<ChannelName> {
        let mut table = self.table();
        let mut late = Vec::new();
        for channel in channels {
            let Some(interest) = table.channels.get_mut(&channel) else { continue };
            interest.subscription = Subscription::Confirmed;
            let waiting = std::mem::take(&mut interest.waiting);
            let followed = interest.followers > 0;
            let answered: Vec<bool> = waiting.into_iter().map(|one| one.send(()).is_ok()).collect();
            if !followed {
                table.changed.insert(channel);
            } else if answered.contains(&false) {
                late.push(channel);
            }
        }
        late
    }

    /// These are unsubscribed: forgotten, unless somebody came meanwhile.
    pub(super) fn ended(&self, channels: &[ChannelName]) {
        let mut table = self.table();
        for channel in channels {
            let over = |one: &Interest| one.followers == 0 && one.subscription == Subscription::None;
            if table.channels.get(channel).is_some_and(over) {
                table.channels.remove(channel);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nobody panics with the interests in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name).unwrap()
    }

    fn subscribe(names: &[&str]) -> Changes {
        Changes { subscribe: names.iter().map(|name| channel(name)).collect(), unsubscribe: Vec::new() }
    }

    #[test]
    fn nobody_waits_where_there_is_no_connection() {
        let interests = Interests::default();
        assert!(interests.follow(&channel("a")).is_none());
        assert!(interests.follow(&channel("b")).is_none());
        interests.leave(&channel("b"));
        interests.begin();
        assert_eq!(interests.take(10), subscribe(&["a"]), "who left is forgotten");
    }

    #[test]
    fn who_follows_waits_until_it_is_confirmed() {
        let interests = Interests::default();
        interests.begin();
        let mut first = interests.follow(&channel("a")).expect("not yet");
        assert_eq!(interests.take(10), subscribe(&["a"]));
        let mut second = interests.follow(&channel("a")).expect("still not");
        assert!(first.try_recv().is_err());
        assert!(interests.confirmed(vec![channel("a")]).is_empty());
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(()), Ok(())));
        assert!(interests.follow(&channel("a")).is_none(), "now it is");
        assert_eq!(interests.take(10), Changes::default());
    }

    #[test]
    fn who_does_not_wait_any_longer_is_named() {
        let interests = Interests::default();
        interests.begin();
        drop(interests.follow(&channel("a")));
        interests.take(10);
        assert_eq!(interests.confirmed(vec![channel("a")]), [channel("a")]);
    }

    #[test]
    fn the_last_one_ends_the_subscription_and_the_next_begins_it_again() {
        let interests = Interests::default();
        interests.begin();
        let first = interests.follow(&channel("a"));
        interests.take(10);
        interests.confirmed(vec![channel("a")]);
        drop(first);
        interests.leave(&channel("a"));
        let ended = Changes { subscribe: Vec::new(), unsubscribe: vec![channel("a")] };
        assert_eq!(interests.take(10), ended);
        let waits = interests.follow(&channel("a"));
        assert!(waits.is_some(), "the end is on its way");
        interests.ended(&ended.unsubscribe);
        assert_eq!(interests.take(10), subscribe(&["a"]));
    }

    #[test]
    fn who_left_while_the_subscription_was_on_its_way_ends_it_afterwards() {
        let interests = Interests::default();
        interests.begin();
        let _waits = interests.follow(&channel("a"));
        interests.take(10);
        interests.leave(&channel("a"));
        assert_eq!(interests.take(10), Changes::default());
        interests.confirmed(vec![channel("a")]);
        assert_eq!(interests.take(10).unsubscribe, [channel("a")]);
    }

    #[test]
    fn a_lost_connection_leaves_nobody_waiting() {
        let interests = Interests::default();
        interests.begin();
        let mut waits = interests.follow(&channel("a")).expect("not yet");
        interests.lost();
        assert_eq!(waits.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        interests.begin();
        assert_eq!(interests.take(10), subscribe(&["a"]));
    }
}
