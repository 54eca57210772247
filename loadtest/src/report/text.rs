//! A section as people read it in a terminal: conditions, the table of figures, and every warning.

use std::fmt::Write as _;

use super::data::{Report, Row, Section, Warning};
use super::number::{ratio, spread};

/// Where and when all of it was measured.
pub fn heading(report: &Report) -> String {
    let commit = report.commit.as_deref().map(|commit| format!(" {commit}")).unwrap_or_default();
    format!("{}\n{}{commit}, {}\n", report.machine.line(), report.version, report.started)
}

pub fn section(section: &Section) -> String {
    let mut out = String::new();
    let mut put = |line: &str| {
        let _ = writeln!(out, "{line}");
    };
    put(&section.title);
    section.conditions.iter().for_each(|condition| put(condition));
    let sides: Vec<&str> = section.sides.iter().map(String::as_str).collect();
    figures(&sides, &section.figures).lines().for_each(&mut put);
    section.warnings.iter().for_each(|Warning { code, text }| put(&format!("warning: {text} ({code})")));
    section.failed.iter().for_each(|reason| put(&format!("FAILED: {reason}")));
    put(&format!("command: {}", section.command));
    out
}

/// The table: a column for each side, and one for each ratio.
pub fn figures(sides: &[&str], rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let has_ratio = |side: &&str| rows.iter().any(|row| row.ratio(side).is_some());
    let others: Vec<&str> = sides.iter().copied().filter(has_ratio).collect();
    let mut lines: Vec<Vec<String>> = vec![vec![String::new()]];
    lines[0].extend(sides.iter().map(|side| (*side).to_owned()));
    lines[0].extend(others.iter().map(|other| format!("gateway/{other}")));
    for row in rows {
        let cell = |side: &&str| row.cell(side).and_then(|cell| cell.spread).map(spread).unwrap_or_default();
        let ratio = |side: &&str| row.ratio(side).copied().map(ratio).unwrap_or_default();
        let cells = sides.iter().map(cell).chain(others.iter().map(ratio));
        lines.push([row.name.clone()].into_iter().chain(cells).collect());
    }
    aligned(&lines).map(|cells| format!("{}\n", cells.join("  ").trim_end())).collect()
}

/// The cells of each line, as wide as their columns.
pub fn aligned<L: AsRef<[String]>>(lines: &[L]) -> impl Iterator<Item = Vec<String>> {
    let width =
        |column: usize| lines.iter().map(|line| line.as_ref()[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, |line| line.as_ref().len())).map(width).collect();
    lines.iter().map(move |line| {
        let cells = line.as_ref().iter().zip(&widths);
        cells.map(|(cell, width)| format!("{cell:width$}")).collect()
    })
}
