//! `campanile github`: prints what to enter on GitHub so that it sends its events here.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::ConfigArgs;
use super::terminal::print_line;
use crate::config::Origin;

const ABOUT: &str = "\
Prints what to enter on GitHub, under Settings → Webhooks → Add webhook of a repository or an organisation: \
the payload URL, the content type, the secret, and the events to tick.

The secret is GITHUB_WEBHOOK_SECRET, github.webhook_secrets of the configuration, or the one that `campanile \
serve` has generated into the data folder. It is printed in plain text.";

const AFTER_HELP: &str = "\
Examples:
  campanile github setup
  campanile github setup --public-url https://events.example.org

Output: one line for each field of the form.

Exit codes: 0 done, 1 there is no secret or no URL, 2 wrong usage.";

/// What each event is used for.
const EVENTS: [(&str, &str); 8] = [
    ("Workflow runs", "workflow:started, progress, completed, failed"),
    ("Workflow jobs", "workflow:job, with the steps"),
    ("Repositories", "repo:added, removed, updated, renamed"),
    ("Organizations", "org:renamed, and repo:renamed for each repository"),
    ("Pushes", "for scans of the default branch"),
    ("Pull requests", "for scans of what is proposed"),
    ("Check runs", "kept in the audit log"),
    ("Installations", "only as a GitHub App: which repositories there are"),
];

/// Connect GitHub
#[derive(Debug, Args)]
pub(super) struct Github {
    #[command(subcommand)]
    command: GithubCommand,
}

#[derive(Debug, Subcommand)]
enum GithubCommand {
    Setup(Setup),
}

/// Print what to enter on GitHub
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
struct Setup {
    /// Where GitHub reaches the gateway [default: server.public_url]
    #[arg(long, value_name = "URL")]
    public_url: Option<Origin>,
}

impl Github {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let GithubCommand::Setup(Setup { public_url }) = self.command;
        let config = source.load()?;
        let base = public_url.or_else(|| config.server.public_url.clone()).context(
            "where does GitHub reach the gateway? Set server.public_url, or pass --public-url https://HOST",
        )?;
        let secrets = config.read_secrets()?;
        let secret = secrets.github()?.first().context("there is no secret: set GITHUB_WEBHOOK_SECRET")?;
        print_line(format_args!("Payload URL    {base}/webhooks/github"))?;
        print_line("Content type   application/json")?;
        print_line(format_args!("Secret         {}", secret.expose()))?;
        print_line("SSL            enable verification")?;
        print_line("Events         let me select individual events:")?;
        for (event, use_of) in EVENTS {
            print_line(format_args!("  {event:<14} {use_of}"))?;
        }
        if base.to_string().starts_with("http://") {
            eprintln!("GitHub should reach the gateway over https: put a proxy that ends TLS in front");
        }
        Ok(ExitCode::SUCCESS)
    }
}
