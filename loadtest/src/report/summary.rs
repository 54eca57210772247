//! The closing table of a session, in Markdown, so that it reads well in a terminal and can be pasted
//! where it is needed: scenario, ours, floor, ratio, spread, command.

use super::data::{Report, Row, Section};
use super::text::aligned;

const HEADS: [&str; 7] = ["scenario", "figure", "ours", "floor", "ratio", "spread", "command"];

pub fn table(report: &Report) -> String {
    let mut lines = vec![HEADS.map(str::to_owned)];
    lines.extend(report.scenarios.iter().flat_map(section));
    let mut lines: Vec<Vec<String>> = aligned(&lines).collect();
    lines.insert(1, lines[0].iter().map(|head| "-".repeat(head.len())).collect());
    lines.iter().map(|cells| format!("| {} |\n", cells.join(" | "))).collect()
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
