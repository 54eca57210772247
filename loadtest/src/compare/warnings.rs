//! Says when figures cannot be right: the client was the bottleneck, others used the cores, the
//! hypervisor took time, the rounds disagree. It only ever warns; `--strict` makes a failure of it.

use std::path::Path;

use super::sample::Sample;
use crate::report::number::percent;
use crate::report::{Row, Section};

/// A client that uses more than this of its core, and does not spin, is what was measured.
const CLIENT_SATURATED: f64 = 0.95;
/// The hypervisor may take so much of the cores.
const STEAL: f64 = 0.01;
/// Other processes may use so much of the cores.
const OTHER_LOAD: f64 = 0.05;
/// The rounds of a figure may lie so far apart, as a share of their median.
const WIDE_SPREAD: f64 = 0.25;
/// A gateway that beats the kernel by more than this in every round did other work.
const BELOW_FLOOR: f64 = 0.1;
/// Shorter than this, ticks of ten milliseconds say nothing about shares.
const MEANINGFUL: f64 = 0.5;

/// Warns of what the machine did while one side was measured, in all its rounds together.
pub fn check_samples(section: &mut Section, side: &str, samples: &[Sample], pinned: bool, spins: bool) {
    let sum = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>();
    let took = sum(|sample| sample.cost.took);
    if took < MEANINGFUL {
        return;
    }
    let available = sum(|sample| sample.cost.took * sample.cores);
    let client = sum(|sample| sample.cost.client) / took;
    if client > CLIENT_SATURATED && pinned && !spins {
        let text = format!(
            "{side}: the client used {} of its core, so it may be what was measured",
            percent(client)
        );
        section.warn("client_saturated", text);
    }
    let steal = sum(|sample| sample.steal) / available;
    if steal > STEAL {
        section.warn("steal_time", format!("{side}: the hypervisor took {} of the cores", percent(steal)));
    }
    // Ticks are counted at different moments, so the sum may come out above what there is.
    let other = (sum(|sample| sample.other) / available).min(1.0);
    if other > OTHER_LOAD {
        let (code, which) = if pinned {
            ("cores_busy", "the cores of server and client")
        } else {
            ("other_load", "the machine")
        };
        section.warn(code, format!("{side}: other processes used {} of {which}", percent(other)));
    }
}

/// Warns of figures that contradict each other.
pub fn check_figures(section: &mut Section) {
    for row in section.figures.clone() {
        if !row.compared {
            continue;
        }
        for cell in &row.cells {
            let width = cell.width().unwrap_or(0.0);
            if width > WIDE_SPREAD {
                let text =
                    format!("{}: the rounds of {:?} lie {} apart", cell.side, row.name, percent(width));
                section.warn("wide_spread", text);
            }
        }
        if is_below_floor(&row) {
            let text = format!("{:?} is better than the floor in every round: not the same work", row.name);
            section.warn("below_floor", text);
        }
    }
}

/// One round may be anything.
fn is_below_floor(row: &Row) -> bool {
    if row.cells.iter().any(|cell| cell.rounds.len() < 2) {
        return false;
    }
    row.ratio("floor").is_some_and(|ratio| match row.higher_is_better() {
        true => ratio.low > 1.0 + BELOW_FLOOR,
        false => ratio.high < 1.0 - BELOW_FLOOR,
    })
}

/// Warns of what is wrong before anything runs.
pub fn check_setting(section: &mut Section, pinned: bool, gateway: Option<&Path>) {
    if !pinned {
        let text = "server and client share the cores, so each takes time from the other";
        section.warn("cores_shared", text);
    }
    if cfg!(debug_assertions) || gateway.is_some_and(|file| file.iter().any(|part| part == "debug")) {
        section.warn("debug_build", "a build without optimisation was measured: use cargo run --release");
    }
}

/// Warns of a server that may open fewer files than it gets connections.
pub fn check_files(section: &mut Section, side: &str, pid: Option<u32>, connections: usize) {
    let limit = pid.and_then(|pid| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    if let Some(limit) = limit.filter(|limit| *limit < connections as u64) {
        let text = format!("{side}: {connections} connections, and the server may open {limit} files");
        section.warn("descriptor_limit", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::sample::Cost;
    use crate::report::table::{Side, figure};

    fn codes(section: &Section) -> Vec<&str> {
        section.warnings.iter().map(|warning| &warning.code[..]).collect()
    }

    fn sample(client: f64, steal: f64, other: f64) -> Sample {
        let cost = Cost { took: 10.0, server: Some(5.0), client };
        Sample { cost, database: 0.0, steal, other, cores: 2.0 }
    }

    #[test]
    fn a_run_that_cannot_be_right_says_so() {
        for (sample, spins, expected) in [
            (sample(5.0, 0.0, 0.0), false, vec![]),
            (sample(9.9, 0.0, 0.0), false, vec!["client_saturated"]),
            (sample(9.9, 0.0, 0.0), true, vec![]),
            (sample(5.0, 1.0, 0.0), false, vec!["steal_time"]),
            (sample(5.0, 0.0, 2.0), false, vec!["cores_busy"]),
        ] {
            let mut section = Section::default();
            check_samples(&mut section, "gateway", &[sample], true, spins);
            assert_eq!(codes(&section), expected, "{sample:?}");
        }
    }

    #[test]
    fn rounds_that_disagree_and_a_gateway_faster_than_the_kernel_are_reported() {
        let warned = |rounds: &[(f64, f64)]| {
            let mut section = Section::new("x", &[Side::Floor, Side::Gateway]);
            for (floor, gateway) in rounds {
                section.add(Side::Floor, &[figure("x/s", *floor)]);
                section.add(Side::Gateway, &[figure("x/s", *gateway)]);
            }
            section.conclude();
            check_figures(&mut section);
            codes(&section).iter().map(|code| (*code).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(warned(&[(100.0, 90.0), (102.0, 92.0)]), [""; 0]);
        assert_eq!(warned(&[(100.0, 60.0), (100.0, 90.0)]), ["wide_spread"]);
        assert_eq!(warned(&[(100.0, 120.0), (102.0, 121.0)]), ["below_floor"]);
    }

    #[test]
    fn a_server_with_too_few_files_is_reported() {
        let mut section = Section::default();
        check_files(&mut section, "gateway", Some(std::process::id()), 1);
        assert_eq!(codes(&section), [""; 0]);
        check_files(&mut section, "gateway", Some(std::process::id()), usize::MAX);
        let unlimited = section.warnings.is_empty();
        assert!(unlimited || codes(&section) == ["descriptor_limit"]);
    }
}
