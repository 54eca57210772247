//! How what a channel brings reaches its entries on this thread: where the system allows io_uring with
//! one system call for many sockets, and otherwise with one for each.

use std::rc::Rc;
use std::sync::{Arc, Once};

use super::batch::Run;
use super::entry::Entry;
use crate::hub::outbox::ring::{self, Outgoing, Ring};
use crate::telemetry::Metrics;

/// Entries that are looked at together before each gets its bytes: a system call, or what came between
/// two events, leaves little of the cache, so their memory has to come anew, and so it comes at once and
/// not one by one.
const NEAR: usize = 16;
/// For fewer sockets the ring saves nothing.
const FEW: usize = 4;

/// A thread's way to the sockets.
pub(super) struct Sender {
    ring: Ring,
    metrics: Arc<Metrics>,
}

impl Sender {
    /// One that shares system calls if it is to, and may.
    pub(super) fn new(io_uring: bool, metrics: Arc<Metrics>) -> Self {
        static ONCE: Once = Once::new();
        let opened = if io_uring { Ring::open() } else { Ok(Ring::closed()) };
        let ring = opened.unwrap_or_else(|error| {
            // Once is enough: the metric says how many threads have none.
            ONCE.call_once(
                || tracing::info!(%error, "no io_uring: each delivery has a system call of its own"),
            );
            Ring::closed()
        });
        metrics.io_uring_workers.inc_by(ring.is_open().into());
        Self { ring, metrics }
    }

    /// Gives `run` to all `entries` of a channel.
    pub(super) fn hand_out(&mut self, entries: &[Rc<Entry>], run: &Run<'_>) {
        if !self.ring.is_open() {
            return one_by_one(entries, run);
        }
        entries.chunks(ring::MOST).for_each(|entries| self.together(entries, run));
        if !self.ring.is_open() {
            self.metrics.io_uring_workers.dec();
        }
    }

    /// Gives `run` to those whose sockets are free with one system call, and then to the others: between
    /// the look at a socket and its bytes nothing else may go there.
    fn together(&mut self, entries: &[Rc<Entry>], run: &Run<'_>) {
        let (mut takers, mut sends) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
        let mut others = Vec::new();
        for entry in at_hand(entries) {
            match entry.take_send(run) {
                Some((socket, bytes)) => {
                    takers.push((entry, bytes));
                    sends.push(Outgoing { socket, bytes });
                }
                None => others.push(entry),
            }
        }
        if sends.len() < FEW {
            takers.iter().for_each(|(entry, bytes)| entry.sent(bytes, None));
        } else {
            self.ring.send(&sends, |i, written| {
                let (entry, bytes) = takers[i];
                entry.sent(bytes, written);
            });
        }
        others.into_iter().for_each(|entry| entry.take_run(run));
    }
}

/// The same with a system call for each.
fn one_by_one(entries: &[Rc<Entry>], run: &Run<'_>) {
    at_hand(entries).for_each(|entry| entry.take_run(run));
}

/// All of them, each when it was looked at beside those near it.
fn at_hand(entries: &[Rc<Entry>]) -> impl Iterator<Item = &Rc<Entry>> {
    let look_at = |near: &&[Rc<Entry>]| {
        std::hint::black_box(near.iter().filter(|entry| entry.is_ready()).count());
    };
    entries.chunks(NEAR).inspect(look_at).flatten()
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.metrics.io_uring_workers.dec_by(self.ring.is_open().into());
    }
}
