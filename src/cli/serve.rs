//! `campanile serve`: runs the gateway. Reads the settings and the secrets; `app` does the rest.

use std::process::ExitCode;

use clap::Args;

use super::ConfigArgs;
use crate::app;

const ABOUT: &str = "\
Runs the gateway: receives webhooks and published events, keeps them in the log, and pushes them to everyone \
who may see them.

Embedded (SQLite), secrets that are not set are generated at the first start and kept in the data \
folder; a second `serve` on the same folder is refused. On Postgres any number of nodes may run, and \
CAMPANILE_JWT_SECRET, CAMPANILE_API_KEY and GITHUB_WEBHOOK_SECRET must be set to the same values on all; \
with the same REDIS_URL events reach the other nodes at once.

On a terminal it prints a link that signs a browser in; `campanile sign-in` makes further ones.";

const AFTER_HELP: &str = "\
Examples:
  campanile serve --demo
  campanile serve --listen 0.0.0.0:8080 --data-dir /var/lib/campanile
  DATABASE_URL=postgres://db/campanile campanile serve --config /etc/campanile.toml
  DATABASE_URL=postgres://db/campanile REDIS_URL=redis://:secret@cache campanile serve

Logs go to standard error (CAMPANILE_LOG=info,campanile::store=debug for more, CAMPANILE_LOG_FORMAT=json \
for machines). The gateway is ready when they say `listening` and /readyz answers 200. SIGTERM and \
Ctrl-C close connections gracefully. SIGHUP reloads keys, namespaces and retention.

Exit codes: 0 stopped as asked, 1 it could not start or had to stop, 2 wrong usage.";

/// Run the gateway
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Serve {
    /// Fill the gateway with made-up events, to look around
    #[arg(long)]
    demo: bool,
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

impl Serve {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let load = || source.loader().flag("--listen", "server.listen", self.listen.as_deref()).load();
        let config = load()?;
        app::serve(&config, &config.resolve_secrets()?, self.demo, load)?;
        Ok(ExitCode::SUCCESS)
    }
}
