//! Every way in which a few announcements can arrive, and many random ways for more: what comes
//! out is the log, whole and in order. The log is the truth here too: a read answers what was
//! committed by then, and only what was committed is announced.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

fn epoch(name: &str) -> Epoch {
    Epoch::parse(name).unwrap()
}

fn at(offset: u64) -> Position {
    Position::new(epoch("one"), offset)
}

fn event(offset: u64) -> Event {
    Event::plain(offset, "{}")
}

fn events(offsets: impl IntoIterator<Item = u64>) -> Vec<Event> {
    offsets.into_iter().map(event).collect()
}

fn offsets(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.offset).collect()
}

/// A sequencer and all that it delivered, with the checks that hold after every step.
struct Scenario {
    sequencer: Sequencer,
    start: u64,
    delivered: Vec<u64>,
}

impl Scenario {
    fn begin(start: u64) -> Self {
        Self { sequencer: Sequencer::at(at(start)), start, delivered: Vec::new() }
    }

    fn announce(&mut self, offsets: impl IntoIterator<Item = u64>) {
        let step = self.sequencer.accept(&epoch("one"), events(offsets));
        match &step {
            Next::Deliver(ready) => {
                assert!(!ready.is_empty());
                self.take(ready);
            }
            Next::Wait => assert!(self.sequencer.has_gap()),
            Next::Nothing => assert!(!self.sequencer.has_gap()),
            Next::OtherEpoch | Next::Disputed(_) => panic!("{step:?}"),
        }
        self.check();
    }

    /// Reads up to `limit` events from a log that ends at `head`, as the channel does.
    fn read(&mut self, head: u64, limit: u64) {
        let from = self.sequencer.position().offset;
        let ready = self.sequencer.fill(events(from + 1..=head.min(from + limit)));
        self.take(&ready);
        self.check();
    }

    fn take(&mut self, ready: &[Event]) {
        self.delivered.extend(offsets(ready));
    }

    fn check(&self) {
        let expected: Vec<u64> = (self.start + 1..=self.sequencer.position().offset).collect();
        assert_eq!(self.delivered, expected, "what was delivered is the log up to the position");
        assert!(self.sequencer.pending.len() <= MAX_PENDING);
        assert!(self.sequencer.pending.keys().all(|offset| *offset > self.sequencer.position().offset + 1));
        assert!(self.sequencer.announced() >= self.sequencer.position().offset);
    }
}

/// Calls `visit` with every sequence of `length` numbers below `choices`.
fn sequences(length: usize, choices: usize, visit: &mut impl FnMut(&[usize])) {
    fn extend(sequence: &mut Vec<usize>, left: usize, choices: usize, visit: &mut impl FnMut(&[usize])) {
        if left == 0 {
            return visit(sequence);
        }
        for choice in 0..choices {
            sequence.push(choice);
            extend(sequence, left - 1, choices, visit);
            sequence.pop();
        }
    }
    extend(&mut Vec::new(), length, choices, visit);
}

#[test]
fn five_events_come_out_in_order_however_they_are_announced_lost_and_repeated() {
    // All sequences of six out of five single announcements hold each order, loss and repeat.
    let mut seen = 0;
    sequences(6, 5, &mut |announced| {
        let mut scenario = Scenario::begin(0);
        for index in announced {
            scenario.announce([*index as u64 + 1]);
        }
        let furthest = announced.iter().max().map_or(0, |index| *index as u64 + 1);
        assert_eq!(scenario.sequencer.announced(), furthest);
        scenario.read(furthest, 256);
        assert_eq!(scenario.sequencer.position().offset, furthest, "a read heals every gap");
        assert!(!scenario.sequencer.has_gap());
        seen += 1;
    });
    assert_eq!(seen, 15_625);
}

#[test]
fn announcements_that_overlap_are_cut_at_what_is_known() {
    // Ten ranges of [1, 4], three announcements, one read of each length in between.
    let ranges: Vec<(u64, u64)> = (1..=4).flat_map(|a| (a..=4).map(move |b| (a, b))).collect();
    sequences(3, ranges.len(), &mut |chosen| {
        for read_before in 0..=3 {
            for limit in [0, 1, 2, 4] {
                let mut scenario = Scenario::begin(0);
                for (i, index) in chosen.iter().enumerate() {
                    if i == read_before {
                        scenario.read(4, limit);
                    }
                    let (first, last) = ranges[*index];
                    scenario.announce(first..=last);
                }
                scenario.read(4, 256);
                assert_eq!(scenario.sequencer.position().offset, 4);
            }
        }
    });
}

#[test]
fn a_reset_goes_on_behind_the_new_head_with_what_waited_there() {
    for announced in 1..32u32 {
        for head in 0..=6 {
            let mut sequencer = Sequencer::at(at(0));
            // One by one, so that some of them wait: 1 is left out.
            let waiting: Vec<u64> = (2..=6).filter(|offset| announced & (1 << (offset - 2)) != 0).collect();
            for offset in &waiting {
                sequencer.accept(&epoch("one"), events([*offset]));
            }
            let ready = offsets(&sequencer.reset(at(head)));
            let expected: Vec<u64> = (head + 1..).take_while(|offset| waiting.contains(offset)).collect();
            // With head 0 nothing changes: 1 is still missing.
            assert_eq!(ready, if head == 0 { Vec::new() } else { expected }, "{waiting:?} at {head}");
            let furthest = waiting.iter().copied().max().unwrap_or(0).max(head);
            assert_eq!(
                (sequencer.position().offset, sequencer.announced()),
                (head + ready.len() as u64, furthest)
            );
        }
    }
}

#[test]
fn another_epoch_is_told_apart_and_forgets_what_waited() {
    let mut sequencer = Sequencer::at(at(3));
    assert_eq!(sequencer.accept(&epoch("two"), events([4])), Next::OtherEpoch);
    assert_eq!((sequencer.position(), sequencer.has_gap()), (&at(3), false));
    assert_eq!(sequencer.accept(&epoch("one"), events([5])), Next::Wait);
    assert!(sequencer.reset(Position::new(epoch("two"), 4)).is_empty());
    assert!(!sequencer.has_gap(), "event 5 of the old history is not event 5 of the new one");
    let step = sequencer.accept(&epoch("two"), events([5]));
    assert_eq!(step, Next::Deliver(events([5])));
    assert_eq!(sequencer.accept(&epoch("one"), events([6])), Next::OtherEpoch);
}

#[test]
fn nothing_announced_is_nothing_to_do() {
    let mut sequencer = Sequencer::at(at(0));
    assert_eq!(sequencer.accept(&epoch("one"), Vec::new()), Next::Nothing);
    assert_eq!(sequencer.accept(&epoch("one"), events([2])), Next::Wait);
    assert_eq!(sequencer.accept(&epoch("one"), Vec::new()), Next::Wait);
}

#[test]
fn what_has_no_room_is_remembered_as_announced() {
    let bound = MAX_PENDING as u64;
    let mut scenario = Scenario::begin(0);
    scenario.announce(2..=bound + 10);
    assert_eq!(scenario.sequencer.pending.len(), MAX_PENDING);
    scenario.announce([1]);
    assert_eq!(scenario.sequencer.position().offset, bound + 1, "what was kept follows at once");
    assert!(scenario.sequencer.has_gap(), "the rest was announced, so it is in the log");
    scenario.read(bound + 10, 256);
    assert!(!scenario.sequencer.has_gap());
}

#[test]
fn a_full_sequencer_delivers_a_long_announcement_that_closes_its_gap() {
    let bound = MAX_PENDING as u64;
    let mut scenario = Scenario::begin(0);
    scenario.announce(10..10 + bound);
    assert_eq!(scenario.sequencer.pending.len(), MAX_PENDING);
    scenario.announce(1..=9);
    assert_eq!(scenario.sequencer.position().offset, 9 + bound);
}

#[derive(Debug, Clone)]
enum Action {
    /// `(first, length)` of what is committed and then announced, perhaps late or never.
    Announce(u64, u64),
    /// A read of at most so many events.
    Read(u64),
    /// Trimmed away: the channel goes on at the head.
    Reset,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        8 => (1..4000u64, 1..40u64).prop_map(|(first, length)| Action::Announce(first, length)),
        2 => (1..3000u64, 1000..3000u64).prop_map(|(first, length)| Action::Announce(first, length)),
        3 => (0..2000u64).prop_map(Action::Read),
        1 => Just(Action::Reset),
    ];
    prop::collection::vec(action, 1..60)
}

#[test]
fn any_scenario_ends_with_the_whole_log_delivered_once() {
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng).run(&actions(), |actions| {
        let mut scenario = Scenario::begin(0);
        // What was announced is committed with all that comes before it.
        let mut head = 0;
        for action in actions {
            match action {
                Action::Announce(first, length) => {
                    head = head.max(first + length - 1);
                    scenario.announce(first..first + length);
                }
                Action::Read(limit) => scenario.read(head, limit),
                Action::Reset => {
                    let ready = scenario.sequencer.reset(at(head));
                    prop_assert!(ready.is_empty(), "nothing lies behind the head");
                    scenario.start = head;
                    scenario.delivered.clear();
                }
            }
            prop_assert_eq!(scenario.sequencer.has_gap(), scenario.sequencer.position().offset < head);
        }
        scenario.read(head, u64::MAX / 2);
        prop_assert_eq!(scenario.sequencer.position().offset, head);
        Ok(())
    });
    result.unwrap();
}

fn with_id(offset: u64, id: u128) -> Event {
    Event { id: Uuid::from_u128(id), ..event(offset) }
}

#[test]
fn another_event_at_a_place_that_was_delivered_is_disputed() {
    let mut sequencer = Sequencer::at(at(7));
    assert_eq!(sequencer.last(), None, "what was there before is not known");
    let all: Vec<Event> = (8..=8 + RECENT as u64).map(|offset| with_id(offset, offset.into())).collect();
    assert!(matches!(sequencer.accept(&epoch("one"), all.clone()), Next::Deliver(_)));
    assert_eq!(sequencer.accept(&epoch("one"), all), Next::Nothing, "these are the same");

    let last = 8 + RECENT as u64;
    for offset in [9, last - 1, last] {
        let known = Delivered { offset, id: Uuid::from_u128(offset.into()) };
        let said = vec![with_id(offset, 0), with_id(offset + 1, 0)];
        assert_eq!(sequencer.accept(&epoch("one"), said), Next::Disputed(known));
    }
    assert_eq!(sequencer.accept(&epoch("one"), vec![with_id(8, 0)]), Next::Nothing, "too long ago");
    assert_eq!(sequencer.position(), &at(last), "nothing of it was taken");
    sequencer.reset(at(last));
    assert_eq!(sequencer.last(), None);
}

#[test]
fn of_two_events_that_wait_for_one_place_neither_is_believed() {
    let mut sequencer = Sequencer::at(at(0));
    for id in [1, 2] {
        assert_eq!(sequencer.accept(&epoch("one"), vec![with_id(2, id)]), Next::Wait);
    }
    let Next::Deliver(ready) = sequencer.accept(&epoch("one"), vec![with_id(1, 9)]) else { panic!() };
    assert_eq!(offsets(&ready), [1]);
    assert!(sequencer.has_gap(), "the log has it");
}
