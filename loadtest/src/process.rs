//! What a process costs, as the kernel counts it under `/proc`: by its id, or `self`.

use std::time::Duration;

/// The processor time, user and system, of all its threads.
pub fn cpu_time(process: &str) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in brackets may hold spaces; user and system time are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // Linux shows user space a hundred ticks a second, whatever the kernel's own clock.
    Some(Duration::from_millis(ticks * 10))
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
        assert!(cpu_time("self").is_some());
        assert!(resident("self").unwrap() > 100_000);
        assert!(descriptors("self").unwrap() > 2);
        assert_eq!((cpu_time("0"), resident("0"), descriptors("0")), (None, None, None));
    }
}
