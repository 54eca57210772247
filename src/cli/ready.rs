//! `campanile ready`: asks whether a running gateway is ready. For health checks in containers that
//! contain no other program.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::Value;

use super::remote::{Remote, describe};
use super::terminal::{print_line, printable};
use super::url::UrlArg;
use super::{ConfigArgs, block_on};
use crate::net::http_client::StatusCode;

const AFTER_HELP: &str = "\
Examples:
  campanile ready
  campanile ready --url https://live.example.com

Output: `ready` on standard output, with the parts that are missing, if any. Why the gateway is not ready, on \
standard error.

Exit codes: 0 it is ready, 1 it is not ready or cannot be reached, 2 wrong usage.";

/// Ask whether a gateway is ready
///
/// Requests /readyz of the gateway that the configuration describes. A gateway is ready once it has started and
/// while it reaches its store, until it begins to stop.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct Ready {
    #[command(flatten)]
    url: UrlArg,
}

impl Ready {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let remote = Remote::new(self.url.resolve(&source.load()?)?);
        print_line(&block_on(ask(&remote))?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks, and returns what to print if the gateway is ready.
pub(super) async fn ask(remote: &Remote) -> anyhow::Result<String> {
    let answer = remote.send(remote.get("/readyz")).await?;
    ensure!(answer.status == StatusCode::OK, "{}", describe(answer.status, &answer.body));
    let state: Value = serde_json::from_slice(&answer.body).context("this is not a response of a gateway")?;
    let degraded = state["degraded"].as_array().map(Vec::as_slice).unwrap_or_default();
    let missing: Vec<&str> = degraded.iter().filter_map(Value::as_str).collect();
    let text = if missing.is_empty() {
        "ready".to_owned()
    } else {
        format!("ready, without {}", missing.join(", "))
    };
    Ok(printable(&text))
}
