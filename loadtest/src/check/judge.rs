//! The verdict on one history, given the log: in order, no gap without a signal, no repeat, nothing
//! that the log does not say, nothing missing at the end; and behind a signal the range that was
//! left out could be read by cursor, as far as it is retained. Plain data, no server.

use std::collections::BTreeSet;
use std::fmt;

use super::history::{Entry, Said, Tally, Transport};

/// A channel as the log has it.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// What this history goes by.
    pub epoch: String,
    /// By offset, from 1; none where the janitor has been.
    pub events: Vec<Option<Said>>,
    /// How many the channel retains, if fewer than ever are published.
    pub kept: Option<u32>,
}

/// What kind of promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Breach {
    /// Events were left out and nobody said so.
    Gap,
    /// An event came again.
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
    /// A refusal or words that nobody expects.
    Protocol,
    /// The server did not come back, or did not go in good order.
    Health,
    /// It took longer than it may, or was refused where it may not be.
    Bound,
}

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Which kind.
    pub breach: Breach,
    /// Whose history; none if it is about the log.
    pub subscriber: Option<usize>,
    /// What carried the events.
    pub transport: Option<Transport>,
    /// Where.
    pub channel: String,
    /// The offsets concerned, both included.
    pub offsets: Option<(u32, u32)>,
    /// In words.
    pub detail: String,
}

/// What a history came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events compared with the log, by what carried them.
    pub checked: Tally,
    /// Signals received.
    pub signals: u64,
    /// Events that a signal left out and that retention had taken.
    pub gone: u64,
    /// What was broken.
    pub breaches: Vec<Broken>,
}

/// A broken promise in one history.
#[derive(Debug)]
pub struct Broken {
    /// Which kind.
    pub breach: Breach,
    /// What carried the events.
    pub transport: Option<Transport>,
    /// The offsets concerned, both included.
    pub offsets: Option<(u32, u32)>,
    /// In words.
    pub detail: String,
}

impl Truth {
    /// The last offset.
    pub fn head(&self) -> u32 {
        self.events.len() as u32
    }

    fn said(&self, offset: u32) -> Option<Option<Said>> {
        self.events.get((offset as usize).checked_sub(1)?).copied()
    }
}

/// Compares a history that began before offset 1 with the log, or with one log after the other: what a
/// copy of the database did not have, and what became of it.
pub fn judge(history: &[Entry], first: &Truth, later: Option<&Truth>) -> Verdict {
    let last = later.unwrap_or(first);
    let (truth, never, verdict) = (first, BTreeSet::new(), Verdict::default());
    let mut court = Court { truth, at: 0, carrier: None, never, verdict };
    // Offsets that a signal left out and that have not been read since.
    let mut owed = BTreeSet::new();
    for entry in history {
        match entry {
            Entry::Opened(transport) => court.carrier = Some(*transport),
            Entry::Event { offset, said } => court.event(*offset, *said),
            Entry::Signal { head } => {
                court.verdict.signals += 1;
                // A node that has not heard yet that its history is over may be behind another one.
                let is_over = court.truth.epoch != last.epoch;
                if *head < court.at && !is_over {
                    court.breach(Breach::Protocol, Some((*head, court.at)), "a signal went back");
                }
                owed.extend(court.at + 1..=*head);
                court.at = *head;
            }
            Entry::Read { offset, said } => {
                if owed.remove(offset) {
                    court.compare(*offset, *said, Some(Transport::Poll));
                } else {
                    court.breach(Breach::Protocol, Some((*offset, *offset)), "read, but not asked for");
                }
            }
            Entry::Gone { to, head } => {
                let kept = court.truth.kept.unwrap_or(u32::MAX);
                let gone: Vec<u32> = owed.range(..=*to).copied().collect();
                owed.retain(|offset| offset > to);
                court.verdict.gone += gone.len() as u64;
                if let Some(last) = gone.last().filter(|_| *to > head.saturating_sub(kept)) {
                    let words = format!("said to be gone with the head at {head}, but within retention");
                    court.breach(Breach::Unreadable, Some((gone[0], *last)), &words);
                }
            }
            Entry::Turned(epoch) => {
                let new = later.filter(|later| later.epoch == **epoch && court.truth.epoch != **epoch);
                match new {
                    Some(later) => (court.truth, court.at) = (later, 0),
                    None => {
                        let words = format!("the epoch is {epoch}, not {}", court.truth.epoch);
                        court.breach(Breach::Protocol, None, &words);
                    }
                }
                court.never.clear();
                owed.clear();
                court.verdict.signals += 1;
            }
            Entry::Broken(words) => court.breach(Breach::Protocol, None, words),
        }
    }
    if court.truth.epoch != last.epoch {
        court.breach(Breach::Missing, None, "never heard that the channel has another history");
    } else if court.at < last.head() {
        let missing = Some((court.at + 1, last.head()));
        court.breach(Breach::Missing, missing, "never came, and nobody said so");
    }
    if let (Some(first), Some(last)) = (owed.first(), owed.last()) {
        court.breach(Breach::Unreadable, Some((*first, *last)), "left out with a signal, and never read");
    }
    court.verdict
}

struct Court<'a> {
    truth: &'a Truth,
    at: u32,
    carrier: Option<Transport>,
    /// Skipped without a signal.
    never: BTreeSet<u32>,
    verdict: Verdict,
}

impl Court<'_> {
    fn event(&mut self, offset: u32, said: Said) {
        let after = self.at;
        if offset <= after {
            let late = self.never.remove(&offset);
            let breach = if late { Breach::OutOfOrder } else { Breach::Repeat };
            self.breach(breach, Some((offset, offset)), &format!("came after {after}"));
        } else {
            if offset > after + 1 {
                self.never.extend(after + 1..offset);
                let words = format!("left out: {offset} came after {after}");
                self.breach(Breach::Gap, Some((after + 1, offset - 1)), &words);
            }
            self.at = offset;
        }
        self.compare(offset, said, self.carrier);
    }

    fn compare(&mut self, offset: u32, said: Said, carrier: Option<Transport>) {
        match self.truth.said(offset) {
            Some(Some(truth)) if truth == said => {
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

    fn breach(&mut self, breach: Breach, offsets: Option<(u32, u32)>, words: &str) {
        let detail = words.to_owned();
        self.verdict.breaches.push(Broken { breach, transport: self.carrier, offsets, detail });
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

    fn truth(count: u64) -> Truth {
        let events = (1..=count).map(|n| Some(Said(n))).collect();
        Truth { epoch: "one".into(), events, kept: None }
    }

    fn events(offsets: &[u32]) -> Vec<Entry> {
        let event = |offset: &u32| Entry::Event { offset: *offset, said: Said(u64::from(*offset)) };
        [Entry::Opened(Transport::Events)].into_iter().chain(offsets.iter().map(event)).collect()
    }

    fn read(offset: u32) -> Entry {
        Entry::Read { offset, said: Said(u64::from(offset)) }
    }

    type Found = Vec<(Breach, Option<(u32, u32)>)>;

    fn breaches(history: &[Entry], truth: &Truth) -> Found {
        judge(history, truth, None)
            .breaches
            .into_iter()
            .map(|broken| (broken.breach, broken.offsets))
            .collect()
    }

    #[test]
    fn a_whole_history_has_no_breach_and_every_event_is_counted() {
        let verdict = judge(&events(&[1, 2, 3]), &truth(3), None);
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
        other.events[1] = Some(Said(99));
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
        let verdict = judge(&history, &truth(5), None);
        assert_eq!((verdict.checked.sum(), verdict.signals, verdict.breaches.len()), (5, 1, 0));
        history.push(read(4));
        assert_eq!(breaches(&history, &truth(5)), [(Breach::Protocol, Some((4, 4)))], "read twice");
    }

    #[test]
    fn only_what_retention_took_may_be_gone() {
        let mut history = events(&[1]);
        history.extend([Entry::Signal { head: 4 }, Entry::Gone { to: 3, head: 5 }, read(4)]);
        history.extend(events(&[5]));
        let of = |kept| breaches(&history, &Truth { kept, ..truth(5) });
        assert_eq!(of(Some(2)), []);
        assert_eq!(of(Some(3)), [(Breach::Unreadable, Some((2, 3)))]);
        assert_eq!(of(None), [(Breach::Unreadable, Some((2, 3)))]);
    }

    #[test]
    fn another_history_begins_with_a_signal_and_is_whole_itself() {
        let copy =
            Truth { epoch: "two".into(), events: [1, 2, 30, 40].map(|n| Some(Said(n))).to_vec(), kept: None };
        let turned = || Entry::Turned(Box::new("two".into()));
        let new = |offset, said| Entry::Event { offset, said: Said(said) };
        let found = |history: &[Entry]| -> Found {
            let verdict = judge(history, &truth(3), Some(&copy));
            verdict.breaches.into_iter().map(|broken| (broken.breach, broken.offsets)).collect()
        };
        let all = [new(1, 1), new(2, 2), new(3, 30), new(4, 40)];
        let mut history = events(&[1, 2, 3]);
        assert_eq!(found(&history), [(Breach::Missing, None)]);
        history.push(turned());
        history.extend(all);
        assert_eq!(found(&history), []);
        history.push(turned());
        assert_eq!(found(&history), [(Breach::Protocol, None)]);
        let mut history = events(&[1, 2, 3]);
        history.push(new(4, 40));
        assert_eq!(found(&history)[0], (Breach::Different, Some((4, 4))), "nobody said so");
        let mut history = events(&[1]);
        history.extend([turned(), Entry::Signal { head: 3 }, new(4, 40)]);
        assert_eq!(found(&history), [(Breach::Unreadable, Some((1, 3)))]);
        assert_eq!(breaches(&[turned()], &truth(0)), [(Breach::Protocol, None)]);
    }

    #[test]
    fn what_the_janitor_took_is_not_counted() {
        let mut trimmed = truth(3);
        trimmed.events[0] = None;
        let verdict = judge(&events(&[1, 2, 3]), &trimmed, None);
        assert_eq!((verdict.checked.sum(), verdict.breaches.len()), (2, 0));
    }
}
