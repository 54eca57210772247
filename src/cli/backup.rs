//! `campanile backup`: a copy of the SQLite database, while the gateway runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Args;

use super::ConfigArgs;
use super::terminal::print_line;
use crate::store::{Location, Options, backup};

const ABOUT: &str = "\
Copies the SQLite database of the data folder into a new file, which is complete, checked and synced when the \
command returns. The gateway may keep running, and everything that it accepted before is in the copy.

To restore it, stop the gateway, put the file in place of campanile.db in the data folder (and remove \
campanile.db-wal and campanile.db-shm there), and start it. The copy is marked as one: the first start gives every \
channel a new epoch, so that readers whose position is gone are told. Generated secrets are in secrets.toml, which \
is not part of the copy: keep a copy of it as well, in a safe place.

On Postgres use its own tools (pg_dump, pg_basebackup, a replica), and run `campanile log new-epoch` after \
restoring a dump.";

const AFTER_HELP: &str = "\
Examples:
  campanile backup /var/backups/campanile-$(date +%F).db
  campanile backup campanile.db --data-dir /var/lib/campanile

Output: the size of the copy and how long it took.

Exit codes: 0 done, 1 it failed and there is no copy, 2 wrong usage.";

/// Copy the database while the gateway runs
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Backup {
    /// The new file, which must not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let Location::Sqlite { path } = Options::from(&source.load()?).location else {
            bail!(
                "the data is on Postgres: back it up with pg_dump or pg_basebackup, and run `campanile log \
                 new-epoch` after restoring a dump"
            );
        };
        let begun = Instant::now();
        let length = backup::copy(&path, &self.file)?;
        let took = begun.elapsed().as_secs_f64();
        let mib = length as f64 / f64::from(1 << 20);
        print_line(format_args!("{}: {mib:.1} MiB in {took:.1} s", self.file.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
