//! The gateway's metrics: one blocking request outside the measured time. Knows names and sums over
//! labels; no types, no labels.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::http::blocking;
use crate::report::table::{Figure, aside};

/// One look.
pub struct Metrics(String);

impl Metrics {
    /// Asks for them.
    pub fn scrape(address: SocketAddr, host: &str) -> Result<Self> {
        let (status, text) = blocking::get(address, host, "/metrics")?;
        ensure!(status == 200, "the metrics were answered {status}");
        Ok(Self(String::from_utf8(text)?))
    }

    /// The sum of all that have this name, whatever their labels; 0 if there is none.
    pub fn sum(&self, name: &str) -> f64 {
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let rest = match rest.strip_prefix('{') {
                Some(labels) => labels.split_once('}')?.1,
                None => rest,
            };
            rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
        };
        self.0.lines().filter_map(value).sum()
    }
}

/// What an event that was appended between two looks cost the database.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerEvent {
    /// Of all connections, for reading as well.
    pub statements: f64,
    /// Of the publisher.
    pub commits: f64,
}

impl PerEvent {
    /// `None` if nothing was appended.
    pub fn between(before: &Metrics, after: &Metrics) -> Option<Self> {
        let grown = |name| after.sum(name) - before.sum(name);
        let events = grown("campanile_events_total");
        (events > 0.0).then(|| Self {
            statements: grown("campanile_store_statements_total") / events,
            commits: grown("campanile_commit_seconds_count") / events,
        })
    }

    /// As figures.
    pub fn figures(&self) -> [Figure; 2] {
        [aside("statements per event", self.statements), aside("commits per event", self.commits)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_summed_and_names_are_whole() {
        let text =
            "# TYPE a counter\na_total{kind=\"x\"} 2\na_total{kind=\"y\"} 3\na_total_more 9\nb 1.5 7\n";
        let metrics = Metrics(text.into());
        assert_eq!([metrics.sum("a_total"), metrics.sum("b"), metrics.sum("a")], [5.0, 1.5, 0.0]);
    }
}
