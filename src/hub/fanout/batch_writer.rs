//! How a channel's events reach its subscribers on this thread: where the system allows io_uring, with
//! one system call for many sockets, and otherwise with one for each.

use std::rc::Rc;
use std::sync::{Arc, Once};

use super::batch::MergedBatch;
use super::subscriber::Subscriber;
use crate::hub::Metrics;
use crate::hub::outbox::io_uring::{self, SocketWrite, UringQueue};

/// Subscribers whose memory is touched together before each gets its bytes: a system call, or the work
/// between two events, leaves little of the cache, so the memory is fetched at once and not one by one.
const PREFETCH: usize = 16;
/// For fewer sockets io_uring saves nothing.
const MIN_SENDS: usize = 4;

/// Writes to the sockets of a thread's subscribers.
pub(super) struct BatchWriter {
    queue: UringQueue,
    metrics: Arc<Metrics>,
}

impl BatchWriter {
    /// Uses io_uring if it is configured and allowed.
    pub(super) fn new(io_uring: bool, metrics: Arc<Metrics>) -> Self {
        static ONCE: Once = Once::new();
        let opened = if io_uring { UringQueue::open() } else { Ok(UringQueue::closed()) };
        let queue = opened.unwrap_or_else(|error| {
            // Log it once: the metric says how many threads have no io_uring.
            ONCE.call_once(
                || tracing::info!(%error, "io_uring is not available: each write uses its own system call"),
            );
            UringQueue::closed()
        });
        metrics.io_uring_workers.inc_by(queue.is_open().into());
        Self { queue, metrics }
    }

    /// Writes `merged` to all `subscribers` of a channel.
    pub(super) fn write(&mut self, subscribers: &[Rc<Subscriber>], merged: &MergedBatch<'_>) {
        if !self.queue.is_open() {
            return write_individually(subscribers, merged);
        }
        subscribers.chunks(io_uring::MAX_SENDS).for_each(|subscribers| self.submit(subscribers, merged));
        if !self.queue.is_open() {
            self.metrics.io_uring_workers.dec();
        }
    }

    /// Writes `merged` to those whose sockets are writable with one system call, and then to the others:
    /// between the check of a socket and its write nothing else may be written there.
    fn submit(&mut self, subscribers: &[Rc<Subscriber>], merged: &MergedBatch<'_>) {
        let (mut ready, mut sends) =
            (Vec::with_capacity(subscribers.len()), Vec::with_capacity(subscribers.len()));
        let mut others = Vec::new();
        for subscriber in prefetched(subscribers) {
            match subscriber.prepare_write(merged) {
                Some((socket, bytes)) => {
                    ready.push((subscriber, bytes));
                    sends.push(SocketWrite { socket, bytes });
                }
                None => others.push(subscriber),
            }
        }
        if sends.len() < MIN_SENDS {
            ready.iter().for_each(|(subscriber, bytes)| subscriber.finish_write(bytes, None));
        } else {
            self.queue.send(&sends, |i, written| {
                let (subscriber, bytes) = ready[i];
                subscriber.finish_write(bytes, written);
            });
        }
        others.into_iter().for_each(|subscriber| subscriber.deliver_merged(merged));
    }
}

/// Writes `merged` with a system call for each subscriber.
fn write_individually(subscribers: &[Rc<Subscriber>], merged: &MergedBatch<'_>) {
    prefetched(subscribers).for_each(|subscriber| subscriber.deliver_merged(merged));
}

/// All subscribers, each after the memory of its group was touched.
fn prefetched(subscribers: &[Rc<Subscriber>]) -> impl Iterator<Item = &Rc<Subscriber>> {
    let touch = |group: &&[Rc<Subscriber>]| {
        std::hint::black_box(group.iter().filter(|subscriber| subscriber.is_ready()).count());
    };
    subscribers.chunks(PREFETCH).inspect(touch).flatten()
}

impl Drop for BatchWriter {
    fn drop(&mut self) {
        self.metrics.io_uring_workers.dec_by(self.queue.is_open().into());
    }
}
