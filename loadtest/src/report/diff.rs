//! Two reports next to each other: what is faster, what is slower, and what only differs as much as
//! its rounds do among themselves. One round has no spread, so it cannot say that anything changed.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::data::{Cell, Report, Row, Section};
use super::number::{number, spread};

/// Compares two reports: per figure the medians, their ratio, and whether they differ by more than
/// the spread of their rounds.
///
/// Figures belong together that have the same title, name and server; titles hold the options of a
/// run. A difference counts when the ranges of the rounds do not touch: with three rounds each that
/// happens once in ten times by pure chance, so look twice at a single line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest fanout --json before.json
  loadtest fanout --json after.json
  loadtest diff before.json after.json
  loadtest diff before.json after.json --fail-on-worse

Exit codes:
  0  compared
  1  a file is no report, nothing in them belongs together, or something is worse and that was to fail")]
pub struct Options {
    /// The report to start from.
    #[arg(value_name = "A.json")]
    before: PathBuf,
    /// The report to compare with it.
    #[arg(value_name = "B.json")]
    after: PathBuf,
    /// Fail if a figure is worse by more than the spread.
    #[arg(long)]
    fail_on_worse: bool,
}

/// What two sets of rounds say of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The ranges touch.
    Same,
    Better,
    Worse,
    /// One round on either side.
    Unknown,
}

pub fn run(options: &Options) -> Result<()> {
    let [before, after] = [&options.before, &options.after].map(|file| Report::read(file));
    let (text, worse) = compare(&before?, &after?)?;
    print!("{text}");
    if options.fail_on_worse && worse > 0 {
        bail!("{worse} figure(s) are worse by more than the spread");
    }
    Ok(())
}

/// The comparison for people, and how many figures are worse.
fn compare(before: &Report, after: &Report) -> Result<(String, usize)> {
    let (mut out, mut worse, mut matched) = (String::new(), 0, 0);
    for (name, report) in [("A", before), ("B", after)] {
        let commit = report.commit.as_deref().unwrap_or("no commit");
        let _ = writeln!(out, "{name}: {} {commit}, {}: {}", report.version, report.started, report.command);
    }
    if before.machine != after.machine {
        let _ =
            writeln!(out, "\nOther machines, so the figures cannot be compared, only ratios to the floor:");
        let _ = writeln!(out, "  A: {}\n  B: {}", before.machine.line(), after.machine.line());
    }
    for section in &after.scenarios {
        let Some(old) = before.scenarios.iter().find(|old| old.title == section.title) else {
            let _ = writeln!(out, "\n{}\n  only in B", section.title);
            continue;
        };
        matched += 1;
        let _ = writeln!(out, "\n{}", section.title);
        for row in &section.figures {
            let Some(old) = old.figures.iter().find(|old| old.name == row.name) else { continue };
            worse += lines(old, row, &mut out);
        }
        warnings("A", old, &mut out);
        warnings("B", section, &mut out);
    }
    for old in &before.scenarios {
        if !after.scenarios.iter().any(|section| section.title == old.title) {
            let _ = writeln!(out, "\n{}\n  only in A", old.title);
        }
    }
    if matched == 0 {
        bail!("the reports have no scenario in common; titles must be the same:\n{out}");
    }
    Ok((out, worse))
}

fn warnings(name: &str, section: &Section, out: &mut String) {
    for text in section.warnings.iter().map(|warning| &warning.text).chain(&section.failed) {
        let _ = writeln!(out, "  ! {name}: {text}");
    }
}

/// One line for each side of a figure; gives how many are worse.
fn lines(before: &Row, after: &Row, out: &mut String) -> usize {
    let mut worse = 0;
    for cell in &after.cells {
        let Some(old) = before.cell(&cell.side) else { continue };
        let (Some(from), Some(to)) = (old.spread, cell.spread) else { continue };
        let verdict = verdict(old, cell, after.higher_is_better());
        // What explains the others is neither good nor bad, and the floor is the machine's affair.
        let judged = after.compared && cell.side != "floor";
        let word = match verdict {
            Verdict::Same => "same",
            Verdict::Unknown => "one round",
            Verdict::Better if judged => "BETTER",
            Verdict::Worse if judged => "WORSE",
            Verdict::Better | Verdict::Worse => "differs",
        };
        worse += usize::from(judged && verdict == Verdict::Worse);
        let (name, side) = (&after.name, &cell.side);
        let (old, new, ratio) = (spread(from), spread(to), number(to.median / from.median));
        let _ = writeln!(out, "  {name:28} {side:10} {old:>30} → {new:<30} × {ratio:<6} {word}");
    }
    worse
}

fn verdict(before: &Cell, after: &Cell, higher_is_better: bool) -> Verdict {
    let (Some(from), Some(to)) = (before.spread, after.spread) else { return Verdict::Unknown };
    match (from.overlaps(&to), before.rounds.len().min(after.rounds.len())) {
        (true, _) => Verdict::Same,
        (false, 0 | 1) => Verdict::Unknown,
        (false, _) if (to.median > from.median) == higher_is_better => Verdict::Better,
        (false, _) => Verdict::Worse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::table::{Side, figure};

    fn report(title: &str, name: &'static str, rounds: &[f64]) -> Report {
        let mut section = Section::new(title, &[Side::Gateway]);
        rounds.iter().for_each(|value| section.add(Side::Gateway, &[figure(name, *value)]));
        section.conclude();
        Report::new(vec![section])
    }

    fn said(name: &'static str, before: &[f64], after: &[f64]) -> String {
        let (text, worse) = compare(&report("t", name, before), &report("t", name, after)).unwrap();
        let word = text.split_whitespace().last().unwrap().to_owned();
        assert_eq!(worse, usize::from(word == "WORSE"), "{text}");
        word
    }

    #[test]
    fn only_what_lies_outside_the_spread_has_changed() {
        assert_eq!(said("x/s", &[9.0, 10.0, 11.0], &[10.5, 12.0, 13.0]), "same");
        assert_eq!(said("x/s", &[9.0, 10.0, 11.0], &[11.5, 12.0, 13.0]), "BETTER");
        assert_eq!(said("x/s", &[9.0, 10.0, 11.0], &[5.0, 6.0, 7.0]), "WORSE");
        assert_eq!(said("p99, ms", &[9.0, 10.0, 11.0], &[5.0, 6.0, 7.0]), "BETTER");
        assert_eq!(said("x/s", &[10.0], &[5.0, 6.0]), "round", "one round has no spread");
    }

    #[test]
    fn other_work_is_not_compared() {
        let error = compare(&report("a", "x/s", &[1.0]), &report("b", "x/s", &[1.0])).unwrap_err();
        assert!(error.to_string().contains("no scenario in common"), "{error}");
    }
}
