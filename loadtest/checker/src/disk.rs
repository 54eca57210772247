//! A disk that can be full: a small file system in memory, mounted for one run. Only root may mount;
//! elsewhere the case says that it could not run. A limit of the database would not be the same.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;
use tempfile::TempDir;

const BALLAST: &str = "ballast";

/// The file system; unmounted when it is dropped.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Mounts one of so many MiB, or says why that cannot be here.
    pub fn mount(mebibytes: u32) -> Result<Result<Self, String>> {
        if !geteuid().is_root() {
            return Ok(Err("mounting a small disk takes root".into()));
        }
        let folder = tempfile::Builder::new().prefix("campanile-disk-").tempdir()?;
        let options = format!("size={mebibytes}m,mode=0777");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "campanile-checker"]).arg(folder.path());
        let mounted = command.output().context("cannot run mount")?;
        if !mounted.status.success() {
            let reason = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            return Ok(Err(format!("mount is refused: {reason}")));
        }
        Ok(Ok(Self { folder }))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn fill(&self) -> Result<()> {
        let mut file = File::create(self.ballast())?;
        // The last pieces are small, so that not even a page is left.
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0xaa; size];
            while file.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.ballast()).context("there is no ballast")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join(BALLAST)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because a process that was just killed may still hold a file.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("checker: {} is still mounted", self.path().display());
        }
    }
}

pub fn expect_full(disk: &Disk) -> Result<()> {
    let probe = disk.path().join("probe");
    let full = std::fs::write(&probe, [0; 8192]).is_err();
    let _ = std::fs::remove_file(&probe);
    ensure!(full, "the disk is not full");
    Ok(())
}
