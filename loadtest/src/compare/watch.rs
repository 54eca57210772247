//! Looks at the machine while something is measured, and says when the figures cannot be right: the
//! client was the bottleneck, others used the cores, the hypervisor took time, the rounds disagree.
//! It only ever warns; `--strict` makes a failure of it.

use std::time::{Duration, Instant};

use super::meter::Cost;
use crate::cores::Cores;
use crate::process;
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

/// The machine at the start of the measured time.
pub struct Watch {
    began: Instant,
    pid: Option<u32>,
    cores: Option<Cores>,
    ticks: Option<Ticks>,
    server: Option<Duration>,
    /// The main process of the server's own database.
    database: Option<(u32, Duration)>,
    client: Option<Duration>,
}

/// What the measured time was like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// What it cost.
    pub cost: Cost,
    /// Seconds that the server's own database used.
    pub database: f64,
    /// Seconds that the hypervisor gave to others, of all cores that are watched.
    steal: f64,
    /// Seconds that other processes used there.
    other: f64,
    /// How many cores are watched.
    cores: f64,
}

/// Hundredths of a second of some cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    cores: u64,
    busy: u64,
    steal: u64,
}

impl Watch {
    /// Looks for the first time.
    pub fn start(pid: Option<u32>, database: Option<u32>, cores: Option<Cores>) -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Self {
            pid,
            cores,
            ticks: Ticks::read(&stat, cores),
            server: pid.and_then(process::cpu_time),
            database: database.and_then(|id| Some((id, process::family_time(id)?))),
            client: process::own_time(),
            began: Instant::now(),
        }
    }

    /// Looks again.
    pub fn finish(self) -> Sample {
        let took = self.began.elapsed().as_secs_f64();
        let after = Self::start(self.pid, self.database.map(|(id, _)| id), self.cores);
        let used = |before: Option<Duration>, after: Option<Duration>| {
            Some(after?.saturating_sub(before?).as_secs_f64())
        };
        let server = used(self.server, after.server);
        let client = used(self.client, after.client).unwrap_or(0.0);
        let time = |database: (u32, Duration)| database.1;
        let database = used(self.database.map(time), after.database.map(time)).unwrap_or(0.0);
        let (before, now) = (self.ticks.unwrap_or_default(), after.ticks.unwrap_or_default());
        let seconds = |before: u64, now: u64| now.saturating_sub(before) as f64 / 100.0;
        // A server whose process is not known cannot be told from the others.
        let other = match server {
            Some(server) => (seconds(before.busy, now.busy) - server - database - client).max(0.0),
            None => 0.0,
        };
        Sample {
            cost: Cost { took, server, client },
            database,
            steal: seconds(before.steal, now.steal),
            other,
            cores: now.cores.max(1) as f64,
        }
    }
}

impl Ticks {
    /// Of these cores, or of all there are.
    fn read(stat: &str, cores: Option<Cores>) -> Option<Self> {
        let mut all = Self::default();
        for line in stat.lines() {
            let mut fields = line.split_whitespace();
            let Some(core) = fields.next().and_then(|name| name.strip_prefix("cpu")?.parse::<usize>().ok())
            else {
                continue;
            };
            if cores.is_some_and(|Cores { server, client }| core != server && core != client) {
                continue;
            }
            let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
            let [user, nice, system, _idle, _wait, _irq, _softirq, steal, ..] = fields[..] else {
                return None;
            };
            all = Self {
                cores: all.cores + 1,
                busy: all.busy + user + nice + system,
                steal: all.steal + steal,
            };
        }
        (all.cores > 0).then_some(all)
    }
}

/// Warns of what the machine did while one side was measured, in all its rounds together.
pub fn judge_samples(section: &mut Section, side: &str, samples: &[Sample], pinned: bool, spins: bool) {
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
pub fn judge_figures(section: &mut Section) {
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
pub fn judge_setting(section: &mut Section, pinned: bool, gateway: Option<&std::path::Path>) {
    if !pinned {
        let text = "server and client share the cores, so each takes time from the other";
        section.warn("cores_shared", text);
    }
    if cfg!(debug_assertions) || gateway.is_some_and(|file| file.iter().any(|part| part == "debug")) {
        section.warn("debug_build", "a build without optimisation was measured: use cargo run --release");
    }
}

/// Warns of a server that may open fewer files than it gets connections.
pub fn judge_files(section: &mut Section, side: &str, pid: Option<u32>, connections: usize) {
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
    use crate::compare::Side;
    use crate::compare::table::{Table, figure};

    const STAT: &str = "cpu  900 0 90 0 0 0 0 30 0 0\n\
                        cpu0 100 5 20 300 0 1 2 7 0 0\n\
                        cpu1 200 0 30 300 0 1 2 8 0 0\n\
                        cpu2 600 0 40 300 0 1 2 15 0 0\nintr 5\n";

    fn codes(section: &Section) -> Vec<&str> {
        section.warnings.iter().map(|warning| &warning.code[..]).collect()
    }

    fn sample(client: f64, steal: f64, other: f64) -> Sample {
        let cost = Cost { took: 10.0, server: Some(5.0), client };
        Sample { cost, database: 0.0, steal, other, cores: 2.0 }
    }

    #[test]
    fn only_the_cores_in_question_are_watched() {
        let cores = Some(Cores { server: 0, client: 2 });
        assert_eq!(Ticks::read(STAT, cores), Some(Ticks { cores: 2, busy: 765, steal: 22 }));
        assert_eq!(Ticks::read(STAT, None), Some(Ticks { cores: 3, busy: 995, steal: 30 }));
        assert_eq!(Ticks::read("", None), None);
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
            judge_samples(&mut section, "gateway", &[sample], true, spins);
            assert_eq!(codes(&section), expected, "{sample:?}");
        }
    }

    #[test]
    fn rounds_that_disagree_and_a_gateway_faster_than_the_kernel_are_told() {
        let warned = |rounds: &[(f64, f64)]| {
            let mut table = Table::new(&[Side::Floor, Side::Gateway]);
            for (floor, gateway) in rounds {
                table.add(Side::Floor, &[figure("x/s", *floor)]);
                table.add(Side::Gateway, &[figure("x/s", *gateway)]);
            }
            let mut section = Section { figures: table.rows(), ..Section::default() };
            judge_figures(&mut section);
            codes(&section).iter().map(|code| (*code).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(warned(&[(100.0, 90.0), (102.0, 92.0)]), [""; 0]);
        assert_eq!(warned(&[(100.0, 60.0), (100.0, 90.0)]), ["wide_spread"]);
        assert_eq!(warned(&[(100.0, 120.0), (102.0, 121.0)]), ["below_floor"]);
    }

    #[test]
    fn a_busy_neighbour_is_seen_on_a_real_machine() {
        let watch = Watch::start(Some(std::process::id()), None, None);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let sample = watch.finish();
        assert!(sample.cost.took >= 0.06 && sample.cores >= 1.0, "{sample:?}");
        assert!(sample.cost.client > 0.0, "{sample:?}");
    }

    #[test]
    fn a_server_with_too_few_files_is_told() {
        let mut section = Section::default();
        judge_files(&mut section, "gateway", Some(std::process::id()), 1);
        assert_eq!(codes(&section), [""; 0]);
        judge_files(&mut section, "gateway", Some(std::process::id()), usize::MAX);
        let unlimited = section.warnings.is_empty();
        assert!(unlimited || codes(&section) == ["descriptor_limit"]);
    }
}
