//! The way around Redis, and the whole way where there is none: PostgreSQL's NOTIFY. Of what is in
//! the log it says only which channels to look at, many in one; what is not kept goes whole, cut into
//! pieces where a notification does not hold it. Each channel is named once however often it is
//! asked for, so that a slow database makes the names wait and nothing grow.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::wire::Said;
use crate::domain::channel::ChannelName;

/// Bytes in a notification; PostgreSQL takes less than 8,000.
const LARGEST: usize = 7_900;
/// What the head of a piece takes at most: an id, three numbers and what is between them.
const HEAD: usize = 90;
/// Notifications in one statement.
pub(super) const AT_ONCE: usize = 64;
/// Bytes of a text that is cut; a larger one is not sent.
const LARGEST_WHOLE: usize = 1 << 20;
/// Texts that wait.
const WAITING: usize = 1024;
/// Channels that are named; with more it is all of them.
const NAMED: usize = 100_000;
/// Incomplete texts that are kept.
const INCOMPLETE: usize = 64;
/// After the database has failed.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// What waits to be said by NOTIFY.
pub(super) struct Understudy {
    looks: Mutex<Looks>,
    wake: Notify,
    whole: mpsc::Sender<Numbered>,
    /// Something is being said.
    busy: AtomicBool,
    /// Nothing is any more.
    rests: Notify,
}

/// A text with its number.
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) text: Arc<str>,
}

#[derive(Default)]
struct Looks {
    channels: BTreeSet<ChannelName>,
    all: bool,
}

impl Understudy {
    pub(super) fn new() -> (Self, mpsc::Receiver<Numbered>) {
        let (whole, texts) = mpsc::channel(WAITING);
        let (looks, busy) = (Mutex::default(), AtomicBool::new(false));
        (Self { looks, wake: Notify::new(), whole, busy, rests: Notify::new() }, texts)
    }

    /// The other nodes shall look at these logs.
    pub(super) fn look(&self, channels: impl IntoIterator<Item = ChannelName>) {
        let mut looks = self.looks();
        looks.channels.extend(channels);
        if looks.channels.len() > NAMED {
            looks.channels.clear();
            looks.all = true;
        }
        drop(looks);
        self.wake.notify_one();
    }

    /// The other nodes shall look at all logs.
    pub(super) fn look_everywhere(&self) {
        self.looks().all = true;
        self.wake.notify_one();
    }

    /// Says a text whole. `false`: it is too large, or too many wait.
    pub(super) fn say(&self, number: u64, text: Arc<str>) -> bool {
        text.len() <= LARGEST_WHOLE && self.whole.try_send(Numbered { number, text }).is_ok()
    }

    /// Whether nothing waits and nothing is being said.
    pub(super) fn is_idle(&self) -> bool {
        let looks = self.looks();
        let nothing = looks.channels.is_empty() && !looks.all && self.whole.capacity() == WAITING;
        nothing && !self.busy.load(Ordering::SeqCst)
    }

    /// Ends when nothing is being said the next time.
    pub(super) fn rests(&self) -> Notified<'_> {
        self.rests.notified()
    }

    /// Waits until there is something, and takes all looks. What was taken before has been said.
    pub(super) async fn next(&self, texts: &mut mpsc::Receiver<Numbered>) -> (Vec<Said>, Vec<Numbered>) {
        let mut whole = Vec::new();
        loop {
            // While something is in hand the mark is there, so that nobody looks in between.
            self.busy.store(true, Ordering::SeqCst);
            let woken = self.wake.notified();
            while whole.len() < AT_ONCE
                && let Ok(text) = texts.try_recv()
            {
                whole.push(text);
            }
            let looks = std::mem::take(&mut *self.looks()).said();
            if !(looks.is_empty() && whole.is_empty()) {
                return (looks, whole);
            }
            self.busy.store(false, Ordering::SeqCst);
            self.rests.notify_waiters();
            tokio::select! {
                () = woken => {}
                Some(text) = texts.recv() => {
                    self.busy.store(true, Ordering::SeqCst);
                    whole.push(text);
                }
            }
        }
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().expect("nobody panics with the looks in hand")
    }
}

impl Looks {
    /// In packets that fit a notification.
    fn said(self) -> Vec<Said> {
        if self.all {
            return vec![Said::CheckAll];
        }
        let (mut said, mut some, mut bytes) = (Vec::new(), Vec::new(), 0);
        for channel in self.channels {
            // Each character may be escaped.
            let more = 2 * channel.as_str().len() + 3;
            if bytes + more > LARGEST - 2 * HEAD {
                said.push(Said::Check(std::mem::take(&mut some)));
                bytes = 0;
            }
            bytes += more;
            some.push(channel);
        }
        if !some.is_empty() {
            said.push(Said::Check(some));
        }
        said
    }
}

/// Cuts a text into notifications: `<node> <number> <piece>/<pieces>` LF, and a part of it.
pub(super) fn cut(from: Uuid, number: u64, text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > LARGEST - HEAD {
        let (part, more) = rest.split_at(rest.floor_char_boundary(LARGEST - HEAD));
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    let (from, of) = (from.simple(), parts.len());
    let piece = |(at, part): (usize, &str)| format!("{from} {number} {at}/{of}\n{part}");
    parts.into_iter().enumerate().map(piece).collect()
}

/// Puts texts together again.
#[derive(Default)]
pub(super) struct Pieces {
    texts: HashMap<(Uuid, u64), Vec<Option<Box<str>>>>,
    /// The oldest first.
    order: VecDeque<(Uuid, u64)>,
}

impl Pieces {
    /// Takes a notification; answers a text that is whole with it. What is no piece is passed over.
    pub(super) fn take(&mut self, notification: &str) -> Option<String> {
        let (head, part) = notification.split_once('\n')?;
        let mut head = head.split(' ');
        let from = Uuid::parse_str(head.next()?).ok()?;
        let number: u64 = head.next()?.parse().ok()?;
        let (at, of) = head.next()?.split_once('/')?;
        let (at, of): (usize, usize) = (at.parse().ok()?, of.parse().ok()?);
        if of == 1 {
            return Some(part.to_owned());
        }
        if at >= of || of > LARGEST_WHOLE / 1024 {
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
        if self.order.len() > INCOMPLETE
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

    const NODE: Uuid = Uuid::from_u128(1);

    #[test]
    fn a_text_is_whole_again_in_whatever_order_its_pieces_come() {
        for text in ["short".to_owned(), "é".repeat(20_000), "x".repeat(LARGEST_WHOLE)] {
            let mut cut = cut(NODE, 7, &text);
            assert!(cut.iter().all(|piece| piece.len() < 8_000));
            cut.reverse();
            let mut pieces = Pieces::default();
            let whole: Vec<String> = cut.iter().filter_map(|piece| pieces.take(piece)).collect();
            assert_eq!(whole, [text]);
            assert!(pieces.texts.is_empty() && pieces.order.is_empty());
        }
    }

    #[test]
    fn what_never_gets_whole_is_forgotten() {
        let mut pieces = Pieces::default();
        for number in 0..1_000 {
            assert_eq!(pieces.take(&cut(NODE, number, &"x".repeat(10_000))[0]), None);
        }
        assert!(pieces.texts.len() <= INCOMPLETE);
        for bad in ["", "x", "x\ny", "1 2 3/4\nx", &format!("{} 1 5/4\nx", NODE.simple())] {
            assert_eq!(pieces.take(bad), None);
        }
        let endless = format!("{} 1 0/999999999999\nx", NODE.simple());
        assert_eq!(pieces.take(&endless), None);
    }

    #[tokio::test]
    async fn channels_are_named_once_and_in_packets_that_fit() {
        let (understudy, mut texts) = Understudy::new();
        let names: Vec<ChannelName> = (0..2_000)
            .map(|i| ChannelName::parse(&format!("news:{}{i}", "\"".repeat(100))).unwrap())
            .collect();
        understudy.look(names.clone());
        understudy.look(names.clone());
        assert!(understudy.say(3, "{}".into()));
        let (looks, whole) = understudy.next(&mut texts).await;
        assert_eq!(whole.len(), 1);
        let mut named = Vec::new();
        for said in looks {
            let text = said.write(NODE, u64::MAX);
            assert_eq!(cut(NODE, u64::MAX, &text).len(), 1, "{} bytes", text.len());
            match said {
                Said::Check(channels) => named.extend(channels),
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
        let (understudy, mut texts) = Understudy::new();
        understudy.look((0..=NAMED).map(|i| ChannelName::parse(&format!("news:{i}")).unwrap()));
        let (looks, _) = understudy.next(&mut texts).await;
        assert!(matches!(looks[..], [Said::CheckAll]), "{looks:?}");
    }
}
