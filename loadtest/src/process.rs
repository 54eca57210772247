//! What a process costs, as the kernel counts it.

use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The processor time, user and system, of all its threads, those that have ended too. By its clock:
/// what `/proc` shows counts in hundredths of a second.
pub fn cpu_time(process: u32) -> Option<Duration> {
    // 0 would be this process.
    let process = i32::try_from(process).ok().filter(|process| *process > 0)?;
    let clock = clock_getcpuclockid(Pid::from_raw(process)).ok()?;
    Some(clock.now().ok()?.into())
}

/// The same of this process.
pub fn own_time() -> Option<Duration> {
    cpu_time(std::process::id())
}

/// The processor time of a process with its children, those that have ended too, in hundredths of a
/// second.
pub fn family_time(process: u32) -> Option<Duration> {
    let parent = Stat::of(&process.to_string())?;
    let others = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name();
        Stat::of(name.to_str().filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))?)
    });
    let children = others.filter(|stat| stat.parent == process).map(|stat| stat.own);
    Some(children.fold(parent.own + parent.ended, |sum, own| sum + own))
}

/// What the kernel says of a process in one line.
struct Stat {
    parent: u32,
    own: Duration,
    /// Of children that have ended.
    ended: Duration,
}

impl Stat {
    fn of(process: &str) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name in brackets may hold spaces. Behind it comes the third field, the state.
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        // Linux shows user space a hundred ticks a second, whatever the kernel's own clock.
        let time = |user, system| Some(Duration::from_millis((field(user)? + field(system)?) * 10));
        Some(Self { parent: field(4)?.try_into().ok()?, own: time(14, 15)?, ended: time(16, 17)? })
    }
}

/// The bytes it has in memory.
pub fn resident(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The files and sockets it has open.
pub fn descriptors(process: &str) -> Option<u64> {
    Some(std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_cost_and_not_that_of_nobody() {
        let before = own_time().unwrap();
        while own_time().unwrap() - before < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        // What `/proc` shows leaves out the last hundredth of both kinds.
        let family = family_time(std::process::id()).unwrap();
        assert!(family + Duration::from_millis(20) >= before, "{family:?} {before:?}");
        assert!(resident("self").unwrap() > 100_000);
        assert!(descriptors("self").unwrap() > 2);
        assert_eq!((cpu_time(0), resident("0"), descriptors("0")), (None, None, None));
    }
}
