//! One subscriber by itself: what is buffered, what is pushed, and from where it catches up. The last
//! test plays the channel and the connection at random against a small log: whatever comes in between,
//! pushed offsets follow each other or a reset lies between them.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::pause_buffer::MAX_BUFFERED;
use super::*;
use crate::domain::cursor::Cursor;
use crate::domain::event::Event;
use crate::domain::position::Epoch;
use crate::hub::metrics::SlowReason;
use crate::store::log::Bounds;
use futures_util::task::noop_waker_ref;
use std::cell::Cell;
use std::task::{Context, Poll};

/// A subscriber with an outbox that takes everything.
struct Reader {
    subscriber: Rc<Subscriber>,
    outbox: Rc<Outbox>,
}

fn news() -> ChannelName {
    ChannelName::parse("news").unwrap()
}

fn epoch(name: &str) -> Epoch {
    Epoch::parse(name).unwrap()
}

fn at(epoch_name: &str, offset: u64) -> Position {
    Position::new(epoch(epoch_name), offset)
}

fn bounds(epoch_name: &str, before_oldest: u64, head: u64) -> Bounds {
    Bounds { head: at(epoch_name, head), before_oldest }
}

fn event(offset: u64) -> Event {
    Event::plain(offset, &format!("{{\"n\":{offset}}}"))
}

fn events(offsets: impl IntoIterator<Item = u64>) -> Vec<Event> {
    offsets.into_iter().map(event).collect()
}

fn batch(epoch_name: &str, offsets: impl IntoIterator<Item = u64>) -> Arc<Batch> {
    Arc::new(Batch::new(news(), Some(epoch(epoch_name)), events(offsets), None))
}

fn passing() -> Arc<Batch> {
    Arc::new(Batch::new(news(), None, events([0]), None))
}

impl Reader {
    fn paused() -> Self {
        Self::with(Framing::Sse, Outbox::new(usize::MAX, || {}))
    }

    fn with(framing: Framing, outbox: Outbox) -> Self {
        let outbox = Rc::new(outbox);
        let counters = Rc::new(DeliveryCounters::new(Arc::default()));
        let options = SubscriberOptions { receives_join_leave: true, ..SubscriberOptions::default() };
        let subscriber = Subscriber::new(news(), outbox.clone(), framing, options, counters);
        Self { subscriber: Rc::new(subscriber), outbox }
    }

    fn live(epoch_name: &str, offset: u64) -> Self {
        let reader = Self::paused();
        assert_eq!(reader.subscriber.resume(Some(at(epoch_name, offset))), Resume::Live);
        reader
    }

    fn text(&self) -> String {
        let mut text = String::new();
        while let Poll::Ready(Some(chunk)) =
            self.outbox.poll_chunk(&mut Context::from_waker(noop_waker_ref()))
        {
            text.push_str(std::str::from_utf8(&chunk.bytes).unwrap());
        }
        text
    }

    /// What was pushed since the last look.
    fn pushed(&self) -> Vec<Pushed> {
        self.text().split_terminator("\n\n").map(Pushed::read).collect()
    }
}

/// A frame as its reader understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pushed {
    Event(Position),
    Passing,
    Reset(Position),
}

impl Pushed {
    fn read(frame: &str) -> Self {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
        let id = field("id: ").map(|id| Position::parse(id).unwrap());
        match (field("event: "), id) {
            (Some("stream:reset"), Some(id)) => Self::Reset(id),
            (Some("message"), Some(id)) => {
                assert!(field("data: ").unwrap().contains(&format!("{{\"n\":{}}}", id.offset)));
                Self::Event(id)
            }
            (Some("message"), None) => Self::Passing,
            other => panic!("{other:?}: {frame}"),
        }
    }
}

fn pushes(epoch_name: &str, offsets: impl IntoIterator<Item = u64>) -> Vec<Pushed> {
    offsets.into_iter().map(|offset| Pushed::Event(at(epoch_name, offset))).collect()
}

#[test]
fn buffered_events_follow_the_replay_without_repeating_it() {
    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", [3, 4]));
    reader.subscriber.deliver(&batch("e", [5]));
    assert_eq!(reader.pushed(), [], "nothing leaves while the subscriber is paused");
    reader.subscriber.replay(&epoch("e"), events([1, 2, 3])).unwrap();
    assert_eq!(reader.subscriber.resume(Some(at("e", 3))), Resume::Live);
    assert_eq!(reader.pushed(), pushes("e", 1..=5));
    reader.subscriber.deliver(&batch("e", [4, 5]));
    reader.subscriber.deliver(&batch("e", [6]));
    assert_eq!(reader.pushed(), pushes("e", [6]));
    assert_eq!(reader.subscriber.position(), Some(at("e", 6)));
}

#[test]
fn a_buffered_batch_that_does_not_join_asks_for_the_log() {
    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", [2, 3]));
    reader.subscriber.deliver(&batch("e", [6]));
    assert_eq!(reader.subscriber.resume(Some(at("e", 1))), Resume::Gap);
    assert_eq!(reader.pushed(), pushes("e", [2, 3]), "what joins is pushed");
    assert_eq!(reader.subscriber.resume_position(), Some(at("e", 3)));
    reader.subscriber.replay(&epoch("e"), events([4, 5])).unwrap();
    assert_eq!(reader.subscriber.resume(Some(at("e", 5))), Resume::Live, "what did not join was kept");
    assert_eq!(reader.pushed(), pushes("e", 4..=6));
}

#[test]
fn a_live_subscriber_that_sees_a_gap_says_where_it_was() {
    let reader = Reader::live("e", 1);
    assert_eq!(reader.subscriber.resume_position(), None);
    reader.subscriber.deliver(&batch("e", [3]));
    assert_eq!(reader.subscriber.resume_position(), Some(at("e", 1)));
    assert_eq!((reader.pushed(), reader.subscriber.position()), (Vec::new(), None));
    let other = Reader::live("e", 1);
    other.subscriber.deliver(&batch("f", [2]));
    assert_eq!(other.subscriber.resume_position(), Some(at("e", 1)), "another history does not join");
}

#[test]
fn more_than_a_paused_subscriber_may_buffer_is_read_from_the_log() {
    let most = MAX_BUFFERED as u64;
    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", 1..=most));
    assert_eq!(reader.subscriber.resume(Some(at("e", 0))), Resume::Live);
    assert_eq!(reader.pushed().len(), MAX_BUFFERED);

    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", 1..=most));
    reader.subscriber.deliver(&batch("e", [most + 1]));
    reader.subscriber.deliver(&batch("e", [most + 2]));
    let State::Paused(buffer) = &*reader.subscriber.state.borrow() else { panic!("it is paused") };
    assert!(buffer.items.is_empty() && buffer.incomplete);
    assert_eq!(reader.pushed(), []);
}

#[test]
fn an_overflowed_pause_buffer_is_a_gap_once_and_buffers_again() {
    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", 1..=MAX_BUFFERED as u64 + 1));
    assert_eq!(reader.subscriber.resume(Some(at("e", 0))), Resume::Gap);
    reader.subscriber.deliver(&batch("e", [2000]));
    assert_eq!(reader.subscriber.resume(Some(at("e", 1999))), Resume::Live);
    assert_eq!(reader.pushed(), pushes("e", [2000]));
}

#[test]
fn a_new_history_is_told_once_and_goes_on() {
    let reader = Reader::live("e", 5);
    reader.subscriber.reset(&bounds("f", 2, 3));
    reader.subscriber.reset(&bounds("f", 2, 3));
    reader.subscriber.deliver(&batch("f", [4]));
    let expected = [Pushed::Reset(at("f", 3)), Pushed::Event(at("f", 4))];
    assert_eq!(reader.pushed(), expected);
}

#[test]
fn a_reset_while_paused_makes_the_connection_read_again() {
    let reader = Reader::paused();
    reader.subscriber.deliver(&batch("e", [6]));
    reader.subscriber.reset(&bounds("f", 0, 3));
    assert_eq!(reader.subscriber.resume(Some(at("e", 6))), Resume::Gap);
    assert_eq!(reader.pushed(), [], "its own read finds what is lost");
}

#[test]
fn a_trimmed_gap_of_the_channel_resets_only_who_has_it_too() {
    for (offset, expected) in [(3, Some(10)), (4, None), (9, None), (10, Some(10)), (12, Some(12))] {
        let reader = Reader::live("e", offset);
        reader.subscriber.reset(&bounds("e", 4, 10));
        let position = reader.subscriber.position().map(|position| position.offset);
        assert_eq!(position, expected, "behind {offset}");
        let told = if offset == 3 { vec![Pushed::Reset(at("e", 10))] } else { Vec::new() };
        assert_eq!(reader.pushed(), told);
        let resumes = reader.subscriber.resume_position();
        assert_eq!(resumes, expected.is_none().then(|| at("e", offset)), "who lost nothing reads on");
    }
}

#[test]
fn what_is_not_kept_passes_and_has_no_cursor() {
    let reader = Reader::paused();
    reader.subscriber.deliver(&passing());
    assert_eq!(reader.subscriber.resume(None), Resume::Live);
    reader.subscriber.deliver(&passing());
    assert_eq!(reader.pushed(), [Pushed::Passing, Pushed::Passing]);
    let kept = Reader::live("e", 5);
    kept.subscriber.deliver(&passing());
    kept.subscriber.deliver(&batch("e", [6]));
    assert_eq!(kept.pushed(), [Pushed::Passing, Pushed::Event(at("e", 6))]);
}

#[test]
fn all_who_take_a_batch_whole_share_its_bytes() {
    let (first, second, third) = (Reader::live("e", 1), Reader::live("e", 1), Reader::live("e", 2));
    let shared = batch("e", [2, 3]);
    let bytes = [&first, &second, &third].map(|reader| {
        reader.subscriber.deliver(&shared);
        let chunk = reader.outbox.poll_chunk(&mut Context::from_waker(noop_waker_ref()));
        let Poll::Ready(Some(chunk)) = chunk else { panic!("nothing was pushed") };
        chunk.bytes
    });
    assert_eq!(bytes[0].as_ptr(), bytes[1].as_ptr());
    assert!(bytes[0].ends_with(&bytes[2]) && bytes[2].len() < bytes[0].len());
}

#[test]
fn a_cursor_of_many_channels_moves_with_each_event() {
    let cursors = Rc::new(crate::protocol::encoding::Cursors::default());
    let other = ChannelName::parse("other").unwrap();
    cursors.advance(&other, at("x", 9));
    let reader = Reader::with(Framing::SseMany(cursors), Outbox::new(usize::MAX, || {}));
    reader.subscriber.resume(Some(at("e", 1)));
    reader.subscriber.deliver(&batch("e", [1, 2, 3]));
    reader.subscriber.reset(&bounds("f", 0, 7));
    let text = reader.text();
    let cursors: Vec<Cursor> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .map(|id| Cursor::parse(id).unwrap())
        .collect();
    let both = |position| Cursor::Many([(news(), position), (other.clone(), at("x", 9))].into());
    assert_eq!(cursors, [both(at("e", 2)), both(at("e", 3)), both(at("f", 7))]);
}

#[test]
fn a_reader_that_is_too_slow_is_cut_once_and_counted() {
    let cuts = Rc::new(Cell::new(0));
    let counter = cuts.clone();
    let reader = Reader::with(Framing::Sse, Outbox::new(100, move || counter.set(counter.get() + 1)));
    reader.subscriber.resume(Some(at("e", 0)));
    for offset in 1..=20 {
        reader.subscriber.deliver(&batch("e", [offset]));
    }
    assert!(reader.outbox.is_closed());
    assert_eq!(cuts.get(), 1);
    let slow = &reader.subscriber.counters.metrics.slow_disconnects;
    assert_eq!(slow.with(SlowReason::Queue).get(), 1);
}

// ---- at random

#[derive(Debug, Clone)]
enum Act {
    /// So many events are committed, and announced or not.
    Append(u64, bool),
    /// Some range of the log is announced, as fractions of it: old, overlapping or after a hole.
    Announce(u8, u8),
    /// A page of a history that is gone comes late.
    Stale(u64),
    /// Everything up to a fraction of the log is trimmed.
    Trim(u8),
    /// The history is replaced by one that ends there, and the channel hears of it or not.
    Replace(u64, bool),
    /// The channel itself lost its place to trimming.
    LosePlace,
    /// The connection does its next step; a read takes so many events at most.
    Next(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (1..20u64, any::<bool>()).prop_map(|(n, heard)| Act::Append(n, heard)),
        1 => (500..1500u64, any::<bool>()).prop_map(|(n, heard)| Act::Append(n, heard)),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Act::Announce(a, b)),
        1 => (1..100u64).prop_map(Act::Stale),
        1 => any::<u8>().prop_map(Act::Trim),
        1 => (0..200u64, any::<bool>()).prop_map(|(head, heard)| Act::Replace(head, heard)),
        1 => Just(Act::LosePlace),
        12 => (1..400u64).prop_map(Act::Next),
    ];
    prop::collection::vec(act, 1..120)
}

/// What a connection does, one step at a time, so that anything can happen between its steps. The
/// same as `recovery`, which the tests of the whole run with a store.
enum Connection {
    Following,
    CatchingUp(Position),
    /// A page was read: events up to the second number, in a log that then had these bounds.
    Read(Position, u64, Bounds),
}

struct World {
    reader: Reader,
    connection: Connection,
    epochs: u32,
    head: u64,
    before_oldest: u64,
}

impl World {
    fn epoch(&self) -> Epoch {
        epoch(&format!("e{}", self.epochs))
    }

    fn bounds(&self) -> Bounds {
        Bounds { head: Position::new(self.epoch(), self.head), before_oldest: self.before_oldest }
    }

    fn announce(&self, first: u64, last: u64) {
        if first <= last {
            let batch = Batch::new(news(), Some(self.epoch()), events(first..=last), None);
            self.reader.subscriber.deliver(&Arc::new(batch));
        }
    }

    fn act(&mut self, act: Act) {
        let part = |whole: u64, fraction: u8| whole * u64::from(fraction) / 255;
        match act {
            Act::Append(n, heard) => {
                self.head += n;
                if heard {
                    self.announce(self.head - n + 1, self.head);
                }
            }
            Act::Announce(a, b) => {
                let (a, b) = (part(self.head, a.min(b)), part(self.head, a.max(b)));
                self.announce(a + 1, b);
            }
            Act::Stale(n) if self.epochs > 0 => {
                let old = batch(&format!("e{}", self.epochs - 1), n..n + 5);
                self.reader.subscriber.deliver(&old);
            }
            Act::Stale(_) => {}
            Act::Trim(fraction) => self.before_oldest = self.before_oldest.max(part(self.head, fraction)),
            Act::Replace(head, heard) => {
                self.epochs += 1;
                self.head = head;
                self.before_oldest = head / 2;
                if heard {
                    self.reader.subscriber.reset(&self.bounds());
                }
            }
            Act::LosePlace => {
                self.before_oldest = self.before_oldest.max(self.head.saturating_sub(3));
                self.reader.subscriber.reset(&self.bounds());
            }
            Act::Next(limit) => self.step(limit),
        }
    }

    fn step(&mut self, limit: u64) {
        let subscriber = &self.reader.subscriber;
        self.connection = match std::mem::replace(&mut self.connection, Connection::Following) {
            Connection::Following => match subscriber.resume_position() {
                Some(position) => Connection::CatchingUp(position),
                None => Connection::Following,
            },
            Connection::CatchingUp(position) => {
                let bounds = self.bounds();
                let last = bounds.head.offset.min(position.offset + limit);
                Connection::Read(position, last, bounds)
            }
            Connection::Read(mut position, last, bounds) => {
                if bounds.covers(&position) {
                    subscriber.replay(&position.epoch, events(position.offset + 1..=last)).unwrap();
                    position.offset = last;
                } else {
                    subscriber.push_reset(&bounds).unwrap();
                    position = bounds.head.clone();
                }
                if position.offset < bounds.head.offset {
                    Connection::CatchingUp(position)
                } else {
                    match subscriber.resume(Some(position.clone())) {
                        Resume::Live => Connection::Following,
                        Resume::Gap => {
                            Connection::CatchingUp(subscriber.resume_position().unwrap_or(position))
                        }
                    }
                }
            }
        };
    }
}

#[test]
fn whatever_happens_offsets_follow_each_other_or_a_reset_lies_between() {
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let told = TestRunner::new_with_rng(config, rng).run(&acts(), |acts| {
        let start = at("e0", 0);
        let connection = Connection::CatchingUp(start.clone());
        let mut world = World { reader: Reader::paused(), connection, epochs: 0, head: 0, before_oldest: 0 };
        let mut reader_at = start;
        let mut follow = |world: &World| -> Result<(), TestCaseError> {
            for pushed in world.reader.pushed() {
                match pushed {
                    Pushed::Event(position) => {
                        prop_assert_eq!(&position.epoch, &reader_at.epoch);
                        prop_assert_eq!(position.offset, reader_at.offset + 1);
                        reader_at = position;
                    }
                    Pushed::Reset(position) => reader_at = position,
                    Pushed::Passing => prop_assert!(false, "everything is kept here"),
                }
            }
            if let Some(position) = world.reader.subscriber.position() {
                prop_assert_eq!(&position, &reader_at, "a live subscriber knows where its reader is");
            }
            Ok(())
        };
        for act in acts {
            world.act(act);
            follow(&world)?;
        }
        // One more event, and some steps, and the reader is at the head.
        world.act(Act::Append(1, true));
        for _ in 0..100_000 {
            world.act(Act::Next(400));
            if matches!(world.connection, Connection::Following)
                && world.reader.subscriber.position().is_some()
            {
                break;
            }
        }
        follow(&world)?;
        prop_assert_eq!(world.reader.subscriber.position(), Some(world.bounds().head));
        Ok(())
    });
    told.unwrap();
}
