//! `campanile ready`: whether a running gateway takes work. For health checks where there is
//! nothing but this program.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use awc::http::StatusCode;
use bytes::Bytes;
use clap::Args;
use serde_json::Value;

use super::ConfigArgs;
use super::remote::{Remote, block_on, describe};
use super::terminal::{print_line, printable};
use super::url::UrlArg;

const AFTER_HELP: &str = "\
Examples:
  campanile ready
  campanile ready --url https://live.example.com

Output: ready, or what is missing, on standard output; why it is not, on standard error.

Exit codes: 0 it is ready, 1 it is not or cannot be reached, 2 wrong usage.";

/// Ask whether a gateway is ready
///
/// Asks /readyz of the gateway that the configuration describes, which answers while it can keep its promise: it
/// has started, does not stop, and reaches its store.
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

/// What a ready gateway says.
pub(super) async fn ask(remote: &Remote) -> anyhow::Result<String> {
    let answer = remote.send(remote.get("/readyz"), Bytes::new()).await?;
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
