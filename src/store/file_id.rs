//! Which file stands under a name.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The device and the number of a file, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// That of the file at `path`, through symbolic links.
    #[cfg(target_os = "linux")]
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};

        // Nothing else is asked for: a file whose times were looked at gets exact ones with its next write
        // (Linux 6.13 and later), so that each sync of the log would write its inode too.
        match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
            Ok(found) => {
                let device = makedev(found.stx_dev_major, found.stx_dev_minor);
                Ok(Self { device, inode: found.stx_ino })
            }
            // Old containers refuse this system call.
            Err(_) => std::fs::metadata(path).map(Self::from),
        }
    }

    /// That of the file at `path`, through symbolic links.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(Self::from)
    }

    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(Self::from)
    }
}

impl From<Metadata> for FileId {
    fn from(found: Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_under_each_name_and_another_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let [one, linked, other] = ["one", "linked", "other"].map(|name| folder.path().join(name));
        let file = File::create(&one).expect("written");
        std::fs::write(&other, "").expect("written");
        std::os::unix::fs::symlink(&one, &linked).expect("linked");
        let id = |path: &Path| FileId::at(path).expect("it is there");
        assert_eq!(id(&one), FileId::of(&file).expect("it is open"));
        assert_eq!(id(&one), id(&linked));
        assert_ne!(id(&one), id(&other));
        assert!(FileId::at(&folder.path().join("none")).is_err());
    }
}
