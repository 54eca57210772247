//! `campanile log`: maintenance of the log. `new-epoch` tells subscribers that the history may not be the one
//! that they know. Only whoever restored it can know that.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use futures_util::FutureExt as _;

use super::terminal::{confirm, print_line};
use super::{ConfigArgs, block_on};
use crate::domain::position::Epoch;
use crate::store::{Options, Store, generation};

const ABOUT: &str = "\
Gives the store a new generation, and with it every channel a new epoch. Do this after restoring a backup or \
switching to a copy of the data: offsets may then be given to other events a second time, and cursors from \
before must not be taken for new ones.

Nothing is deleted. Subscribers that return with an old cursor are told that their position is gone, and read \
again from the oldest retained event.

On SQLite the gateway must be stopped. On Postgres a restore to an earlier time and a failover change the \
generation by themselves; running nodes notice a change when they reconnect to the store.

The store is the one of the configuration: DATABASE_URL, or SQLite in the data folder. No secret \
is needed except the one in DATABASE_URL.";

const AFTER_HELP: &str = "\
Examples:
  campanile log new-epoch
  campanile log new-epoch --yes --data-dir /var/lib/campanile

Output: the generation before and after.

Exit codes: 0 done, 1 it failed, was not confirmed, or the data folder is in use, 2 wrong usage.";

/// Maintain the log
#[derive(Debug, Args)]
pub(super) struct Log {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    NewEpoch(NewEpoch),
}

/// Invalidate all cursors, after a restore
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
struct NewEpoch {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

impl Log {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let LogCommand::NewEpoch(NewEpoch { yes }) = self.command;
        let options = Options::from(&source.load()?);
        let question = "Every subscriber will have to start over from the oldest retained event. Continue?";
        if !yes && !confirm(question, "--yes")? {
            eprintln!("nothing was changed");
            return Ok(ExitCode::FAILURE);
        }
        let (old, new) = block_on(renew(&options))?;
        print_line(format_args!("old generation: {old}"))?;
        print_line(format_args!("new generation: {new}"))?;
        print_line(
            "Existing cursors are invalid now: subscribers that send one are told so and start over.",
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn renew(options: &Options) -> anyhow::Result<(Epoch, Epoch)> {
    let store = Store::open(options).await?;
    let old = store.generation();
    let marker = generation::new_marker();
    let written = store
        .write_log(move |mut conn| async move { generation::renew(&mut conn, &marker).await }.boxed())
        .await;
    written.context("the result of the change is unknown: run this again")?;
    store.probe().await.context("the generation was changed, but cannot be read back")?;
    Ok((old, store.generation()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;

    #[test]
    fn a_new_generation_stays() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let config = Loader::new().environment([("CAMPANILE_DATA_DIR", data)]).load().unwrap();
        let options = Options::from(&config);
        let (first, second) = block_on(renew(&options)).unwrap();
        let (again, third) = block_on(renew(&options)).unwrap();
        assert_eq!(second, again);
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn a_store_in_use_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().to_str().unwrap();
        let config = Loader::new().environment([("CAMPANILE_DATA_DIR", data)]).load().unwrap();
        let options = Options::from(&config);
        block_on(async {
            let store = Store::open(&options).await?;
            let error = renew(&options).await.unwrap_err().to_string();
            assert!(error.contains("is in use by another campanile"), "{error}");
            drop(store);
            Ok(())
        })
        .unwrap();
    }
}
