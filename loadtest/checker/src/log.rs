//! The log, read by plain SQL beside the gateway: what every history and every publisher's record is compared
//! with. Knows nothing of the gateway's own code.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::Result;
use serde_json::Value;
use testkit::sql::{Source, columns};

use crate::history::Digest;
use crate::publisher::{Name, Outcome, Record};
use crate::verifier::{Breach, Expected, Violation};

#[derive(Debug, Default)]
pub struct Log {
    channels: BTreeMap<String, Stored>,
    deliveries: Vec<String>,
}

#[derive(Debug, Default)]
struct Stored {
    /// The channel's own part of its epoch; empty unless it had to get a new one.
    epoch: String,
    head: u32,
    /// What is retained: offset, what it says, and its name.
    events: Vec<(u32, Digest, Option<Name>)>,
}

impl Log {
    /// Reads what is [`compared`]. Whoever wants it complete asks when nothing is being published.
    pub async fn read(source: &Source) -> Result<Self> {
        let mut session = source.reader().await?;
        let mut log = Self::default();
        let heads = format!(
            "SELECT CAST(head AS TEXT) || '|' || epoch || '|' || name AS line FROM channels \
             WHERE {}",
            compared("name")
        );
        for line in session.lines(&heads).await? {
            let [head, epoch, name] = columns(&line)?;
            let stored = Stored { epoch: epoch.into(), head: head.parse()?, events: Vec::new() };
            log.channels.insert(name.to_owned(), stored);
        }
        let events = format!(
            "SELECT CAST(\"offset\" AS TEXT) || '|' || channel || '|' || data AS line FROM events \
             WHERE {} ORDER BY channel, \"offset\"",
            compared("channel")
        );
        for line in session.lines(&events).await? {
            let [offset, channel, data] = columns(&line)?;
            let stored = log.channels.entry(channel.to_owned()).or_default();
            stored.events.push((offset.parse()?, Digest::of(data), name_of(data)));
        }
        log.deliveries = session.lines("SELECT delivery_id AS line FROM webhook_deliveries").await?;
        Ok(log)
    }

    /// The last offset of a channel.
    pub fn head(&self, channel: &str) -> u32 {
        self.channels.get(channel).map_or(0, |stored| stored.head)
    }

    /// How many events there are, over all channels.
    pub fn count(&self) -> u64 {
        self.channels.values().map(|stored| u64::from(stored.head)).sum()
    }

    /// What histories of a channel are compared with.
    pub fn expected(&self, channel: &str, epoch: &str, retained: Option<u32>) -> Expected {
        let epoch = epoch.to_owned();
        let Some(stored) = self.channels.get(channel) else {
            return Expected { epoch, events: Vec::new(), retained };
        };
        let mut events = vec![None; stored.head as usize];
        for (offset, said, _) in &stored.events {
            if let Some(place) = (*offset as usize).checked_sub(1).and_then(|index| events.get_mut(index)) {
                *place = Some(*said);
            }
        }
        Expected { epoch, events, retained }
    }

    /// Compares with what the publishers know: what was accepted is there, once, where it was said
    /// to be and in the order of its publisher; what was given up is there whole or not at all. Only
    /// what a copy did not have of the lost history may be missing.
    pub fn check(
        &self,
        records: &[Record],
        lost: Option<&LostHistory>,
        retained: &impl Fn(&str) -> Option<u32>,
    ) -> Vec<Violation> {
        let mut found = Findings(Vec::new());
        let mut places: HashMap<(Name, &str), Vec<u32>> = HashMap::new();
        for (channel, stored) in &self.channels {
            found.holes(channel, stored, lost.is_some(), retained(channel));
            for (offset, _, name) in &stored.events {
                match name {
                    Some(name) => places.entry((*name, channel)).or_default().push(*offset),
                    None => found.add(Breach::Log, channel, Some(*offset), "nobody published this".into()),
                }
            }
        }
        let deliveries: BTreeSet<&str> = self.deliveries.iter().map(String::as_str).collect();
        for record in records {
            for detail in &record.refusals {
                found.add(Breach::Protocol, "", None, detail.clone());
            }
            let mut before: HashMap<&str, u32> = HashMap::new();
            for sent in &record.sent {
                let accepted = matches!(sent.outcome, Outcome::Accepted(_));
                let mut counts = Vec::new();
                for channel in &sent.channels {
                    let there = places.remove(&(sent.name, channel.as_str())).unwrap_or_default();
                    counts.push(there.len());
                    let trimmed = self.is_trimmed(channel, sent.outcome, retained(channel));
                    let excused = lost.is_some_and(|lost| lost.has(sent.name, channel));
                    if there.len() > 1 {
                        let detail = format!("{:?} is there at {there:?}", sent.name);
                        found.add(Breach::Lost, channel, Some(there[0]), detail);
                    }
                    let Some(place) = there.first() else {
                        if accepted && !trimmed && !excused {
                            let detail = format!("{:?} was accepted, and is not in the log", sent.name);
                            found.add(Breach::Lost, channel, None, detail);
                        }
                        continue;
                    };
                    if let Outcome::Accepted(Some(answered)) = sent.outcome
                        && answered != *place
                        && !excused
                    {
                        let detail = format!("{:?} was answered with offset {answered}", sent.name);
                        found.add(Breach::Log, channel, Some(*place), detail);
                    }
                    if accepted && before.insert(channel, *place).is_some_and(|before| before >= *place) {
                        let detail = format!("{:?} is before what was accepted earlier", sent.name);
                        found.add(Breach::Log, channel, Some(*place), detail);
                    }
                }
                let Some(delivery) = sent.delivery else { continue };
                let recorded = deliveries.contains(delivery.to_string().as_str());
                if recorded != (counts[0] > 0) || counts.iter().any(|count| *count != counts[0]) {
                    let detail = format!("delivery {delivery} is there in part: {recorded}, {counts:?}");
                    found.add(Breach::Log, &sent.channels[0], None, detail);
                }
            }
        }
        for (name, channel) in places.keys() {
            found.add(Breach::Log, channel, None, format!("nobody published {name:?}"));
        }
        found.0
    }

    /// Whether retention may have taken what was accepted.
    fn is_trimmed(&self, channel: &str, outcome: Outcome, retained: Option<u32>) -> bool {
        match (outcome, retained) {
            (Outcome::Accepted(Some(offset)), Some(retained)) => {
                offset <= self.head(channel).saturating_sub(retained)
            }
            _ => false,
        }
    }
}

/// A history that has ended, because a copy took over that lacked the end of it.
#[derive(Debug)]
pub struct LostHistory {
    log: Log,
    /// What the copy has not.
    lost: HashSet<(String, Name)>,
}

impl LostHistory {
    /// What `log` had, and `copy` when it took over.
    pub fn new(log: Log, copy: &Log) -> Self {
        let mut lost = HashSet::new();
        for (channel, stored) in &log.channels {
            let head = copy.head(channel);
            let end = stored.events.iter().filter(|(offset, ..)| *offset > head);
            lost.extend(end.filter_map(|(.., name)| Some((channel.clone(), (*name)?))));
        }
        Self { log, lost }
    }

    /// How many events the copy lacks, over all channels.
    pub fn lacks(&self) -> usize {
        self.lost.len()
    }

    /// What histories of a channel are compared with that saw it.
    pub fn expected(&self, channel: &str, epoch: &str, retained: Option<u32>) -> Expected {
        self.log.expected(channel, epoch, retained)
    }

    fn has(&self, name: Name, channel: &str) -> bool {
        self.lost.contains(&(channel.to_owned(), name))
    }
}

struct Findings(Vec<Violation>);

impl Findings {
    fn add(&mut self, breach: Breach, channel: &str, offset: Option<u32>, detail: String) {
        let offsets = offset.map(|offset| (offset, offset));
        self.0.push(Violation { channel: channel.to_owned(), offsets, ..Violation::new(breach, detail) });
    }

    /// From the oldest retained to the head there is every offset, in the epoch it began with.
    fn holes(&mut self, channel: &str, stored: &Stored, was_copied: bool, retained: Option<u32>) {
        if !stored.epoch.is_empty() && !was_copied {
            self.add(
                Breach::Log,
                channel,
                None,
                "the channel got a new epoch, though nothing was lost".into(),
            );
        }
        let oldest = retained.map_or(1, |retained| stored.head.saturating_sub(retained) + 1);
        let mut expected = stored.events.first().map_or(stored.head + 1, |(first, ..)| *first);
        if expected > oldest && stored.head > 0 {
            self.add(Breach::Log, channel, Some(oldest), "the log begins too late".into());
        }
        for (offset, ..) in &stored.events {
            if *offset != expected {
                self.add(Breach::Log, channel, Some(expected), format!("{offset} follows in the log"));
            }
            expected = offset + 1;
        }
        if expected != stored.head + 1 {
            self.add(Breach::Log, channel, Some(expected), format!("the head is {}", stored.head));
        }
    }
}

/// The condition of SQL that leaves out the channels to which others write than the publishers whose records
/// are compared: the checker's own measurements, builds, and the gateway, which appends to `ops:readiness`
/// after an outage and clears it at once.
fn compared(column: &str) -> String {
    let left_out = ["probe:", "late:", "build:", "ops:"];
    left_out.map(|prefix| format!("{column} NOT LIKE '{prefix}%'")).join(" AND ")
}

/// What an event of ours is known by.
fn name_of(data: &str) -> Option<Name> {
    let data: Value = serde_json::from_str(data).ok()?;
    if let Some(run) = data["data"]["runId"].as_u64() {
        return Some(Name::Run(run));
    }
    let number = |key: &str| u32::try_from(data[key].as_u64()?).ok();
    Some(Name::Number(number("publisher")?, number("number")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publisher::Sent;

    fn log(events: &[(u32, u32)]) -> Log {
        let stored = Stored {
            epoch: String::new(),
            head: events.last().map_or(0, |(offset, _)| *offset),
            events: events
                .iter()
                .map(|(at, n)| (*at, Digest(u64::from(*n)), Some(Name::Number(1, *n))))
                .collect(),
        };
        Log { channels: [("check:a".to_owned(), stored)].into(), deliveries: Vec::new() }
    }

    fn record(sent: &[(u32, Outcome)]) -> Record {
        let one = |(n, outcome): &(u32, Outcome)| Sent {
            name: Name::Number(1, *n),
            channels: vec!["check:a".into()],
            delivery: None,
            outcome: *outcome,
        };
        Record { sent: sent.iter().map(one).collect(), refusals: Vec::new() }
    }

    fn breaches(log: &Log, record: Record, retained: Option<u32>) -> Vec<(Breach, Option<u32>)> {
        let found = log.check(&[record], None, &|_| retained);
        found.into_iter().map(|v| (v.breach, v.offsets.map(|(first, _)| first))).collect()
    }

    use Outcome::{Accepted, Unknown};

    #[test]
    fn what_was_accepted_is_there_once_and_where_it_was_said_to_be() {
        let found =
            |events: &[(u32, u32)], sent: &[(u32, Outcome)]| breaches(&log(events), record(sent), None);
        let all = [(1, Accepted(Some(1))), (2, Unknown), (3, Accepted(Some(2)))];
        assert_eq!(found(&[(1, 1), (2, 3)], &all), []);
        assert_eq!(found(&[(1, 1)], &[(1, Unknown), (2, Unknown)]), []);
        assert_eq!(found(&[(1, 1)], &all), [(Breach::Lost, None)], "3 is gone");
        let twice = [(1, 1), (2, 3), (3, 3)];
        assert_eq!(found(&twice, &all), [(Breach::Lost, Some(2))]);
        assert_eq!(
            found(&[(1, 1), (2, 2), (3, 3)], &all),
            [(Breach::Log, Some(3))],
            "another offset was answered"
        );
        assert_eq!(found(&[(1, 1), (2, 3), (3, 9)], &all), [(Breach::Log, None)], "nobody published 9");
        let order = [(1, Accepted(None)), (2, Accepted(None))];
        assert_eq!(found(&[(1, 2), (2, 1)], &order), [(Breach::Log, Some(1))]);
    }

    #[test]
    fn only_what_a_copy_did_not_have_is_excused() {
        let lost = LostHistory::new(log(&[(1, 1), (2, 2), (3, 3)]), &log(&[(1, 1)]));
        assert_eq!(lost.lacks(), 2);
        let after = |events: &[(u32, u32)], sent: &[(u32, Outcome)]| {
            let found = log(events).check(&[record(sent)], Some(&lost), &|_| None);
            found.into_iter().map(|violation| violation.breach).collect::<Vec<_>>()
        };
        let sent = |n, offset| (n, Accepted(Some(offset)));
        assert_eq!(after(&[(1, 1), (2, 4)], &[sent(1, 1), sent(2, 2), sent(3, 3), sent(4, 2)]), []);
        assert_eq!(after(&[(1, 1)], &[sent(1, 1), sent(4, 2)]), [Breach::Lost]);
        assert_eq!(after(&[(1, 4)], &[sent(1, 1), sent(4, 1)]), [Breach::Lost]);
    }

    #[test]
    fn a_hole_in_the_log_is_found() {
        let sent = [(1, Accepted(None)), (2, Accepted(None))];
        assert_eq!(breaches(&log(&[(1, 1), (3, 2)]), record(&sent), None), [(Breach::Log, Some(2))]);
        assert_eq!(breaches(&log(&[(2, 1), (3, 2)]), record(&sent), None), [(Breach::Log, Some(1))]);
        assert_eq!(breaches(&log(&[(2, 1), (3, 2)]), record(&sent), Some(2)), []);
    }
}
