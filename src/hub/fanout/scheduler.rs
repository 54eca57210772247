//! When a worker thread delivers. A round takes all messages that have come. If more are there after a
//! long round, the thread backs off first, so that what its other tasks read meanwhile is delivered
//! together: a system call for each subscriber is the price of a round, whatever it carries.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Messages of one round.
const ROUND_LIMIT: usize = 64;
/// The part of a long round that is given to the thread's other tasks after it.
const BACKOFF_SHARE: u32 = 8;
/// A round that counts as long. After a shorter one the timer, which counts in milliseconds, would take
/// more than the part.
const LONG_ROUND: Duration = Duration::from_millis(2);

/// Takes messages from a thread's inbox, round by round.
pub(super) struct DrainScheduler<T> {
    inbox: mpsc::Receiver<T>,
    /// No round begins before this time.
    resume_at: Instant,
}

impl<T> DrainScheduler<T> {
    pub(super) fn new(inbox: mpsc::Receiver<T>) -> Self {
        Self { inbox, resume_at: Instant::now() }
    }

    /// Waits for a message, and for the end of the backoff unless the round is full before; adds all that
    /// have come to `round`. `false` when nothing can come any more.
    pub(super) async fn next(&mut self, round: &mut Vec<T>) -> bool {
        if self.inbox.recv_many(round, ROUND_LIMIT).await == 0 {
            return false;
        }
        while round.len() < ROUND_LIMIT && Instant::now() < self.resume_at {
            let more = self.inbox.recv_many(round, ROUND_LIMIT - round.len());
            if let Ok(0) | Err(_) = timeout_at(self.resume_at, more).await {
                break;
            }
        }
        true
    }

    /// Ends a round that began then. Only a thread that is behind backs off: what comes to an idle thread
    /// does not wait.
    pub(super) fn finished(&mut self, began: Instant) {
        if !self.inbox.is_empty() {
            let now = Instant::now();
            self.resume_at = now + backoff(now - began);
        }
    }
}

/// How long a thread backs off after a round that took so long.
fn backoff(took: Duration) -> Duration {
    if took < LONG_ROUND { Duration::ZERO } else { took / BACKOFF_SHARE }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(1000);

    fn scheduler() -> (mpsc::Sender<usize>, DrainScheduler<usize>) {
        let (sender, inbox) = mpsc::channel(1000);
        (sender, DrainScheduler::new(inbox))
    }

    #[test]
    fn only_a_long_round_is_followed_by_a_backoff() {
        assert_eq!(backoff(LONG_ROUND - Duration::from_nanos(1)), Duration::ZERO);
        assert_eq!(backoff(LONG_ROUND), LONG_ROUND / BACKOFF_SHARE);
    }

    #[tokio::test]
    async fn what_comes_during_a_backoff_is_delivered_together() {
        let (sender, mut scheduler) = scheduler();
        scheduler.resume_at += FOR_EVER;
        let mut round = Vec::new();
        let inbox = async {
            for number in 0..ROUND_LIMIT {
                sender.send(number).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (any, ()) = tokio::join!(scheduler.next(&mut round), inbox);
        assert_eq!((any, round), (true, Vec::from_iter(0..ROUND_LIMIT)), "a full round begins");
    }

    #[tokio::test]
    async fn nothing_waits_for_a_thread_that_has_nothing_to_do() {
        let (sender, mut scheduler) = scheduler();
        let (began, mut round) = (Instant::now(), Vec::new());
        scheduler.finished(began - FOR_EVER / 2);
        sender.send(1).await.unwrap();
        assert!(scheduler.next(&mut round).await);
        assert_eq!(round, [1]);

        sender.send(2).await.unwrap();
        scheduler.finished(began - FOR_EVER / 2);
        assert!(
            scheduler.resume_at > began + FOR_EVER / 2 / (BACKOFF_SHARE + 1),
            "a thread that is behind backs off"
        );
    }

    #[tokio::test]
    async fn a_round_is_bounded_and_nothing_is_lost_at_the_end() {
        let (sender, mut scheduler) = scheduler();
        for number in 0..3 * ROUND_LIMIT + 1 {
            sender.send(number).await.unwrap();
        }
        drop(sender);
        let (mut all, mut round) = (Vec::new(), Vec::new());
        while scheduler.next(&mut round).await {
            assert!(round.len() <= ROUND_LIMIT);
            all.append(&mut round);
            scheduler.resume_at = Instant::now() + FOR_EVER;
        }
        assert_eq!(all, Vec::from_iter(0..3 * ROUND_LIMIT + 1));
    }
}
