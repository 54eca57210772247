//! Where a report was measured: the machine as the kernel knows it, and the commit. A figure without its
//! machine is worth nothing to the next reader.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Of the processor.
    pub model: String,
    /// As many as this process may use.
    pub cores: usize,
    /// Someone else's machine pretends to be this one.
    pub is_virtual: bool,
    /// In bytes.
    pub memory: u64,
    /// Name and release.
    pub kernel: String,
}

impl Machine {
    /// This one; what the kernel does not say is empty.
    pub fn here() -> Self {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let kilobytes = field(&memory, "MemTotal").and_then(|value| value.split(' ').next()?.parse().ok());
        Self {
            model: field(&cpu, "model name").unwrap_or_default().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            is_virtual: field(&cpu, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
            memory: kilobytes.unwrap_or(0_u64) * 1024,
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        }
    }

    pub fn line(&self) -> String {
        let Self { model, cores, is_virtual, memory, kernel } = self;
        let kind = if *is_virtual { ", virtual" } else { "" };
        let memory = *memory as f64 / f64::from(1 << 30);
        format!("{cores} cores of {model}{kind}, {memory:.1} GiB, {kernel}")
    }
}

/// The kind of file system that holds a folder.
pub fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    holding(&mounts, &folder).map(str::to_owned)
}

/// Of the mounts above it the deepest, and of several there the last.
fn holding<'a>(mounts: &'a str, folder: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?))
    });
    let above = mounts.filter(|(place, _)| folder.starts_with(place));
    above.max_by_key(|(place, _)| place.components().count()).map(|(_, kind)| kind)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The commit that is checked out in the working directory, marked if files differ from it.
pub fn commit() -> Option<String> {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let commit = String::from_utf8(git.stdout).ok()?.trim().to_owned();
    (git.status.success() && !commit.is_empty()).then_some(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.memory > 1 << 20, "{machine:?}");
        assert!(machine.kernel.len() > "Linux ".len(), "{machine:?}");
    }

    #[test]
    fn a_folder_is_on_the_deepest_mount_above_it() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        let kind = |folder| holding(mounts, Path::new(folder));
        assert_eq!(
            [kind("/tmp/x"), kind("/tmp/disk/y"), kind("/tmpx")],
            [Some("tmpfs"), Some("xfs"), Some("ext4")]
        );
        assert!(file_system(Path::new("/")).is_some());
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t: 7\nmodel name\t: A: fast one\nMemTotal:  16 kB\n";
        assert_eq!(field(text, "model name"), Some("A: fast one"));
        assert_eq!((field(text, "MemTotal"), field(text, "Mem")), (Some("16 kB"), None));
    }
}
