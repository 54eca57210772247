//! Keeps a second process out of SQLite's folder and file, by whatever name it comes, and other users too.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::file_id::FileId;

const LOCK: &str = "campanile.lock";
/// What else is in the folder that is nobody's business.
const SECRETS: [&str; 2] = ["secrets.toml", "secrets.lock"];
/// What SQLite puts beside the database.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The databases that this process has locked. Whoever closes any handle on such a file ends all locks that
/// SQLite has on it (POSIX says so), so that it must not be opened to find that out.
static OPENED: Mutex<Option<HashSet<FileId>>> = Mutex::new(None);

/// Why there is no lock.
pub(super) enum LockError {
    /// Somebody else has it.
    Taken(PathBuf),
    File {
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock of a folder and of the database in it, until it is dropped, which must be after SQLite has closed
/// the file. To close a file is not enough to unlock it: a child process that another thread is just starting
/// has it open as well, until it runs its program.
pub(super) struct FolderLock {
    /// The database by itself: another folder may have a link to it.
    database: File,
    id: FileId,
    folder: File,
}

impl FolderLock {
    /// Makes what is missing. The folder is made private if `private_folder`, or if it is new; it may be shared
    /// otherwise.
    pub(super) fn take(path: &Path, private_folder: bool) -> Result<Self, LockError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LockError::File { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
        if private_folder {
            tighten(folder, 0o700);
        }
        SECRETS.iter().for_each(|name| tighten(&folder.join(name), 0o600));
        let folder_lock = open_private(&folder.join(LOCK)).map_err(failed(folder))?;
        lock(&folder_lock, folder)?;

        let is_opened = |id| opened(|opened| opened.contains(&id));
        if FileId::at(path).is_ok_and(is_opened) {
            return Err(LockError::Taken(path.to_owned()));
        }
        let database = open_private(path).map_err(failed(path))?;
        // Another sort of lock than those of SQLite: neither is in the other's way.
        lock(&database, path)?;
        for end in BESIDE {
            let mut beside = path.as_os_str().to_owned();
            beside.push(end);
            tighten(Path::new(&beside), 0o600);
        }
        let id = FileId::of(&database).map_err(failed(path))?;
        opened(|opened| opened.insert(id));
        Ok(Self { database, id, folder: folder_lock })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        opened(|opened| opened.remove(&self.id));
        for file in [&self.database, &self.folder] {
            if let Err(error) = file.unlock() {
                tracing::debug!(%error, "the lock ends when its file is closed");
            }
        }
    }
}

fn opened<T>(look: impl FnOnce(&mut HashSet<FileId>) -> T) -> T {
    look(OPENED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

fn open_private(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    tighten(path, 0o600);
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), LockError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(LockError::Taken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(LockError::File { path: path.to_owned(), source }),
    }
}

/// Takes away what `mode` does not have.
fn tighten(path: &Path, mode: u32) {
    let Ok(found) = std::fs::metadata(path) else { return };
    let tight = found.mode() & mode;
    if found.mode() & 0o777 != tight
        && let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(tight))
    {
        tracing::warn!(path = %path.display(), %error, "others may read what is private: chmod it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_beside_the_database_is_private_from_the_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.db");
        let beside = BESIDE.map(|end| folder.path().join(format!("events.db{end}")));
        for path in &beside {
            std::fs::write(path, "rows").expect("written");
            std::fs::set_permissions(path, Permissions::from_mode(0o664)).expect("ours");
        }
        let _lock = FolderLock::take(&path, false).ok().expect("it is free");
        for path in &beside {
            let mode = std::fs::metadata(path).expect("it is there").mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}
