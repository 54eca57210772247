//! Which servers a scenario measures, and how: the options of every scenario that compares.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use super::database::Database;
use crate::cores::{CoreChoice, Cores};
use crate::report::table::Side;
use crate::report::{self, machine};

/// Which servers to measure, in the options of every scenario that compares.
#[derive(Debug, Args)]
#[command(next_help_heading = "Servers")]
#[group(skip)]
pub struct Options {
    /// What to measure; `both` takes turns and prints the ratio.
    #[arg(long, value_enum, default_value_t = Against::Both)]
    pub(super) against: Against,
    /// Rounds, each with servers started anew; the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=25))]
    pub(super) repeats: u8,
    /// The processor cores: `SERVER,CLIENT`, `off`, or `auto` for the first two there are.
    #[arg(long, default_value = "auto")]
    pub(super) cores: CoreChoice,
    /// Start the gateway for this run, which is what happens without --url.
    #[arg(long, conflicts_with = "url")]
    pub(super) spawn: bool,
    /// The gateway's binary [default: the campanile next to this tool].
    #[arg(long, conflicts_with = "url", value_name = "FILE")]
    pub(super) binary: Option<PathBuf>,
    /// Make the gateway's folder in here, to measure a certain disk [default: the temporary folder,
    /// which may be in memory].
    #[arg(long, conflicts_with = "url", value_name = "DIR")]
    pub(super) data_in: Option<PathBuf>,
    /// What the gateway keeps its log in.
    #[arg(long, value_enum, default_value = "sqlite", conflicts_with_all = ["url", "database_url"])]
    pub(super) database: Database,
    /// The gateway's DATABASE_URL; what it holds stays.
    #[arg(long, conflicts_with = "url", value_name = "URL")]
    pub(super) database_url: Option<String>,
    /// The gateway's REDIS_URL [default: none].
    #[arg(long, conflicts_with = "url", value_name = "URL")]
    pub(super) redis_url: Option<String>,
    /// An option of the gateway, as its environment has it, such as CAMPANILE_SERVER__IO_URING=false; as
    /// often as needed. Its secrets and addresses are the tool's.
    #[arg(long = "set", conflicts_with = "url", value_name = "NAME=VALUE", value_parser = setting)]
    pub(super) settings: Vec<(String, String)>,
    /// A namespace without history, so without positions; presence stays on.
    #[arg(long, conflicts_with = "url")]
    pub(super) no_history: bool,
    /// A gateway that runs already; only addresses of this machine are accepted.
    #[arg(long)]
    pub(super) url: Option<String>,
    /// Its process id, to know what it costs.
    #[arg(long, requires = "url")]
    pub(super) pid: Option<u32>,
    /// With --url: its API key, to publish.
    #[arg(long, env = "CAMPANILE_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// With --url: its webhook secret (of several, separated by commas, the first).
    #[arg(long, env = "GITHUB_WEBHOOK_SECRET", hide_env_values = true)]
    pub(super) secret: Option<String>,
    /// With --url: its JWT secret, to make every connection a user of its own.
    #[arg(long, env = "CAMPANILE_JWT_SECRET", hide_env_values = true)]
    pub(super) jwt_secret: Option<String>,
    /// Instead of --jwt-secret: one token for all connections.
    #[arg(long, requires = "url", hide_env_values = true)]
    pub(super) token: Option<String>,
    /// A channel there that any signed-in client may subscribe to.
    #[arg(long, requires = "url", default_value = "bench:load")]
    pub(super) channel: String,
    #[command(flatten)]
    pub(super) report: report::Options,
}

/// The sides of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// Campanile alone.
    Gateway,
    /// The bare server alone.
    Floor,
    /// One after the other, round by round.
    Both,
}

fn setting(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').context("write NAME=VALUE")?;
    ensure!(name.starts_with("CAMPANILE_"), "the names of options begin with CAMPANILE_");
    Ok((name.to_owned(), value.to_owned()))
}

impl Options {
    /// The first of the secrets of a gateway that runs already.
    pub(super) fn webhook_secret(&self) -> Option<String> {
        let first = self.secret.as_deref()?.split(',').next()?.trim();
        (!first.is_empty()).then(|| first.to_owned())
    }

    pub(super) fn conditions(&self, cores: Option<Cores>, sides: &[Side]) -> Vec<String> {
        let rounds = match self.repeats {
            1 => "one round".to_owned(),
            many => format!("medians of {many} rounds (lowest to highest)"),
        };
        let cores = match (cores, &self.url) {
            (Some(Cores { server, client }), None) => {
                format!("server on core {server}, client on core {client}")
            }
            (Some(Cores { client, .. }), Some(_)) => format!("client on core {client}"),
            (None, _) => "cores left to the kernel".to_owned(),
        };
        let mut conditions = vec![format!("{rounds}; {cores}")];
        if sides.contains(&Side::Gateway) {
            conditions.push(match &self.url {
                Some(url) => format!("gateway: {url}, {}", self.channel),
                None => format!("gateway: {}, {}", self.features(), self.storage()),
            });
        }
        conditions
    }

    fn features(&self) -> &'static str {
        match self.no_history {
            true => "tokens, presence and pings on, no history",
            false => "tokens, history, positions, presence and pings on",
        }
    }

    /// Where it keeps things, which decides what a commit costs.
    fn storage(&self) -> String {
        let folder = self.data_in.clone().unwrap_or_else(std::env::temp_dir);
        let what = match (&self.database_url, self.database) {
            (Some(_), _) => return "PostgreSQL".to_owned(),
            (None, Database::Sqlite) => "SQLite",
            (None, Database::Postgres) => "a PostgreSQL of its own",
        };
        machine::file_system(&folder).map_or(what.to_owned(), |kind| format!("{what} on {kind}"))
    }
}
