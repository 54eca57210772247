//! When the connections of a worker thread want to hear that time has passed. One sorted list and
//! one timer for all: a timer of the runtime for each would be larger than all else that an idle
//! connection needs to be told of its next ping.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::hub::outbox::Outbox;

/// Alarms this close together go off together: with thousands of connections the thread would
/// otherwise wake for each.
const TOGETHER: Duration = Duration::from_millis(10);

/// The alarms of one worker thread.
#[derive(Default)]
pub(super) struct Alarms {
    set: RefCell<BTreeMap<Alarm, Rc<Outbox>>>,
    next: Cell<u64>,
    /// One was set that comes before all others.
    sooner: Notify,
}

/// An alarm: when, and a number that tells it from others of the same time.
pub(super) type Alarm = (Instant, u64);

impl Alarms {
    /// The keeper of `outbox` hears of it at `when`, or a moment later.
    pub(super) fn set(&self, when: Instant, outbox: Rc<Outbox>) -> Alarm {
        let alarm = (when, self.next.replace(self.next.get().wrapping_add(1)));
        let mut set = self.set.borrow_mut();
        set.insert(alarm, outbox);
        if set.first_key_value().is_some_and(|(first, _)| *first == alarm) {
            self.sooner.notify_one();
        }
        alarm
    }

    /// It does not go off, if it has not yet.
    pub(super) fn cancel(&self, alarm: Alarm) {
        self.set.borrow_mut().remove(&alarm);
    }

    /// Lets alarms go off in time, until this is dropped.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            let first = self.set.borrow().first_key_value().map(|((when, _), _)| *when);
            let sooner = self.sooner.notified();
            match first {
                None => sooner.await,
                Some(when) => tokio::select! {
                    () = tokio::time::sleep_until((when + TOGETHER).into()) => self.go_off(),
                    () = sooner => {}
                },
            }
        }
    }

    fn go_off(&self) {
        let now = Instant::now();
        loop {
            let due = {
                let mut set = self.set.borrow_mut();
                match set.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            due.ring();
        }
    }
}
