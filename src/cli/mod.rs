//! The command line. Each command is a file with its arguments, its help and its work. `serve`, `migrate`,
//! `backup` and `log` work on the store; the others speak HTTP or WebSocket to a running gateway, or only
//! read the configuration. Nothing here decides anything about events.

mod backoff;
mod backup;
mod channel_reader;
mod check_config;
mod client;
mod clients;
mod format;
mod github;
mod log;
mod migrate;
mod publish;
mod ready;
mod remote;
mod serve;
mod sign_in;
mod tail;
mod terminal;
mod token;
mod url;
mod webhook;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Loader};

const ABOUT: &str = "\
A self-hosted realtime gateway: changes go in, ordered and replayable live event streams come out.

Settings come from ./campanile.toml (or --config FILE), then the environment, then flags. Every \
option can also be set as CAMPANILE_<SECTION>__<OPTION>; `campanile check-config` shows them all.

Embedded (SQLite), `campanile serve` generates the secrets that are not set and keeps them in the \
data folder, where the other commands find them. On Postgres all of them must be set: \
CAMPANILE_JWT_SECRET, CAMPANILE_API_KEY and GITHUB_WEBHOOK_SECRET.";

const AFTER_HELP: &str = "\
Examples:
  campanile serve --demo
  campanile tail org:acme
  campanile publish repo:acme/api '{\"type\":\"build:done\",\"data\":{\"ok\":true}}'

Exit codes: 0 done, 1 it failed (the reason is on standard error), 2 wrong usage.
`campanile help COMMAND` explains each command.";

/// The command line, parsed.
#[derive(Debug, Parser)]
#[command(name = "campanile", version, about = "A self-hosted realtime gateway", long_about = ABOUT)]
#[command(after_long_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    source: ConfigArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Migrate(migrate::Migrate),
    SignIn(sign_in::SignIn),
    Token(token::Token),
    Publish(publish::Publish),
    Tail(tail::Tail),
    Webhook(webhook::Webhook),
    Github(github::Github),
    Connections(clients::Connections),
    Disconnect(clients::Disconnect),
    Block(clients::Block),
    Unblock(clients::Unblock),
    Revoke(clients::Revoke),
    Backup(backup::Backup),
    Ready(ready::Ready),
    CheckConfig(check_config::CheckConfig),
    Log(log::Log),
}

/// Where the configuration comes from, for every command.
#[derive(Debug, Clone, Default, Args)]
struct ConfigArgs {
    /// Configuration file [default: ./campanile.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", display_order = 900)]
    config: Option<std::path::PathBuf>,
    /// Folder of the SQLite file and of generated secrets [default: ./data]
    #[arg(long, global = true, value_name = "DIR", display_order = 901)]
    data_dir: Option<String>,
}

impl ConfigArgs {
    /// Reads the file, the environment and these flags; commands with further flags add theirs.
    fn loader(&self) -> Loader {
        Loader::new().file(self.config.clone()).environment(std::env::vars_os()).flag(
            "--data-dir",
            "server.data_dir",
            self.data_dir.clone(),
        )
    }

    fn load(&self) -> Result<Config, ConfigError> {
        self.loader().load()
    }
}

impl Cli {
    /// Runs the command. A broken pipe on standard output is not a failure.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let source = &self.source;
        let done = match self.command {
            Command::Serve(serve) => serve.run(source),
            Command::Migrate(migrate) => migrate.run(source),
            Command::SignIn(sign_in) => sign_in.run(source),
            Command::Token(token) => token.run(source),
            Command::Publish(publish) => publish.run(source),
            Command::Tail(tail) => tail.run(source),
            Command::Webhook(webhook) => webhook.run(source),
            Command::Github(github) => github.run(source),
            Command::Connections(connections) => connections.run(source),
            Command::Disconnect(disconnect) => disconnect.run(source),
            Command::Block(block) => block.run(source),
            Command::Unblock(unblock) => unblock.run(source),
            Command::Revoke(revoke) => revoke.run(source),
            Command::Backup(backup) => backup.run(source),
            Command::Ready(ready) => ready.run(source),
            Command::CheckConfig(check) => check.run(source),
            Command::Log(log) => log.run(source),
        };
        match done {
            Err(error) if terminal::is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            done => done,
        }
    }
}

/// Runs `work` on a runtime of its own.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
