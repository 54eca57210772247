//! `campanile migrate`: brings the schema up to date without serving.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::terminal::print_line;
use super::{ConfigArgs, block_on};
use crate::store;

const ABOUT: &str = "\
Brings the schema of the store up to date and lists its migrations. `campanile serve` does the same \
when it starts, so this is for doing it beforehand, or with other rights.

The store is the one of the configuration: DATABASE_URL, or SQLite in the data folder. No secret \
is needed except the one in DATABASE_URL.";

const AFTER_HELP: &str = "\
Examples:
  campanile migrate
  campanile migrate --data-dir /var/lib/campanile
  DATABASE_URL=postgres://db/campanile campanile migrate

Output: one line for each migration, with `new` if it was applied now and `applied` if it was before.

Exit codes: 0 up to date, 1 it failed (nothing is half applied) or the data folder is in use by a running \
gateway, 2 wrong usage.";

/// Bring the schema of the store up to date
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Migrate {}

impl Migrate {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let migrations = migrate(store::Options::from(&source.load()?))?;
        for (name, new) in &migrations {
            print_line(format_args!("{:<8} {name}", if *new { "new" } else { "applied" }))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The names of all migrations, and whether each was applied now.
fn migrate(options: store::Options) -> anyhow::Result<Vec<(String, bool)>> {
    block_on(async move { store::migrations_applied(&options).await.context("the migrations were not run") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;

    #[test]
    fn migrations_are_new_once_and_wait_for_a_gateway_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let config = Loader::new().environment([("CAMPANILE_DATA_DIR", data)]).load().unwrap();
        let options = store::Options::from(&config);
        let first = migrate(options.clone()).unwrap();
        assert!(!first.is_empty() && first.iter().all(|(_, new)| *new), "{first:?}");
        assert!(migrate(options.clone()).unwrap().iter().all(|(_, new)| !new));
        block_on(async {
            let gateway = store::Store::open(&options).await?;
            let error = store::migrations_applied(&options).await.unwrap_err().to_string();
            assert!(error.contains("is in use by another campanile: stop it first"), "{error}");
            drop(gateway);
            Ok(())
        })
        .unwrap();
    }
}
