//! `[retention]`: how long what the gateway keeps by itself is kept. Namespaces say it beside their names.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Config;
use super::error::Problem;
use crate::domain::options::{Kept, Namespaces, Retention};
use crate::domain::units::Span;

/// Shorter, and a reader that is away for a coffee loses its place: cursors, recovery and redeliveries by
/// hand all need some time.
const SHORTEST: Duration = Duration::from_secs(30 * 60);
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// The most events of one channel; more are a mistake.
const MOST: u32 = 10_000_000;
/// For so long GitHub shows a delivery and sends it again by hand.
const REDELIVERED: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// `[retention]`: events of the channels that Campanile fills itself, and webhooks. Events that are too many
/// or too old are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetentionConfig {
    /// Events of a `repo:` channel.
    pub repo_events: u32,
    /// Their age.
    pub repo_age: Span,
    /// Events of an `org:` channel.
    pub org_events: u32,
    /// Their age.
    pub org_age: Span,
    /// Events of a `build:` channel.
    pub build_events: u32,
    /// Their age; the build itself goes with the last of them.
    pub build_age: Span,
    /// Events of a `job:` channel.
    pub job_events: u32,
    /// Their age.
    pub job_age: Span,
    /// Events of a personal channel (`#42`), unless `channel.without_namespace` has a history.
    pub personal_events: u32,
    /// Their age.
    pub personal_age: Span,
    /// Events of a channel of row changes.
    pub rows_events: u32,
    /// Their age.
    pub rows_age: Span,
    /// For how long a delivery is known; sent again later it counts as a new one.
    pub delivery_ids: Span,
    /// For how long its payload is kept.
    pub delivery_payloads: Span,
    /// For how long a browser's session is kept, if that is less than `server.session_ttl`.
    pub sessions: Option<Span>,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let kept = Kept::default();
        let events = |retention: Retention| u32::try_from(retention.events).unwrap_or(u32::MAX);
        Self {
            repo_events: events(kept.repo),
            repo_age: Span(kept.repo.age),
            org_events: events(kept.org),
            org_age: Span(kept.org.age),
            build_events: events(kept.build),
            build_age: Span(kept.build.age),
            job_events: events(kept.job),
            job_age: Span(kept.job.age),
            personal_events: events(kept.personal),
            personal_age: Span(kept.personal.age),
            rows_events: events(kept.rows),
            rows_age: Span(kept.rows.age),
            delivery_ids: Span(kept.delivery_ids),
            delivery_payloads: Span(kept.delivery_payloads),
            sessions: None,
        }
    }
}

impl RetentionConfig {
    fn kept(&self) -> Kept {
        let kept = |events: u32, age: Span| Retention { events: events.into(), age: age.0 };
        Kept {
            repo: kept(self.repo_events, self.repo_age),
            org: kept(self.org_events, self.org_age),
            build: kept(self.build_events, self.build_age),
            job: kept(self.job_events, self.job_age),
            personal: kept(self.personal_events, self.personal_age),
            rows: kept(self.rows_events, self.rows_age),
            delivery_ids: self.delivery_ids.0,
            delivery_payloads: self.delivery_payloads.0,
            sessions: self.sessions.map(|span| span.0),
        }
    }

    fn counts(&self) -> [(&'static str, u32); 6] {
        [
            ("retention.repo_events", self.repo_events),
            ("retention.org_events", self.org_events),
            ("retention.build_events", self.build_events),
            ("retention.job_events", self.job_events),
            ("retention.personal_events", self.personal_events),
            ("retention.rows_events", self.rows_events),
        ]
    }

    fn spans(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let spans = [
            ("retention.repo_age", self.repo_age),
            ("retention.org_age", self.org_age),
            ("retention.build_age", self.build_age),
            ("retention.job_age", self.job_age),
            ("retention.personal_age", self.personal_age),
            ("retention.rows_age", self.rows_age),
            ("retention.delivery_ids", self.delivery_ids),
            ("retention.delivery_payloads", self.delivery_payloads),
        ];
        let sessions = self.sessions.map(|span| ("retention.sessions", span));
        spans.into_iter().chain(sessions).map(|(option, span)| (option, span.0))
    }
}

impl Config {
    /// The declared namespaces and what is kept beside them, as the access rule and the log look them up.
    pub fn namespaces(&self) -> Namespaces {
        let named = self.channel.namespaces.iter();
        let (without, kept) = (&self.channel.without_namespace, self.retention.kept());
        Namespaces {
            without: Some(without.clone()),
            // A history of their own, unless `without_namespace` has one.
            personal: (!without.has_history()).then(|| without.with_history(kept.personal)),
            named: named.map(|space| (space.name.as_str().to_owned(), space.options.clone())).collect(),
            kept,
        }
    }

    /// The problems of `[retention]`.
    pub(super) fn bad_retention(&self) -> Vec<Problem> {
        let retention = &self.retention;
        let mut problems = Vec::new();
        let mut refuse = |option: &str, wrong: &str, remedy: &str| {
            problems.push(Problem::new(self.source(option), option, wrong, remedy));
        };
        for (option, count) in retention.counts() {
            if !(1..=MOST).contains(&count) {
                refuse(option, "a channel keeps one event or more", "write a number from 1 to 10000000");
            }
        }
        for (option, span) in retention.spans() {
            if !(SHORTEST..=LONGEST).contains(&span) {
                let wrong = "it must be from half an hour to ten years";
                refuse(option, wrong, "write \"30m\" or more, at most \"3650d\"");
            }
        }
        if retention.delivery_payloads.0 > retention.delivery_ids.0 {
            let wrong = "a payload is kept with its delivery, and retention.delivery_ids is less";
            refuse("retention.delivery_payloads", wrong, "lower it, or raise retention.delivery_ids");
        }
        problems
    }

    /// What of `[retention]` is allowed but probably unintended.
    pub(super) fn retention_warnings(&self) -> Option<String> {
        (self.retention.delivery_ids.0 < REDELIVERED).then(|| {
            "retention.delivery_ids is less than the three days in which GitHub sends a delivery again by hand: \
             such a repeat counts as new"
                .to_owned()
        })
    }
}
