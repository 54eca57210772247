//! The verdict on one history, given the log: in order, no gap without a signal, no repeat, nothing
//! that the log does not say, nothing missing at the end; and behind a signal the range that was
//! left out could be read by cursor, as far as it is retained. Plain data, no server.

use std::collections::BTreeSet;
use std::fmt;

use crate::history::{Digest, Entry, Tally, Transport};

/// A channel as the log has it.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    pub epoch: String,
    /// By offset, from 1; none where the janitor has been.
    pub events: Vec<Option<Digest>>,
    /// How many the channel retains, if fewer than ever are published.
    pub retained: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Breach {
    /// Events were left out and nobody reported it.
    Gap,
    Repeat,
    /// An event came after a later one.
    OutOfOrder,
    /// Another event than the log has at this place.
    Different,
    /// At the end something was still missing.
    Missing,
    /// Left out with a signal, and not to be had by cursor.
    Unreadable,
    /// Accepted, and not in the log; or twice.
    Lost,
    /// In the log without cause, or with holes.
    Log,
    /// A refusal or a message that nobody expects.
    Protocol,
    /// The server did not come back, or did not go in good order.
    Health,
    /// It took longer than it may, or was refused where it may not be.
    Bound,
}

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    pub breach: Breach,
    /// Whose history; none if it is about the log.
    pub subscriber: Option<usize>,
    pub transport: Option<Transport>,
    pub channel: String,
    /// The offsets concerned, both included.
    pub offsets: Option<(u32, u32)>,
    pub detail: String,
}

/// What a history came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events compared with the log, by what carried them.
    pub checked: Tally,
    pub signals: u64,
    /// Events that a signal left out and that retention had taken.
    pub gone: u64,
    pub breaches: Vec<Violation>,
}

impl Violation {
    /// One that is nobody's and nowhere in particular.
    pub fn new(breach: Breach, detail: String) -> Self {
        Self { breach, subscriber: None, transport: None, channel: String::new(), offsets: None, detail }
    }
}

impl Expected {
    /// The last offset.
    pub fn head(&self) -> u32 {
        self.events.len() as u32
    }

    fn digest(&self, offset: u32) -> Option<Option<Digest>> {
        self.events.get((offset as usize).checked_sub(1)?).copied()
    }
}

/// Compares a history that began before offset 1 with the log, or with one log after the other: what a
/// copy of the database did not have, and what became of it.
pub fn verify(history: &[Entry], first: &Expected, later: Option<&Expected>) -> Verdict {
    let last = later.unwrap_or(first);
    let (truth, skipped, verdict) = (first, BTreeSet::new(), Verdict::default());
    let mut verifier = Verifier { truth, at: 0, carrier: None, skipped, verdict };
    // Offsets that a signal left out and that have not been read since.
    let mut unread = BTreeSet::new();
    for entry in history {
        match entry {
            Entry::Connected(transport) => verifier.carrier = Some(*transport),
            Entry::Event { offset, digest } => verifier.event(*offset, *digest),
            Entry::Signal { head } => {
                verifier.verdict.signals += 1;
                // A node that has not heard yet that its history is over may be behind another one.
                let is_over = verifier.truth.epoch != last.epoch;
                if *head < verifier.at && !is_over {
                    verifier.breach(Breach::Protocol, Some((*head, verifier.at)), "a signal went back");
                }
                unread.extend(verifier.at + 1..=*head);
                verifier.at = *head;
            }
            Entry::Read { offset, digest } => {
                if unread.remove(offset) {
                    verifier.compare(*offset, *digest, Some(Transport::Poll));
                } else {
                    verifier.breach(Breach::Protocol, Some((*offset, *offset)), "read, but not asked for");
                }
            }
            Entry::Gone { to, head } => {
                let retained = verifier.truth.retained.unwrap_or(u32::MAX);
                let gone: Vec<u32> = unread.range(..=*to).copied().collect();
                unread.retain(|offset| offset > to);
                verifier.verdict.gone += gone.len() as u64;
                if let Some(last) = gone.last().filter(|_| *to > head.saturating_sub(retained)) {
                    let detail = format!("reported as gone with the head at {head}, but within retention");
                    verifier.breach(Breach::Unreadable, Some((gone[0], *last)), &detail);
                }
            }
            Entry::EpochChanged(epoch) => {
                let new = later.filter(|later| later.epoch == **epoch && verifier.truth.epoch != **epoch);
                match new {
                    Some(later) => (verifier.truth, verifier.at) = (later, 0),
                    None => {
                        let detail = format!("the epoch is {epoch}, not {}", verifier.truth.epoch);
                        verifier.breach(Breach::Protocol, None, &detail);
                    }
                }
                verifier.skipped.clear();
                unread.clear();
                verifier.verdict.signals += 1;
            }
            Entry::Unexpected(detail) => verifier.breach(Breach::Protocol, None, detail),
        }
    }
    if verifier.truth.epoch != last.epoch {
        verifier.breach(Breach::Missing, None, "never heard that the channel has another history");
    } else if verifier.at < last.head() {
        let missing = Some((verifier.at + 1, last.head()));
        verifier.breach(Breach::Missing, missing, "never came, and nobody reported it");
    }
    if let (Some(first), Some(last)) = (unread.first(), unread.last()) {
        verifier.breach(Breach::Unreadable, Some((*first, *last)), "left out with a signal, and never read");
    }
    verifier.verdict
}

struct Verifier<'a> {
    truth: &'a Expected,
    at: u32,
    carrier: Option<Transport>,
    /// Skipped without a signal.
    skipped: BTreeSet<u32>,
    verdict: Verdict,
}

impl Verifier<'_> {
    fn event(&mut self, offset: u32, digest: Digest) {
        let after = self.at;
        if offset <= after {
            let late = self.skipped.remove(&offset);
            let breach = if late { Breach::OutOfOrder } else { Breach::Repeat };
            self.breach(breach, Some((offset, offset)), &format!("came after {after}"));
        } else {
            if offset > after + 1 {
                self.skipped.extend(after + 1..offset);
                let detail = format!("left out: {offset} came after {after}");
                self.breach(Breach::Gap, Some((after + 1, offset - 1)), &detail);
            }
            self.at = offset;
        }
        self.compare(offset, digest, self.carrier);
    }

    fn compare(&mut self, offset: u32, digest: Digest, carrier: Option<Transport>) {
        match self.truth.digest(offset) {
            Some(Some(truth)) if truth == digest => {
                carrier.into_iter().for_each(|carrier| self.verdict.checked.count(carrier));
            }
            Some(Some(_)) => {
                self.breach(Breach::Different, Some((offset, offset)), "the log has another event")
            }
            // Retention has taken it from the log, so it cannot be compared.
            Some(None) => {}
            None => self.breach(Breach::Different, Some((offset, offset)), "the log has nothing there"),
        }
    }

    fn breach(&mut self, breach: Breach, offsets: Option<(u32, u32)>, detail: &str) {
        let violation = Violation::new(breach, detail.to_owned());
        self.verdict.breaches.push(Violation { transport: self.carrier, offsets, ..violation });
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.breach, self.channel)?;
        match self.offsets {
            Some((first, last)) if first == last => write!(f, " {first}")?,
            Some((first, last)) => write!(f, " {first} to {last}")?,
            None => {}
        }
        if let Some(subscriber) = self.subscriber {
            write!(f, ", subscriber {subscriber}")?;
        }
        if let Some(transport) = self.transport {
            write!(f, ", {transport}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(count: u64) -> Expected {
        let events = (1..=count).map(|n| Some(Digest(n))).collect();
        Expected { epoch: "one".into(), events, retained: None }
    }

    fn events(offsets: &[u32]) -> Vec<Entry> {
        let event = |offset: &u32| Entry::Event { offset: *offset, digest: Digest(u64::from(*offset)) };
        [Entry::Connected(Transport::Events)].into_iter().chain(offsets.iter().map(event)).collect()
    }

    fn read(offset: u32) -> Entry {
        Entry::Read { offset, digest: Digest(u64::from(offset)) }
    }

    type Found = Vec<(Breach, Option<(u32, u32)>)>;

    fn breaches(history: &[Entry], truth: &Expected) -> Found {
        verify(history, truth, None)
            .breaches
            .into_iter()
            .map(|broken| (broken.breach, broken.offsets))
            .collect()
    }

    #[test]
    fn a_whole_history_has_no_breach_and_every_event_is_counted() {
        let verdict = verify(&events(&[1, 2, 3]), &truth(3), None);
        assert_eq!((verdict.checked.sum(), verdict.breaches.len()), (3, 0));
    }

    #[test]
    fn each_broken_promise_has_its_name() {
        use Breach::{Different, Gap, Missing, OutOfOrder, Repeat};
        let of = |offsets: &[u32]| breaches(&events(offsets), &truth(4));
        assert_eq!(of(&[1, 2, 4]), [(Gap, Some((3, 3)))]);
        assert_eq!(of(&[2, 3, 4]), [(Gap, Some((1, 1)))]);
        assert_eq!(of(&[1, 2, 2, 3, 4]), [(Repeat, Some((2, 2)))]);
        assert_eq!(of(&[1, 3, 2, 4]), [(Gap, Some((2, 2))), (OutOfOrder, Some((2, 2)))]);
        assert_eq!(of(&[1, 2]), [(Missing, Some((3, 4)))]);
        assert_eq!(of(&[]), [(Missing, Some((1, 4)))]);
        assert_eq!(of(&[1, 2, 3, 4, 5]), [(Different, Some((5, 5)))]);
        let mut other = truth(4);
        other.events[1] = Some(Digest(99));
        assert_eq!(breaches(&events(&[1, 2, 3, 4]), &other), [(Different, Some((2, 2)))]);
    }

    #[test]
    fn a_signal_excuses_a_gap_only_if_the_range_can_be_read() {
        let mut history = events(&[1]);
        history.push(Entry::Signal { head: 4 });
        history.extend(events(&[5]));
        assert_eq!(breaches(&history, &truth(5)), [(Breach::Unreadable, Some((2, 4)))]);
        history.extend([2, 3].map(read));
        assert_eq!(breaches(&history, &truth(5)), [(Breach::Unreadable, Some((4, 4)))]);
        history.push(read(4));
        let verdict = verify(&history, &truth(5), None);
        assert_eq!((verdict.checked.sum(), verdict.signals, verdict.breaches.len()), (5, 1, 0));
        history.push(read(4));
        assert_eq!(breaches(&history, &truth(5)), [(Breach::Protocol, Some((4, 4)))], "read twice");
    }

    #[test]
    fn only_what_retention_took_may_be_gone() {
        let mut history = events(&[1]);
        history.extend([Entry::Signal { head: 4 }, Entry::Gone { to: 3, head: 5 }, read(4)]);
        history.extend(events(&[5]));
        let of = |retained| breaches(&history, &Expected { retained, ..truth(5) });
        assert_eq!(of(Some(2)), []);
        assert_eq!(of(Some(3)), [(Breach::Unreadable, Some((2, 3)))]);
        assert_eq!(of(None), [(Breach::Unreadable, Some((2, 3)))]);
    }

    #[test]
    fn another_history_begins_with_a_signal_and_is_whole_itself() {
        let copy = Expected {
            epoch: "two".into(),
            events: [1, 2, 30, 40].map(|n| Some(Digest(n))).to_vec(),
            retained: None,
        };
        let epoch_changed = || Entry::EpochChanged(Box::new("two".into()));
        let new = |offset, digest| Entry::Event { offset, digest: Digest(digest) };
        let found = |history: &[Entry]| -> Found {
            let verdict = verify(history, &truth(3), Some(&copy));
            verdict.breaches.into_iter().map(|broken| (broken.breach, broken.offsets)).collect()
        };
        let all = [new(1, 1), new(2, 2), new(3, 30), new(4, 40)];
        let mut history = events(&[1, 2, 3]);
        assert_eq!(found(&history), [(Breach::Missing, None)]);
        history.push(epoch_changed());
        history.extend(all);
        assert_eq!(found(&history), []);
        history.push(epoch_changed());
        assert_eq!(found(&history), [(Breach::Protocol, None)]);
        let mut history = events(&[1, 2, 3]);
        history.push(new(4, 40));
        assert_eq!(found(&history)[0], (Breach::Different, Some((4, 4))), "nobody reported it");
        let mut history = events(&[1]);
        history.extend([epoch_changed(), Entry::Signal { head: 3 }, new(4, 40)]);
        assert_eq!(found(&history), [(Breach::Unreadable, Some((1, 3)))]);
        assert_eq!(breaches(&[epoch_changed()], &truth(0)), [(Breach::Protocol, None)]);
    }

    #[test]
    fn what_the_janitor_took_is_not_counted() {
        let mut trimmed = truth(3);
        trimmed.events[0] = None;
        let verdict = verify(&events(&[1, 2, 3]), &trimmed, None);
        assert_eq!((verdict.checked.sum(), verdict.breaches.len()), (2, 0));
    }
}
