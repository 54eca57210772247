//! What is in the database, read by SQL beside the process and in one snapshot, and the check that
//! it agrees with the sender's book: nothing that was answered is missing, nothing is there twice,
//! and every delivery is there whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use testkit::sql::{Source, columns};

use super::flood::{self, Book};
use crate::support::process::Home;

pub struct Snapshot {
    marker: String,
    /// Channel → its own part of the epoch, and its head.
    channels: BTreeMap<String, (String, u64)>,
    /// Channel → offset → the event's id and run, in the order of the offsets.
    pub events: BTreeMap<String, Vec<(u64, String, u64)>>,
    /// GitHub's ids, as often as they are there.
    deliveries: Vec<String>,
    /// The run ids of `workflow_runs`.
    runs: BTreeSet<u64>,
}

impl Snapshot {
    pub async fn read(home: &Home) -> Self {
        let source = match home.database() {
            Some(url) => Source::Postgres(url.to_owned()),
            None => Source::Sqlite(home.data().join("campanile.db")),
        };
        let mut session = source.reader().await.expect("the data opens");
        // The event's own id, as it stands in its data, so that both say the same text.
        let (begin, hex) = match source {
            Source::Sqlite(_) => ("BEGIN", "lower(hex(event_id))"),
            Source::Postgres(_) => {
                ("BEGIN ISOLATION LEVEL REPEATABLE READ", "replace(event_id::text, '-', '')")
            }
        };
        session.execute(begin).await.expect("a snapshot");
        let mut lines = async |query: &str| session.lines(query).await.expect("the query runs");
        let one = |lines: Vec<String>| lines.into_iter().next().expect("a row");
        let marker = one(lines("SELECT value AS line FROM meta WHERE key = 'marker'").await);
        let heads = "SELECT name || '|' || epoch || '|' || CAST(head AS TEXT) AS line FROM channels";
        let channels = lines(heads).await;
        let channels = channels.iter().map(|line| {
            let [name, epoch, head] = columns(line).expect("columns");
            (name.to_owned(), (epoch.to_owned(), number(head)))
        });
        let events_in_order = format!(
            "SELECT channel || '|' || CAST(\"offset\" AS TEXT) || '|' || {hex} || '|' || data AS line \
             FROM events ORDER BY channel, \"offset\""
        );
        let mut events: BTreeMap<String, Vec<(u64, String, u64)>> = BTreeMap::new();
        for line in lines(&events_in_order).await {
            let [channel, offset, id, data] = columns(&line).expect("columns");
            let data: serde_json::Value = serde_json::from_str(data).expect("data is JSON");
            let inside = data["id"].as_str().expect("an id").replace('-', "");
            assert_eq!(id, inside, "the column and the data name one event");
            let run = data["data"]["runId"].as_u64().expect("a run id");
            events.entry(channel.to_owned()).or_default().push((number(offset), inside, run));
        }
        let deliveries = lines("SELECT delivery_id AS line FROM webhook_deliveries").await;
        let runs = lines("SELECT CAST(run_id AS TEXT) AS line FROM workflow_runs").await;
        let runs = runs.iter().map(|run| number(run)).collect();
        Self { marker, channels: channels.collect(), events, deliveries, runs }
    }

    /// Compares with what the sender knows.
    pub fn check(&self, book: &Book) {
        let sent = book.sent.lock().expect("the book");
        let there: BTreeSet<&str> = self.deliveries.iter().map(String::as_str).collect();
        assert_eq!(there.len(), self.deliveries.len(), "no delivery is there twice");
        for (number, sent) in sent.iter() {
            assert!(
                !sent.answered || there.contains(&*flood::id(*number).to_string()),
                "{number} was answered, and is gone"
            );
        }
        let mut whole = 0;
        let per_run = self.events_by_run();
        for number in sent.keys() {
            let events = per_run.get(number).map(Vec::as_slice).unwrap_or_default();
            if !there.contains(&*flood::id(*number).to_string()) {
                assert!(events.is_empty(), "{number} has events but no delivery: {events:?}");
                assert!(!self.runs.contains(number), "{number} has a run but no delivery");
                continue;
            }
            whole += 1;
            let channels: Vec<&str> = events.iter().map(|(channel, _)| *channel).collect();
            assert_eq!(channels, ["org:acme", &format!("repo:{}", flood::repo(*number))], "of {number}");
            assert_eq!(events[0].1, events[1].1, "both events of {number} have one id");
            assert!(self.runs.contains(number), "{number} has its run");
        }
        assert_eq!(whole, there.len(), "every delivery was sent by us");
        assert_eq!(per_run.len(), whole, "every event was caused by us");
        self.check_offsets();
    }

    /// Every delivery that was ever made is there.
    pub fn check_complete(&self, book: &Book) {
        self.check(book);
        assert_eq!(self.deliveries.len(), book.sent.lock().expect("the book").len(), "all are there");
    }

    fn check_offsets(&self) {
        for (channel, (_, head)) in &self.channels {
            let events = self.events.get(channel).map(Vec::as_slice).unwrap_or_default();
            let offsets: Vec<u64> = events.iter().map(|(offset, ..)| *offset).collect();
            assert_eq!(offsets, (1..=*head).collect::<Vec<_>>(), "{channel} is whole up to its head");
        }
        assert!(self.events.keys().all(|channel| self.channels.contains_key(channel)), "each has a head");
    }

    /// Run → the channels that have it, in order, with the event's id.
    fn events_by_run(&self) -> BTreeMap<u64, Vec<(&str, &str)>> {
        let mut runs: BTreeMap<u64, Vec<(&str, &str)>> = BTreeMap::new();
        for (channel, events) in &self.events {
            for (_, id, run) in events {
                runs.entry(*run).or_default().push((channel, id));
            }
        }
        runs
    }

    /// The epochs as far as the database decides them.
    pub fn epochs(&self) -> (String, Vec<&str>) {
        (self.marker.clone(), self.channels.values().map(|(epoch, _)| epoch.as_str()).collect())
    }

    pub fn head(&self, channel: &str) -> u64 {
        self.channels.get(channel).map_or(0, |(_, head)| *head)
    }

    pub fn count(&self) -> usize {
        self.deliveries.len()
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}
