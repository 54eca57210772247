//! What the operating system says about this process: how much memory it has and may have.
//! Read from `/proc` and from the control group when `/metrics` is asked for; elsewhere unknown.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit of 8 EiB, as control groups of the first version write it, is none.
const NO_LIMIT: u64 = 1 << 60;

/// Memory of this process that is in RAM, in bytes.
pub fn resident_memory() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The memory that this process may have, in bytes: the limit of its control group, or that of one above, or
/// else all there is.
pub fn memory_limit() -> Option<u64> {
    let all = kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    group_limit(Path::new("/sys/fs/cgroup"), &groups).into_iter().chain(all).min()
}

/// The least limit of the groups that `/proc/self/cgroup` names, and of those above them. A container may see
/// its own group as the root.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let folders = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (folder, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        Some((folder, path.trim_start_matches('/').to_owned(), file))
    });
    let limits = folders.flat_map(|(folder, path, file)| {
        let own = folder.join(path);
        let above: Vec<PathBuf> =
            own.ancestors().take_while(|at| at.starts_with(&folder)).map(Path::to_owned).collect();
        above
            .into_iter()
            .filter_map(move |at| fs::read_to_string(at.join(file)).ok()?.trim().parse::<u64>().ok())
    });
    limits.filter(|limit| *limit < NO_LIMIT).min()
}

/// The number behind `name`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        let limit = |groups: &str| group_limit(root.path(), groups);
        assert_eq!(limit("0::/system.slice/campanile.service\n"), None);
        write("system.slice/campanile.service/memory.max", "max\n");
        write("system.slice/memory.max", "1048576\n");
        write("memory.max", "2097152\n");
        assert_eq!(limit("0::/system.slice/campanile.service\n"), Some(1 << 20));
        assert_eq!(limit("0::/\n"), Some(2 << 20));
        write("memory/docker/memory.limit_in_bytes", "4096\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:cpu,memory:/docker\n1:name=systemd:/x\n"), Some(4096));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        let (used, limit) = (resident_memory().expect("some"), memory_limit().expect("some"));
        assert!(used > 1 << 20 && used < limit, "{used} of {limit}");
    }
}
