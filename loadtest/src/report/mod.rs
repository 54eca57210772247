//! What a session of measuring comes to, as data: written as JSON, drawn as a page, and read back to
//! be compared. Owns the file format; knows nothing of servers and sockets. A report that says less
//! than the run knew, a warning above all, would be a lie, so everything is in it.

pub mod book;
pub mod chart;
pub mod closing;
pub mod command;
pub mod diff;
pub mod html;
pub mod machine;
pub mod number;
pub mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::stats::{Histogram, SLICE, Spread, Timeline};
use machine::Machine;

/// The layout of the JSON file; another one is refused, never guessed.
const FORMAT: u32 = 1;

/// Where a report goes, and what it takes to be believed, in the options of every scenario.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Report")]
#[group(skip)]
pub struct Options {
    /// Write every value of every round, the histograms and the warnings to this file; `diff`
    /// compares two of them.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page for people to this file: tables, latency histograms, throughput over time. It
    /// needs no network.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// A warning fails the run: for figures that others will quote.
    #[arg(long)]
    pub strict: bool,
}

/// One session: what ran where, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The layout of the file.
    format: u32,
    /// Of this tool.
    pub version: String,
    /// Of the checkout in which it ran, if it ran in one.
    pub commit: Option<String>,
    /// RFC 3339.
    pub started: String,
    /// Without secrets.
    pub command: String,
    /// Where.
    pub machine: Machine,
    /// In the order in which they ran.
    pub scenarios: Vec<Section>,
}

/// One scenario with one set of options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// What was done; two sections of the same title did the same work.
    pub title: String,
    /// How to do it again.
    pub command: String,
    /// What else one should know of the servers and the rounds.
    pub conditions: Vec<String>,
    /// The servers, in the order of the columns.
    pub sides: Vec<String>,
    /// What was measured.
    pub figures: Vec<Row>,
    /// Latencies, all rounds of a side taken together.
    pub latencies: Vec<Latency>,
    /// How often something happened, slice by slice.
    pub throughput: Vec<Throughput>,
    /// Why the figures may be wrong.
    pub warnings: Vec<Warning>,
    /// Why they are: the invariant was broken, or the run ended early.
    pub failed: Option<String>,
}

/// A figure of all rounds of all sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Says the unit too.
    pub name: String,
    /// One side over the other says something.
    pub compared: bool,
    /// By side.
    pub cells: Vec<Cell>,
    /// The gateway over each other side.
    pub ratios: Vec<Ratio>,
}

/// A figure of all rounds of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which.
    pub side: String,
    /// In the order in which they were measured.
    pub rounds: Vec<f64>,
    /// None without a round.
    pub spread: Option<Spread>,
}

/// The gateway's figure over another's, round by round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The other side.
    pub over: String,
    /// Of the rounds' ratios.
    pub spread: Spread,
}

/// A latency histogram of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// From where to where.
    pub name: String,
    /// Whose.
    pub side: String,
    /// How many.
    pub count: u64,
    /// Percentiles in milliseconds.
    pub percentiles: Vec<(f64, f64)>,
    /// More than, and at most, so many microseconds, and how many.
    pub buckets: Vec<(u64, u64, u64)>,
}

/// Counts over time of one round of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Of what.
    pub name: String,
    /// Whose.
    pub side: String,
    /// From 1.
    pub round: u8,
    /// The length of a slice.
    pub slice_ms: u64,
    /// By slice.
    pub counts: Vec<u64>,
}

/// Why a figure may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// For programs, and for the documentation.
    pub code: String,
    /// For people.
    pub text: String,
}

/// The percentiles that reports show.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

impl Report {
    /// A report of this machine and this command, of now.
    pub fn new(scenarios: Vec<Section>) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: machine::commit(),
            started: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            command: command::shown(),
            machine: Machine::here(),
            scenarios,
        }
    }

    /// Reads a file that an earlier run wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let report: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is no report", file.display()))?;
        ensure!(report.format == FORMAT, "{} has the format {}", file.display(), report.format);
        Ok(report)
    }

    /// Writes the files that were asked for.
    pub fn write(&self, options: &Options) -> Result<()> {
        let write = |file: &Path, text: String| {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(file, text)
        };
        if let Some(file) = &options.json {
            write(file, format!("{}\n", serde_json::to_string(self)?))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        if let Some(file) = &options.html {
            write(file, html::page(self)).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// With `--strict` a warning is a failure.
    pub fn judge(&self, options: &Options) -> Result<()> {
        let warnings: usize = self.scenarios.iter().map(|section| section.warnings.len()).sum();
        ensure!(!options.strict || warnings == 0, "{warnings} warning(s), and --strict was given");
        Ok(())
    }
}

impl Section {
    /// The name of the scenario: what stands before the colon of the title.
    pub fn name(&self) -> &str {
        self.title.split(':').next().unwrap_or(&self.title)
    }

    /// A warning, once.
    pub fn warn(&mut self, code: &str, text: impl Into<String>) {
        let warning = Warning { code: code.to_owned(), text: text.into() };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }
}

impl Row {
    /// Every value of every round of a side.
    pub fn cell(&self, side: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.side == side)
    }

    /// The ratio to another side.
    pub fn ratio(&self, over: &str) -> Option<&Spread> {
        self.ratios.iter().find(|ratio| ratio.over == over).map(|ratio| &ratio.spread)
    }

    /// Whether more is better: rates are to be high, costs and times low.
    pub fn higher_is_better(&self) -> bool {
        self.name.split([' ', ',']).any(|word| word.ends_with("/s"))
    }
}

impl Cell {
    /// From the lowest to the highest, as a share of the median; none of one round.
    pub fn width(&self) -> Option<f64> {
        self.spread.filter(|_| self.rounds.len() > 1).map(|spread| spread.width())
    }
}

impl Latency {
    /// A histogram as it goes into the report.
    pub fn new(name: &str, side: &str, histogram: &Histogram) -> Self {
        let percentile = |percent| Some((percent, histogram.quantile(percent)?));
        Self {
            name: name.to_owned(),
            side: side.to_owned(),
            count: histogram.count(),
            percentiles: PERCENTILES.into_iter().filter_map(percentile).collect(),
            buckets: histogram.buckets(),
        }
    }
}

impl Throughput {
    /// A timeline as it goes into the report.
    pub fn new(name: &str, side: &str, round: u8, timeline: &Timeline) -> Self {
        Self {
            name: name.to_owned(),
            side: side.to_owned(),
            round,
            slice_ms: SLICE.as_millis() as u64,
            counts: timeline.counts().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_to_be_high_and_a_cost_is_not() {
        let row = |name: &str| Row { name: name.into(), compared: true, cells: vec![], ratios: vec![] };
        let names = ["deliveries/s", "server CPU per delivery, µs", "latency p50, ms", "connects/s, mean"];
        assert_eq!(names.map(|name| row(name).higher_is_better()), [true, false, false, true]);
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/report.json");
        let mut report = Report::new(vec![Section { title: "fanout: 3".into(), ..Section::default() }]);
        report.scenarios[0].warn("steal_time", "some");
        let options = Options { json: Some(file.clone()), ..Options::default() };
        report.write(&options).unwrap();
        assert_eq!(Report::read(&file).unwrap(), report);
        report.format += 1;
        report.write(&options).unwrap();
        assert!(Report::read(&file).is_err());
    }

    #[test]
    fn a_warning_fails_a_strict_run_and_no_other() {
        let strict = Options { strict: true, ..Options::default() };
        let mut section = Section::default();
        Report::new(vec![section.clone()]).judge(&strict).unwrap();
        section.warn("steal_time", "some");
        section.warn("steal_time", "some");
        assert_eq!(section.warnings.len(), 1, "said once");
        let report = Report::new(vec![section]);
        report.judge(&Options::default()).unwrap();
        assert!(report.judge(&strict).is_err());
    }
}
