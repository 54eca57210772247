//! When a worker thread's turns begin. A turn takes all that has come. If after a long one more is
//! there already, the thread rests first, so that what its other tasks read meanwhile leaves together:
//! a system call for each subscriber is the price of a turn, whatever it carries.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Parcels of one turn.
const MOST: usize = 64;
/// The part of a long turn that is given to the thread's other tasks after it.
const REST: u32 = 8;
/// A turn that is long. After a shorter one the timer, which counts in milliseconds, would take more
/// than the part.
const LONG: Duration = Duration::from_millis(2);

/// What comes to a thread, turn by turn.
pub(super) struct Turns<T> {
    coming: mpsc::Receiver<T>,
    /// Before this no turn begins.
    rested: Instant,
}

impl<T> Turns<T> {
    pub(super) fn new(coming: mpsc::Receiver<T>) -> Self {
        Self { coming, rested: Instant::now() }
    }

    /// Waits for something, and for the end of the rest unless the turn is full before; adds all there
    /// is to `turn`. `false` when nothing can come any more.
    pub(super) async fn next(&mut self, turn: &mut Vec<T>) -> bool {
        if self.coming.recv_many(turn, MOST).await == 0 {
            return false;
        }
        while turn.len() < MOST && Instant::now() < self.rested {
            let more = self.coming.recv_many(turn, MOST - turn.len());
            if let Ok(0) | Err(_) = timeout_at(self.rested, more).await {
                break;
            }
        }
        true
    }

    /// A turn that began then is over. Only who is behind rests: what comes to an idle thread waits
    /// for nothing.
    pub(super) fn over(&mut self, began: Instant) {
        if !self.coming.is_empty() {
            let now = Instant::now();
            self.rested = now + rest(now - began);
        }
    }
}

/// How long a thread rests after a turn that took so long.
fn rest(took: Duration) -> Duration {
    if took < LONG { Duration::ZERO } else { took / REST }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(1000);

    fn turns() -> (mpsc::Sender<usize>, Turns<usize>) {
        let (sender, coming) = mpsc::channel(1000);
        (sender, Turns::new(coming))
    }

    #[test]
    fn only_after_a_long_turn_there_is_a_rest() {
        assert_eq!(rest(LONG - Duration::from_nanos(1)), Duration::ZERO);
        assert_eq!(rest(LONG), LONG / REST);
    }

    #[tokio::test]
    async fn what_comes_while_a_thread_rests_leaves_together() {
        let (sender, mut turns) = turns();
        turns.rested += FOR_EVER;
        let mut turn = Vec::new();
        let coming = async {
            for number in 0..MOST {
                sender.send(number).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (any, ()) = tokio::join!(turns.next(&mut turn), coming);
        assert_eq!((any, turn), (true, Vec::from_iter(0..MOST)), "a full turn begins");
    }

    #[tokio::test]
    async fn nothing_waits_for_a_thread_that_has_nothing_to_do() {
        let (sender, mut turns) = turns();
        let (began, mut turn) = (Instant::now(), Vec::new());
        turns.over(began - FOR_EVER / 2);
        sender.send(1).await.unwrap();
        assert!(turns.next(&mut turn).await);
        assert_eq!(turn, [1]);

        sender.send(2).await.unwrap();
        turns.over(began - FOR_EVER / 2);
        assert!(turns.rested > began + FOR_EVER / 2 / (REST + 1), "who is behind rests");
    }

    #[tokio::test]
    async fn a_turn_is_bounded_and_nothing_is_lost_at_the_end() {
        let (sender, mut turns) = turns();
        for number in 0..3 * MOST + 1 {
            sender.send(number).await.unwrap();
        }
        drop(sender);
        let (mut all, mut turn) = (Vec::new(), Vec::new());
        while turns.next(&mut turn).await {
            assert!(turn.len() <= MOST);
            all.append(&mut turn);
            turns.rested = Instant::now() + FOR_EVER;
        }
        assert_eq!(all, Vec::from_iter(0..3 * MOST + 1));
    }
}
