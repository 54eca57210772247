//! Processes: commands whose process ends with this one, signals, and what a process costs, as the
//! kernel counts it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd;
use procfs::process::{Process, Stat, all_processes};
pub use rustix::process::Signal;
use rustix::process::{Pid, WaitOptions, geteuid, kill_process, waitpid};
use tokio::process::{Child, Command};

/// A command that runs `program` on one core, if asked, with further options of `setpriv`. Its process
/// gets the signal `on_death` when this one ends, however that happens.
pub fn command(program: &Path, on_death: &str, core: Option<usize>, options: &[&str]) -> Command {
    let mut command = match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", &core.to_string(), "setpriv"]);
            command
        }
        None => Command::new("setpriv"),
    };
    command.args(["--pdeathsig", on_death]).args(options).arg("--").arg(program);
    command.kill_on_drop(true);
    command
}

/// A command that runs `program` in `folder` as an ordinary user, because PostgreSQL refuses root, and
/// others need not be it. `under` is the beginning of a command that becomes the program.
pub fn ordinary(
    program: &Path,
    on_death: &str,
    core: Option<usize>,
    folder: &Path,
    under: &[String],
) -> Result<Command> {
    let user = ordinary_user()?;
    let options = match &user {
        Some((user, group)) => &["--reuid", user, "--regid", group, "--clear-groups"][..],
        None => &[],
    };
    let mut words = under.iter().map(Path::new).chain([program]);
    let mut command = command(words.next().unwrap_or(program), on_death, core, options);
    command.args(words).current_dir(folder);
    Ok(command)
}

/// Gives a folder with all that it has to the user who is to use it.
pub fn give_away(folder: &Path) -> Result<()> {
    let Some((user, _)) = ordinary_user()? else { return Ok(()) };
    let status = std::process::Command::new("chown").args(["-R", &user]).arg(folder).status()?;
    ensure!(status.success(), "cannot give {} to {user}", folder.display());
    Ok(())
}

/// The user to become, and its group, if this process is root.
fn ordinary_user() -> Result<Option<(String, String)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let mut users = users.lines().map(|line| line.split(':'));
        let mut fields = users.find(|fields| fields.clone().next() == Some(name))?;
        Some((name.to_owned(), fields.nth(3)?.to_owned()))
    };
    find("postgres").or_else(|| find("nobody")).map(Some).context("there is no ordinary user")
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = process_id(child).context("the process has ended")?;
    kill_process(id, signal).with_context(|| format!("cannot signal process {}", id.as_raw_pid()))
}

/// Ends a child by a signal and waits for it without a runtime, for use while something is dropped.
pub fn end_now(child: &Child, with: Signal) {
    if let Some(id) = process_id(child).filter(|_| signal(child, with).is_ok()) {
        let _ = waitpid(Some(id), WaitOptions::empty());
    }
}

fn process_id(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id()?.cast_signed())
}

/// The processor time, user and system, of all its threads, those that have ended too. By its clock:
/// what `/proc` shows counts in hundredths of a second.
pub fn cpu_time(process: u32) -> Option<Duration> {
    // 0 would be this process.
    let process = i32::try_from(process).ok().filter(|process| *process > 0)?;
    let clock = clock_getcpuclockid(unistd::Pid::from_raw(process)).ok()?;
    Some(clock.now().ok()?.into())
}

/// The same of this process.
pub fn own_time() -> Option<Duration> {
    cpu_time(std::process::id())
}

/// The processor time of a process with its children, those that have ended too, in hundredths of a
/// second.
pub fn family_time(process: u32) -> Option<Duration> {
    let own = |stat: &Stat| stat.utime + stat.stime;
    let parent = of(process)?.stat().ok()?;
    let others = all_processes().ok()?.filter_map(|process| process.ok()?.stat().ok());
    let children: u64 = others.filter(|stat| stat.ppid == parent.pid).map(|stat| own(&stat)).sum();
    let ended = u64::try_from(parent.cutime + parent.cstime).ok()?;
    Some(Duration::from_secs(own(&parent) + ended + children) / procfs::ticks_per_second() as u32)
}

/// The bytes it has in memory.
pub fn resident(process: u32) -> Option<u64> {
    Some(of(process)?.status().ok()?.vmrss? * 1024)
}

/// The files and sockets it has open.
pub fn descriptors(process: u32) -> Option<u64> {
    Some(of(process)?.fd_count().ok()? as u64)
}

fn of(process: u32) -> Option<Process> {
    Process::new(process.cast_signed()).ok()
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
        let this = std::process::id();
        let family = family_time(this).unwrap();
        assert!(family + Duration::from_millis(20) >= before, "{family:?} {before:?}");
        assert!(resident(this).unwrap() > 100_000);
        assert!(descriptors(this).unwrap() > 2);
        assert_eq!((cpu_time(0), resident(0), descriptors(0)), (None, None, None));
    }
}
