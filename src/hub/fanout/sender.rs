//! How what a channel brings reaches its entries on this thread: where the system allows io_uring with
//! one system call for many sockets, and otherwise with one for each.

use std::rc::Rc;
use std::sync::{Arc, Once};

use super::batch::Run;
use super::entry::Entry;
use crate::hub::outbox::ring::{self, Ring, Send};
use crate::telemetry::Metrics;

/// Entries that are looked at together before each gets its bytes: a system call leaves little of
/// the cache, so their memory has to come anew, and so it comes at once and not one by one.
const NEAR: usize = 16;
/// For fewer sockets the ring saves nothing.
const FEW: usize = 4;

/// A thread's way to the sockets.
pub(super) struct Sender {
    ring: Option<Ring>,
    metrics: Arc<Metrics>,
}

impl Sender {
    /// One that shares system calls if it is to, and may.
    pub(super) fn new(io_uring: bool, metrics: Arc<Metrics>) -> Self {
        static ONCE: Once = Once::new();
        let opened = io_uring.then(Ring::open).transpose();
        let ring = opened.unwrap_or_else(|error| {
            // All threads hear the same.
            ONCE.call_once(
                || tracing::info!(%error, "no io_uring: each delivery has a system call of its own"),
            );
            None
        });
        metrics.io_uring_workers.inc_by(i64::from(ring.is_some()));
        Self { ring, metrics }
    }

    /// Gives `run` to all `entries` of a channel.
    pub(super) fn hand_out(&mut self, entries: &[Rc<Entry>], run: &Run<'_>) {
        let near = if self.ring.is_some() { ring::MOST } else { NEAR };
        for near in entries.chunks(near) {
            std::hint::black_box(near.iter().filter(|entry| entry.is_ready()).count());
            match &mut self.ring {
                Some(ring) => together(near, run, ring),
                None => near.iter().for_each(|entry| entry.take_run(run)),
            }
        }
        if self.ring.as_ref().is_some_and(|ring| !ring.is_open()) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.metrics.io_uring_workers.dec_by(i64::from(self.ring.take().is_some()));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Gives `run` to those whose sockets are free with one system call, and then to the others: between
/// the look at a socket and its bytes nothing else may go there.
fn together(entries: &[Rc<Entry>], run: &Run<'_>, ring: &mut Ring) {
    let (mut takers, mut sends) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
    let mut others = Vec::new();
    for entry in entries {
        match entry.take_send(run) {
            Some((socket, bytes)) => {
                takers.push((entry, bytes));
                sends.push(Send { socket, bytes });
            }
            None => others.push(entry),
        }
    }
    if sends.len() < FEW {
        takers.iter().for_each(|(entry, bytes)| entry.sent(bytes, None));
    } else {
        ring.send(&sends, |i, written| {
            let (entry, bytes) = takers[i];
            entry.sent(bytes, written);
        });
    }
    others.into_iter().for_each(|entry| entry.take_run(run));
}
