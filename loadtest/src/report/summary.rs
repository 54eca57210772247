//! The closing table of a session, in Markdown, so that it reads well in a terminal and can be pasted
//! where it is needed: scenario, ours, floor, ratio, spread, command.

use std::fmt::Write as _;

use super::data::{Report, Row, Section};

const HEADS: [&str; 7] = ["scenario", "figure", "ours", "floor", "ratio", "spread", "command"];

pub fn table(report: &Report) -> String {
    let lines: Vec<[String; 7]> = report.scenarios.iter().flat_map(section).collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.chain([HEADS[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = String::new();
    let mut put = |cells: [&str; 7]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
    };
    put(HEADS);
    let rules = widths.map(|width| "-".repeat(width));
    put(rules.each_ref().map(|rule| &rule[..]));
    lines.iter().for_each(|line| put(line.each_ref().map(|cell| &cell[..])));
    out
}

/// A line for each figure worth comparing; what repeats is left out.
fn section(section: &Section) -> Vec<[String; 7]> {
    let first = [section.name().to_owned(), section.command.clone()];
    if let Some(reason) = &section.failed {
        let reason = format!("FAILED: {}", reason.replace(['\n', '|'], " "));
        let [name, command] = first;
        return vec![[name, reason, String::new(), String::new(), String::new(), String::new(), command]];
    }
    let compared = section.figures.iter().filter(|row| row.compared);
    let line = |(index, row): (usize, &Row)| {
        let [name, command] = if index == 0 { first.clone() } else { Default::default() };
        let [ours, floor, ratio, spread] = section.brief(row);
        [name, row.name.clone(), ours, floor, ratio, spread, command]
    };
    compared.enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::{Side, aside, figure};

    #[test]
    fn a_line_for_each_figure_worth_comparing() {
        let mut done = Section::new("fanout: 3", &[Side::Floor, Side::Gateway]);
        done.command = "loadtest fanout".into();
        done.add(Side::Floor, &[figure("x/s", 200.0), aside("%", 1.0)]);
        done.add(Side::Gateway, &[figure("x/s", 100.0), aside("%", 1.0)]);
        done.conclude();
        let broken = Section { title: "idle: 1".into(), failed: Some("a | b".into()), ..Section::default() };
        let text = super::table(&Report::new(vec![done, broken]));
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        assert_eq!(lines[2], ["fanout", "x/s", "100", "200", "0.500", "", "loadtest fanout"]);
        assert_eq!(lines[3], ["idle", "FAILED: a   b", "", "", "", "", ""]);
        assert_eq!(lines.len(), 4);
    }
}
