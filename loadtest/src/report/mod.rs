//! The report of a run: written as JSON and as a page, and read back to be compared. Owns the file format.

pub mod command;
mod data;
pub mod diff;
pub mod html;
pub mod machine;
pub mod number;
pub mod summary;
pub mod table;
pub mod text;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
pub use data::{Latency, Report, Row, Section, Throughput};
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

    /// Writes the files that were asked for, and judges it.
    pub fn submit(&self, options: &Options) -> Result<()> {
        self.write(options)?;
        self.judge(options)
    }

    /// With `--strict` a warning is a failure.
    pub fn judge(&self, options: &Options) -> Result<()> {
        let warnings: usize = self.scenarios.iter().map(|section| section.warnings.len()).sum();
        ensure!(!options.strict || warnings == 0, "{warnings} warning(s), and --strict was given");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
