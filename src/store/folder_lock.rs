//! Keeps a second process out of SQLite's folder.

use std::fs::File;

/// The lock of a folder, until it is dropped. To close the file is not enough: a child process that another
/// thread is just starting has the file open as well, until it runs its program.
pub(super) struct FolderLock(pub(super) File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the folder's lock ends when its file is closed");
        }
    }
}
