//! What a measurement records beside its figures: histograms, counts over time, and what the measured time
//! cost. Written by the measuring thread, read by the one that reports.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::sample::{Cost, Sample, Watch};
use crate::cores::Cores;
use crate::stats::{Histogram, Timeline};

/// The records of one round of one side.
#[derive(Debug)]
pub struct Meter {
    pid: Option<u32>,
    database: Option<u32>,
    cores: Option<Cores>,
    seen: Mutex<Seen>,
    spins: AtomicBool,
}

/// What has been recorded so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// By name, in the order in which they came.
    pub latencies: Vec<(String, Histogram)>,
    /// By name, in the order in which they came.
    pub timelines: Vec<(String, Timeline)>,
    /// One for each measured time.
    pub samples: Vec<Sample>,
    pub warnings: Vec<(&'static str, String)>,
}

impl Meter {
    /// Of a server with this process on these cores.
    pub fn new(pid: Option<u32>, cores: Option<Cores>) -> Self {
        Self { pid, database: None, cores, seen: Mutex::default(), spins: AtomicBool::new(false) }
    }

    /// The server has a database of its own, with this main process.
    pub fn beside(self, database: Option<u32>) -> Self {
        Self { database, ..self }
    }

    /// That database's share of a core in percent, while something was measured.
    pub fn database_percent(&self) -> Option<f64> {
        self.database?;
        let (used, took) = self.with(|seen| {
            let sum = |of: fn(&Sample) -> f64| seen.samples.iter().map(of).sum::<f64>();
            (sum(|sample| sample.database), sum(|sample| sample.cost.took))
        });
        Some(used * 100.0 / took)
    }

    /// Runs the measured part, and gives what it cost.
    pub fn measure<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        let watch = self.start();
        let outcome = work()?;
        Ok((outcome, self.finish(watch)))
    }

    pub fn start(&self) -> Watch {
        Watch::start(self.pid, self.database, self.cores)
    }

    pub fn finish(&self, watch: Watch) -> Cost {
        let sample = watch.finish();
        self.with(|seen| seen.samples.push(sample));
        sample.cost
    }

    /// Takes the whole round for the measured time, if it named none.
    pub fn judge_whole(&self, before: Watch) {
        self.with(|seen| {
            if seen.samples.is_empty() {
                seen.samples.push(before.finish());
            }
        });
    }

    /// Adds latencies to those of this name.
    pub fn observe(&self, name: &str, latencies: &Histogram) {
        self.with(|seen| match seen.latencies.iter_mut().find(|(known, _)| known == name) {
            Some((_, all)) => all.merge(latencies),
            None => seen.latencies.push((name.to_owned(), latencies.clone())),
        });
    }

    /// Keeps how often something happened over time.
    pub fn observe_over_time(&self, name: &str, timeline: Timeline) {
        self.with(|seen| seen.timelines.push((name.to_owned(), timeline)));
    }

    /// Keeps a reason to doubt the figures.
    pub fn warn(&self, code: &'static str, text: String) {
        self.with(|seen| seen.warnings.push((code, text)));
    }

    /// The client never sleeps, so that its processor time says nothing.
    pub fn spin(&self) {
        self.spins.store(true, Ordering::Relaxed);
    }

    /// The same if it has a core of its own; gives whether it has.
    pub fn spin_on_own_core(&self) -> bool {
        if self.cores.is_some() {
            self.spin();
        }
        self.cores.is_some()
    }

    pub fn spins(&self) -> bool {
        self.spins.load(Ordering::Relaxed)
    }

    pub fn seen(&self) -> Seen {
        self.with(|seen| seen.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        act(&mut self.seen.lock().expect("no thread panics while recording"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_recorded_under_one_name_is_taken_together() {
        let meter = Meter::new(None, None);
        let mut latencies = Histogram::new();
        latencies.record(Duration::from_millis(1));
        meter.observe("delivery", &latencies);
        meter.observe("delivery", &latencies);
        let (outcome, cost) = meter.measure(|| Ok(7)).unwrap();
        let seen = meter.seen();
        assert_eq!((seen.latencies[0].1.count(), seen.samples.len(), outcome), (2, 1, 7));
        assert!(cost.took > 0.0 && cost.server.is_none());
    }
}
