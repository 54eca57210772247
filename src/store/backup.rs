//! A copy of SQLite's file while a gateway works on it. The copy is marked: whoever opens it as
//! data gives it a new generation first, each time it is restored anew, so that no epoch ever names
//! both what followed the backup before and what follows it after.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::Text;

use super::error::{Result, StoreError};
use super::generation;
use super::schema::meta;
use super::sqlite::{self, Side};

/// Says when a copy was made; only in copies.
const COPIED_AT: &str = "copied_at";

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Nothing is overwritten.
    #[error("{0} exists already: give another name, or remove it")]
    Exists(PathBuf),
    /// There is nothing to copy.
    #[error("there is no database at {0}: is this the right data folder? (--data-dir)")]
    Missing(PathBuf),
    /// The target cannot be written.
    #[error("cannot write {path}: {source}")]
    File {
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite cannot copy it.
    #[error("the database cannot be copied: {0}")]
    Failed(String),
}

/// Copies the database at `from` to the new file `to`, which is whole and synced when this returns,
/// and otherwise not there. Answers its length in bytes. Everything that was committed before is in
/// it; a gateway may go on writing meanwhile. Blocks.
pub fn copy(from: &Path, to: &Path) -> std::result::Result<u64, BackupError> {
    if !from.exists() {
        return Err(BackupError::Missing(from.to_path_buf()));
    }
    let file = |source| BackupError::File { path: to.to_path_buf(), source };
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = to.with_file_name(name);
    for path in [to, &part] {
        if path.try_exists().map_err(file)? {
            return Err(BackupError::Exists(path.to_path_buf()));
        }
    }
    let done = write(from, &part, file).and_then(|length| {
        // Unlike a rename this fails if somebody else has made the file meanwhile.
        std::fs::hard_link(&part, to).map_err(file)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(file)?;
        Ok(length)
    });
    // What is left of a copy is of no use; that it cannot be removed is not the news here.
    let _ = std::fs::remove_file(&part);
    done
}

fn write(
    from: &Path,
    part: &Path,
    file: impl Fn(io::Error) -> BackupError,
) -> std::result::Result<u64, BackupError> {
    let failed = |error: String| BackupError::Failed(error);
    // It holds payloads: nobody else may read it, from its first byte on.
    private(part).map_err(&file)?;
    let mut conn = sqlite::open(from, Side::Write).map_err(|error| failed(error.to_string()))?;
    let target = part.to_str().ok_or_else(|| failed("the name of the target is not UTF-8".into()))?;
    let copied = diesel::sql_query("VACUUM INTO ?").bind::<Text, _>(target).execute(&mut conn);
    copied.map_err(|error| failed(error.to_string()))?;
    drop(conn);
    mark(part).map_err(|error| failed(error.to_string()))?;
    let written = File::open(part).map_err(&file)?;
    written.sync_all().map_err(&file)?;
    Ok(written.metadata().map_err(&file)?.len())
}

/// An empty file for its owner alone; SQLite takes it for an empty database.
fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Looks whether the copy is sound, and marks it.
fn mark(copy: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut conn = SqliteConnection::establish(&copy.to_string_lossy())?;
    #[derive(QueryableByName)]
    struct Check {
        #[diesel(sql_type = Text)]
        quick_check: String,
    }
    let check: Check = diesel::sql_query("PRAGMA quick_check(1)").get_result(&mut conn)?;
    if check.quick_check != "ok" {
        return Err(check.quick_check.into());
    }
    let now = chrono::Utc::now().to_rfc3339();
    let row = (meta::key.eq(COPIED_AT), meta::value.eq(now));
    diesel::insert_into(meta::table).values(row).execute(&mut conn)?;
    // One file, without a log beside it.
    conn.batch_execute("PRAGMA journal_mode = DELETE")?;
    Ok(())
}

/// If the database is a copy that was put to use, gives it a generation of its own.
pub(super) fn settle_in(conn: &mut SqliteConnection) -> Result<()> {
    let copied_at: Option<String> = meta::table.find(COPIED_AT).select(meta::value).first(conn).optional()?;
    let Some(copied_at) = copied_at else { return Ok(()) };
    conn.transaction::<_, StoreError, _>(|conn| {
        let marker = generation::new_marker();
        diesel::update(meta::table.find(generation::MARKER)).set(meta::value.eq(marker)).execute(conn)?;
        diesel::delete(meta::table.find(COPIED_AT)).execute(conn)?;
        Ok(())
    })?;
    tracing::warn!(copied_at, "this is a restored backup: every channel starts a new epoch");
    Ok(())
}
