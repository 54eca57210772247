//! The transport beside Redis, and the only one where there is no Redis: PostgreSQL's NOTIFY. For
//! events of the log it names only the channels to check, many in one notification; other messages
//! are sent whole, split where one notification cannot hold them. A channel is queued once however
//! often it changes, so the queue stays bounded while the database is slow.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::message::BusMessage;
use super::packet::HEADER_BYTES;
use crate::domain::channel::ChannelName;

/// Bytes in a notification; PostgreSQL takes less than 8,000.
const MAX_NOTIFICATION_BYTES: usize = 7_900;
/// The longest header of a part: an id, three numbers and the separators.
const PART_HEADER_BYTES: usize = 90;
/// Notifications in one statement.
pub(super) const BATCH: usize = 64;
/// The largest text; a larger one is not sent.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// The most texts in the queue.
const MAX_QUEUED: usize = 1024;
/// The most channels to check by name; with more, all are checked.
const MAX_CHANNELS: usize = 100_000;
/// The most incomplete texts that are kept.
const MAX_INCOMPLETE: usize = 64;
/// The pause after the database has failed.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(200);

/// What is to be sent by NOTIFY.
pub(super) struct NotifyQueue {
    checks: Mutex<PendingChecks>,
    wake: Notify,
    messages: mpsc::Sender<NumberedText>,
    /// Something is being sent.
    busy: AtomicBool,
    /// Notified when nothing is left to send.
    idle: Notify,
}

pub(super) struct NumberedText {
    pub(super) number: u64,
    pub(super) text: Arc<str>,
}

#[derive(Default)]
struct PendingChecks {
    channels: BTreeSet<ChannelName>,
    all: bool,
}

impl NotifyQueue {
    pub(super) fn new() -> (Self, mpsc::Receiver<NumberedText>) {
        let (messages, texts) = mpsc::channel(MAX_QUEUED);
        let (checks, busy) = (Mutex::default(), AtomicBool::new(false));
        (Self { checks, wake: Notify::new(), messages, busy, idle: Notify::new() }, texts)
    }

    /// Makes the other nodes check the logs of these channels.
    pub(super) fn check(&self, channels: impl IntoIterator<Item = ChannelName>) {
        let mut checks = self.checks();
        checks.channels.extend(channels);
        if checks.channels.len() > MAX_CHANNELS {
            checks.channels.clear();
            checks.all = true;
        }
        drop(checks);
        self.wake.notify_one();
    }

    /// Makes the other nodes check the logs of all channels.
    pub(super) fn check_all(&self) {
        self.checks().all = true;
        self.wake.notify_one();
    }

    /// Queues a text. `false`: it is too large, or the queue is full.
    pub(super) fn send(&self, number: u64, text: Arc<str>) -> bool {
        text.len() <= MAX_TEXT_BYTES && self.messages.try_send(NumberedText { number, text }).is_ok()
    }

    /// Whether the queue is empty and nothing is being sent.
    pub(super) fn is_idle(&self) -> bool {
        let checks = self.checks();
        let nothing = checks.channels.is_empty() && !checks.all && self.messages.capacity() == MAX_QUEUED;
        nothing && !self.busy.load(Ordering::SeqCst)
    }

    /// Completes the next time that nothing is left to send.
    pub(super) fn idle(&self) -> Notified<'_> {
        self.idle.notified()
    }

    /// Waits until something is queued, and takes it. What was taken before has been sent by then.
    pub(super) async fn next(
        &self,
        texts: &mut mpsc::Receiver<NumberedText>,
    ) -> (Vec<BusMessage>, Vec<NumberedText>) {
        let mut messages = Vec::new();
        loop {
            // Set before anything is taken, so that `is_idle` cannot be true in between.
            self.busy.store(true, Ordering::SeqCst);
            let woken = self.wake.notified();
            while messages.len() < BATCH
                && let Ok(text) = texts.try_recv()
            {
                messages.push(text);
            }
            let checks = std::mem::take(&mut *self.checks()).into_messages();
            if !(checks.is_empty() && messages.is_empty()) {
                return (checks, messages);
            }
            self.busy.store(false, Ordering::SeqCst);
            self.idle.notify_waiters();
            tokio::select! {
                () = woken => {}
                Some(text) = texts.recv() => {
                    self.busy.store(true, Ordering::SeqCst);
                    messages.push(text);
                }
            }
        }
    }

    fn checks(&self) -> MutexGuard<'_, PendingChecks> {
        self.checks.lock().expect("no thread panics while holding this lock")
    }
}

impl PendingChecks {
    /// As messages that each fit into one notification.
    fn into_messages(self) -> Vec<BusMessage> {
        if self.all {
            return vec![BusMessage::CheckAll];
        }
        let (mut messages, mut some, mut bytes) = (Vec::new(), Vec::new(), 0);
        for channel in self.channels {
            // Each character may be escaped.
            let more = 2 * channel.as_str().len() + 3;
            if bytes + more > MAX_NOTIFICATION_BYTES - PART_HEADER_BYTES - HEADER_BYTES {
                messages.push(BusMessage::Check(std::mem::take(&mut some)));
                bytes = 0;
            }
            bytes += more;
            some.push(channel);
        }
        if !some.is_empty() {
            messages.push(BusMessage::Check(some));
        }
        messages
    }
}

/// Splits a text into notifications: `<node> <number> <part>/<parts>` LF, and that part of the text.
pub(super) fn split(from: Uuid, number: u64, text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > MAX_NOTIFICATION_BYTES - PART_HEADER_BYTES {
        let (part, more) =
            rest.split_at(rest.floor_char_boundary(MAX_NOTIFICATION_BYTES - PART_HEADER_BYTES));
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    let (from, of) = (from.simple(), parts.len());
    let piece = |(at, part): (usize, &str)| format!("{from} {number} {at}/{of}\n{part}");
    parts.into_iter().enumerate().map(piece).collect()
}

#[derive(Default)]
pub(super) struct Reassembler {
    texts: HashMap<(Uuid, u64), Vec<Option<Box<str>>>>,
    /// The oldest first.
    order: VecDeque<(Uuid, u64)>,
}

impl Reassembler {
    /// Adds a notification; returns the text if it is complete now. Anything else is ignored.
    pub(super) fn push(&mut self, notification: &str) -> Option<String> {
        let (head, part) = notification.split_once('\n')?;
        let mut head = head.split(' ');
        let from = Uuid::parse_str(head.next()?).ok()?;
        let number: u64 = head.next()?.parse().ok()?;
        let (at, of) = head.next()?.split_once('/')?;
        let (at, of): (usize, usize) = (at.parse().ok()?, of.parse().ok()?);
        if of == 1 {
            return Some(part.to_owned());
        }
        if at >= of || of > MAX_TEXT_BYTES / 1024 {
            return None;
        }
        let key = (from, number);
        let parts = self.texts.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            vec![None; of]
        });
        *parts.get_mut(at)? = Some(part.into());
        if parts.iter().all(Option::is_some) {
            self.order.retain(|known| *known != key);
            return Some(self.texts.remove(&key)?.into_iter().flatten().collect::<Vec<_>>().concat());
        }
        if self.order.len() > MAX_INCOMPLETE
            && let Some(oldest) = self.order.pop_front()
        {
            self.texts.remove(&oldest);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::packet::{BusKeys, Packets};

    const NODE: Uuid = Uuid::from_u128(1);

    #[test]
    fn a_text_is_reassembled_in_whatever_order_its_parts_arrive() {
        for text in ["short".to_owned(), "é".repeat(20_000), "x".repeat(MAX_TEXT_BYTES)] {
            let mut parts = split(NODE, 7, &text);
            assert!(parts.iter().all(|part| part.len() < 8_000));
            parts.reverse();
            let mut reassembler = Reassembler::default();
            let messages: Vec<String> = parts.iter().filter_map(|part| reassembler.push(part)).collect();
            assert_eq!(messages, [text]);
            assert!(reassembler.texts.is_empty() && reassembler.order.is_empty());
        }
    }

    #[test]
    fn incomplete_texts_are_dropped() {
        let mut reassembler = Reassembler::default();
        for number in 0..1_000 {
            assert_eq!(reassembler.push(&split(NODE, number, &"x".repeat(10_000))[0]), None);
        }
        assert!(reassembler.texts.len() <= MAX_INCOMPLETE);
        for bad in ["", "x", "x\ny", "1 2 3/4\nx", &format!("{} 1 5/4\nx", NODE.simple())] {
            assert_eq!(reassembler.push(bad), None);
        }
        let endless = format!("{} 1 0/999999999999\nx", NODE.simple());
        assert_eq!(reassembler.push(&endless), None);
    }

    #[tokio::test]
    async fn channels_are_named_once_and_in_messages_that_fit() {
        let (queue, mut texts) = NotifyQueue::new();
        let names: Vec<ChannelName> = (0..2_000)
            .map(|i| ChannelName::parse(&format!("news:{}{i}", "\"".repeat(100))).unwrap())
            .collect();
        queue.check(names.clone());
        queue.check(names.clone());
        assert!(queue.send(3, "{}".into()));
        let (checks, messages) = queue.next(&mut texts).await;
        assert_eq!(messages.len(), 1);
        let mut named = Vec::new();
        for message in checks {
            let text = Packets::new(NODE, BusKeys::new(["secret"])).encode(u64::MAX, &message);
            assert_eq!(split(NODE, u64::MAX, &text).len(), 1, "{} bytes", text.len());
            match message {
                BusMessage::Check(channels) => named.extend(channels),
                other => panic!("{other:?}"),
            }
        }
        named.sort();
        let mut names = names;
        names.sort();
        assert_eq!(named, names);
    }

    #[tokio::test]
    async fn with_too_many_it_is_all_of_them() {
        let (queue, mut texts) = NotifyQueue::new();
        queue.check((0..=MAX_CHANNELS).map(|i| ChannelName::parse(&format!("news:{i}")).unwrap()));
        let (checks, _) = queue.next(&mut texts).await;
        assert!(matches!(checks[..], [BusMessage::CheckAll]), "{checks:?}");
    }
}
