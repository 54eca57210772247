//! The machine while something is measured: the processor time of the server, its database and this
//! tool, and what else used the cores.

use std::time::{Duration, Instant};
use testkit::process;

use crate::cores::Cores;

/// What the measured time was, and cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Seconds on the clock.
    pub took: f64,
    /// Seconds of the server's processor time, if its process is known.
    pub server: Option<f64>,
    /// Seconds of this tool's processor time.
    pub client: f64,
}

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
    /// The processor time of both sides.
    pub cost: Cost,
    /// Seconds that the server's own database used.
    pub database: f64,
    /// Seconds that the hypervisor gave to others, of all cores that are watched.
    pub steal: f64,
    /// Seconds that other processes used there.
    pub other: f64,
    /// How many cores are watched.
    pub cores: f64,
}

/// Hundredths of a second of some cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    cores: u64,
    busy: u64,
    steal: u64,
}

impl Watch {
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

    /// Looks again, and gives what was used since.
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

impl Cost {
    /// The server's share of one core in percent.
    pub fn server_percent(&self) -> Option<f64> {
        self.server.map(|server| server * 100.0 / self.took)
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

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  900 0 90 0 0 0 0 30 0 0\n\
                        cpu0 100 5 20 300 0 1 2 7 0 0\n\
                        cpu1 200 0 30 300 0 1 2 8 0 0\n\
                        cpu2 600 0 40 300 0 1 2 15 0 0\nintr 5\n";

    #[test]
    fn only_the_cores_in_question_are_watched() {
        let cores = Some(Cores { server: 0, client: 2 });
        assert_eq!(Ticks::read(STAT, cores), Some(Ticks { cores: 2, busy: 765, steal: 22 }));
        assert_eq!(Ticks::read(STAT, None), Some(Ticks { cores: 3, busy: 995, steal: 30 }));
        assert_eq!(Ticks::read("", None), None);
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
}
