//! The timers of the connections of a worker thread. All of them share one sorted list and one timer
//! of the runtime: a runtime timer for each would take more memory than everything else that an idle
//! connection needs for its pings.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::hub::outbox::Outbox;

/// Timers that are this close together fire together: with thousands of connections the thread would
/// otherwise wake up for each of them.
const TOGETHER: Duration = Duration::from_millis(10);

/// The timers of one worker thread.
#[derive(Default)]
pub(super) struct TimerQueue {
    timers: RefCell<BTreeMap<TimerKey, Rc<Outbox>>>,
    next: Cell<u64>,
    /// Notified when a timer is scheduled that comes before all others.
    earlier: Notify,
}

/// Identifies a timer: its time, and a number that distinguishes it from others of the same time.
pub(super) type TimerKey = (Instant, u64);

impl TimerQueue {
    /// Schedules a timer that wakes the connection of `outbox` at `when` or shortly after.
    pub(super) fn schedule(&self, when: Instant, outbox: Rc<Outbox>) -> TimerKey {
        let key = (when, self.next.replace(self.next.get().wrapping_add(1)));
        let mut timers = self.timers.borrow_mut();
        timers.insert(key, outbox);
        if timers.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.earlier.notify_one();
        }
        key
    }

    /// Cancels a timer that has not fired yet.
    pub(super) fn cancel(&self, key: TimerKey) {
        self.timers.borrow_mut().remove(&key);
    }

    /// Fires timers when they are due, until the future is dropped.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            let first = self.timers.borrow().first_key_value().map(|((when, _), _)| *when);
            let earlier = self.earlier.notified();
            match first {
                None => earlier.await,
                Some(when) => tokio::select! {
                    () = tokio::time::sleep_until((when + TOGETHER).into()) => self.fire_due(),
                    () = earlier => {}
                },
            }
        }
    }

    fn fire_due(&self) {
        let now = Instant::now();
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }
}
