//! The outbox by itself: its bound, its end, and what leaves it in one chunk.

use std::cell::Cell;
use std::rc::Rc;

use futures_util::FutureExt as _;
use futures_util::task::noop_waker_ref;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

/// An outbox and how often its connection was cut.
fn outbox(limit: usize) -> (Rc<Outbox>, Rc<Cell<u32>>) {
    let cuts = Rc::new(Cell::new(0));
    let counter = cuts.clone();
    (Rc::new(Outbox::new(limit, move || counter.set(counter.get() + 1))), cuts)
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![b'x'; length])
}

fn take(outbox: &Rc<Outbox>) -> Poll<Option<Bytes>> {
    outbox.poll_chunk(&mut Context::from_waker(noop_waker_ref())).map(|chunk| chunk.map(|t| t.bytes))
}

#[test]
fn a_reader_that_keeps_up_gets_everything() {
    let (outbox, cuts) = outbox(10);
    for chunk in ["one", "two", "three"] {
        outbox.push(Bytes::from(chunk), None).unwrap();
        assert_eq!(take(&outbox), Poll::Ready(Some(Bytes::from(chunk))));
        assert_eq!(take(&outbox), Poll::Pending);
    }
    assert_eq!((cuts.get(), outbox.is_closed()), (0, false));
}

#[test]
fn one_byte_over_the_bound_cuts_the_connection_once() {
    let (outbox, cuts) = outbox(10);
    outbox.push(bytes(6), None).unwrap();
    outbox.push(bytes(4), None).unwrap();
    assert_eq!(outbox.push(bytes(1), None), Err(PushError::Overflow));
    assert_eq!(outbox.push(bytes(1), None), Err(PushError::Closed));
    outbox.end_with(bytes(1));
    assert_eq!((cuts.get(), outbox.is_closed()), (1, true));
    assert_eq!(take(&outbox), Poll::Ready(None), "what was queued is dropped");
    assert_eq!(outbox.stalled_for(), None);
}

#[test]
fn a_frame_above_the_limit_is_sent_to_a_reader_that_keeps_up() {
    let (outbox, cuts) = outbox(10);
    outbox.push(bytes(1000), None).unwrap();
    assert_eq!(outbox.push(bytes(1), None), Err(PushError::Overflow));
    assert_eq!(cuts.get(), 1);
}

#[test]
fn what_waits_leaves_merged_up_to_64_kib() {
    let (outbox, _) = outbox(1 << 20);
    for length in [30_000, 30_000, 5_536, 1, 100_000, 1] {
        outbox.push(bytes(length), None).unwrap();
    }
    let lengths: Vec<usize> = std::iter::from_fn(|| match take(&outbox) {
        Poll::Ready(Some(chunk)) => Some(chunk.len()),
        _ => None,
    })
    .collect();
    assert_eq!(lengths, [MERGE, 1, 100_000, 1], "only a frame that is larger itself leaves larger");
}

#[test]
fn a_merged_piece_is_as_old_as_its_oldest_event() {
    let (outbox, _) = outbox(100);
    let old = Instant::now();
    let new = old + Duration::from_secs(1);
    outbox.push(bytes(1), None).unwrap();
    outbox.push(bytes(1), Some(new)).unwrap();
    outbox.push(bytes(1), Some(old)).unwrap();
    let Poll::Ready(Some(chunk)) = outbox.poll_chunk(&mut Context::from_waker(noop_waker_ref())) else {
        panic!("three chunks wait")
    };
    assert_eq!((chunk.bytes.len(), chunk.accepted), (3, Some(old)));
}

#[test]
fn no_bytes_are_no_frame() {
    let (outbox, _) = outbox(10);
    outbox.push(Bytes::new(), None).unwrap();
    assert_eq!(take(&outbox), Poll::Pending);
    outbox.end_with(Bytes::new());
    assert_eq!(take(&outbox), Poll::Ready(None));
}

#[test]
fn the_last_words_come_after_all_that_was_queued() {
    let (outbox, cuts) = outbox(4);
    outbox.push(Bytes::from("abcd"), None).unwrap();
    outbox.end_with(Bytes::from("bye"));
    assert_eq!(outbox.push(Bytes::from("late"), None), Err(PushError::Closed));
    outbox.end_with(Bytes::from("again"));
    assert_eq!(take(&outbox), Poll::Ready(Some(Bytes::from("abcdbye"))));
    assert_eq!(take(&outbox), Poll::Ready(None));
    assert_eq!(take(&outbox), Poll::Ready(None));
    assert_eq!(cuts.get(), 0);
}

#[test]
fn a_reader_is_waited_for_only_while_something_waits_for_it() {
    let (outbox, _) = outbox(10);
    outbox.backlog().progress = Some(Instant::now() - Duration::from_secs(60));
    assert_eq!(outbox.stalled_for(), None);
    outbox.end_with(Bytes::from("bye"));
    assert!(outbox.stalled_for().is_some_and(|since| since < Duration::from_secs(50)), "its time begins now");
}

#[test]
fn a_waiting_reader_is_woken_by_bytes_and_by_the_end() {
    let pushed = |outbox: &Rc<Outbox>| outbox.push(bytes(1), None).unwrap();
    type Act<'a> = &'a dyn Fn(&Rc<Outbox>);
    let acts: [Act<'_>; 4] =
        [&pushed, &|outbox| outbox.end_with(bytes(1)), &|outbox| outbox.close(), &|outbox| outbox.abort()];
    for act in acts {
        let (outbox, _) = outbox(10);
        let mut next = by_hand(std::future::poll_fn(|cx| outbox.poll_chunk(cx).map(|_| ())));
        assert!(!next.poll());
        act(&outbox);
        assert!(next.is_woken());
        assert!(next.poll());
    }
}

#[test]
fn there_is_room_when_half_of_the_limit_is_free_and_at_the_end() {
    let (outbox, _) = outbox(10);
    outbox.push(bytes(5), None).unwrap();
    assert!(outbox.wait_for_capacity().now_or_never().is_some());
    outbox.push(bytes(1), None).unwrap();
    let (mut room, mut another) = (by_hand(outbox.wait_for_capacity()), by_hand(outbox.wait_for_capacity()));
    assert!(!room.poll() && !another.poll());
    assert!(take(&outbox).is_ready());
    assert!(room.is_woken() && room.poll(), "each replay of the stream goes on");
    assert!(another.is_woken() && another.poll());

    outbox.push(bytes(10), None).unwrap();
    let mut room = by_hand(outbox.wait_for_capacity());
    assert!(!room.poll());
    outbox.close();
    assert!(room.is_woken() && room.poll());
}

#[test]
fn no_sequence_holds_more_than_the_limit_or_changes_the_bytes() {
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    // Some(length) pushes, None takes.
    let acts = prop::collection::vec(prop::option::weighted(0.6, 0..300usize), 1..80);
    let told = TestRunner::new_with_rng(config, rng).run(&acts, |acts| {
        let (outbox, cuts) = outbox(1000);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (i, act) in acts.into_iter().enumerate() {
            match act {
                Some(length) => {
                    let chunk = vec![i as u8; length];
                    if outbox.push(Bytes::from(chunk.clone()), None).is_err() {
                        prop_assert!(sent.len() - got.len() + length > 1000);
                        prop_assert_eq!(cuts.get(), 1);
                        return Ok(());
                    }
                    sent.extend(chunk);
                }
                None => {
                    if let Poll::Ready(chunk) = take(&outbox) {
                        got.extend(chunk.expect("it is open"));
                    }
                }
            }
            prop_assert!(outbox.backlog().bytes <= 1000);
            prop_assert_eq!(outbox.backlog().bytes, sent.len() - got.len());
            prop_assert!(sent.starts_with(&got));
        }
        Ok(())
    });
    told.unwrap();
}

/// A future that is polled by hand, and whether it was woken since.
struct Task<F> {
    future: std::pin::Pin<Box<F>>,
    woken: std::sync::Arc<Flag>,
}

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

fn by_hand<F: Future<Output = ()>>(future: F) -> Task<F> {
    Task { future: Box::pin(future), woken: std::sync::Arc::default() }
}

impl<F: Future<Output = ()>> Task<F> {
    fn poll(&mut self) -> bool {
        self.woken.0.store(false, std::sync::atomic::Ordering::SeqCst);
        let waker = Waker::from(self.woken.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
