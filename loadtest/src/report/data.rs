//! What a report holds. A report that says less than the run knew, a warning above all, would mislead, so
//! everything is in it. Knows nothing of servers and sockets.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::number::{number, percent};
use super::table::{Figure, Side};
use crate::stats::{Histogram, SLICE, Spread, Timeline};

/// The percentiles that reports show.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

/// One session: what ran where, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The layout of the file.
    pub format: u32,
    pub version: String,
    /// The commit of the checkout in which it ran, if it ran in one.
    pub commit: Option<String>,
    /// When, as RFC 3339.
    pub started: String,
    /// The command line, without secrets.
    pub command: String,
    pub machine: Machine,
    /// In the order in which they ran.
    pub scenarios: Vec<Section>,
}

/// One scenario with one set of options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// What was done; two sections of the same title did the same work.
    pub title: String,
    /// The command that runs it again.
    pub command: String,
    /// What else one should know of the servers and the rounds.
    pub conditions: Vec<String>,
    /// The servers, in the order of the columns.
    pub sides: Vec<String>,
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
    /// What was measured, with its unit.
    pub name: String,
    /// Whether the ratio between the sides is meaningful.
    pub compared: bool,
    /// The values, by side.
    pub cells: Vec<Cell>,
    /// The gateway over each other side.
    pub ratios: Vec<Ratio>,
}

/// A figure of all rounds of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub side: String,
    /// In the order in which they were measured.
    pub rounds: Vec<f64>,
    /// Median, lowest and highest; none without a round.
    pub spread: Option<Spread>,
}

/// The gateway's figure over another's, round by round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub over: String,
    pub spread: Spread,
}

/// A latency histogram of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// What was measured, from where to where.
    pub name: String,
    pub side: String,
    pub count: u64,
    /// Percentiles in milliseconds.
    pub percentiles: Vec<(f64, f64)>,
    /// More than, and at most, this many microseconds, and how many.
    pub buckets: Vec<(u64, u64, u64)>,
}

/// Counts over time of one round of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    pub name: String,
    pub side: String,
    /// The number of the round, from 1.
    pub round: u8,
    pub slice_ms: u64,
    pub counts: Vec<u64>,
}

/// Why a figure may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The code for programs and the documentation.
    pub code: String,
    pub text: String,
}

impl Section {
    /// The name of the scenario: what stands before the colon of the title.
    pub fn name(&self) -> &str {
        self.title.split(':').next().unwrap_or(&self.title)
    }

    /// One with a title and these columns, without figures.
    pub fn new(title: &str, sides: &[Side]) -> Self {
        let sides = sides.iter().map(|side| side.name().to_owned()).collect();
        Self { title: title.to_owned(), sides, ..Self::default() }
    }

    /// Adds the figures of a round of one side.
    pub fn add(&mut self, side: Side, figures: &[Figure]) {
        for Figure { name, value, compared } in figures {
            let known = self.figures.iter().position(|row| row.name == *name);
            let row = known.unwrap_or_else(|| {
                let cell = |side: &String| Cell { side: side.clone(), rounds: Vec::new(), spread: None };
                let (name, cells) = ((*name).to_owned(), self.sides.iter().map(cell).collect());
                self.figures.push(Row { name, compared: *compared, cells, ratios: Vec::new() });
                self.figures.len() - 1
            });
            let cell = self.figures[row].cells.iter_mut().find(|cell| cell.side == side.name());
            cell.into_iter().for_each(|cell| cell.rounds.push(*value));
        }
    }

    /// Takes the rounds together.
    pub fn conclude(&mut self) {
        for row in &mut self.figures {
            row.cells.iter_mut().for_each(|cell| cell.spread = Spread::of(&cell.rounds));
            row.ratios = row.ratios_of_rounds();
        }
    }

    /// A figure in a summary: ours, the floor's, the ratio, and how far our rounds lie apart.
    pub fn brief(&self, row: &Row) -> [String; 4] {
        let median = |side| row.cell(side)?.spread.map(|spread| number(spread.median));
        let ours = self.sides.iter().find(|side| *side != "floor").and_then(|side| median(side));
        let ratio = row.ratio("floor").map(|ratio| format!("{:.3}", ratio.median));
        let width = row.cell("gateway").and_then(Cell::width).map(percent);
        [ours, median("floor"), ratio, width].map(Option::unwrap_or_default)
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
    /// The gateway over each other, round by round, because what slows the machine for a while slows
    /// both.
    fn ratios_of_rounds(&self) -> Vec<Ratio> {
        let Some(gateway) = self.cell("gateway").filter(|_| self.compared) else { return Vec::new() };
        let ratio = |other: &Cell| {
            let pairs = other.rounds.iter().zip(&gateway.rounds);
            let ratios = pairs.map(|(other, gateway)| gateway / other).filter(|ratio| ratio.is_finite());
            Some(Ratio { over: other.side.clone(), spread: Spread::of(&ratios.collect::<Vec<_>>())? })
        };
        self.cells.iter().filter(|cell| cell.side != "gateway").filter_map(ratio).collect()
    }

    /// Every value of every round of a side.
    pub fn cell(&self, side: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.side == side)
    }

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
}
