//! `campanile sign-in`: asks a running gateway for a link that signs one browser in. Only the gateway
//! writes its store, so the link is made there; the API key proves that the operator asks.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;

use super::remote::{Remote, WRONG_KEY, describe};
use super::terminal::{print_line, printable};
use super::url::UrlArg;
use super::{ConfigArgs, block_on};
use crate::net::http_client::StatusCode;

const ABOUT: &str = "\
Prints a link that signs one browser in to a running gateway as its operator, who can see and do \
everything. The session lasts for server.session_ttl, or until it is signed out.

The link is valid for ten minutes and works once. Opening the page does not use it up; the button on it \
does. The link begins with server.public_url, or else with the address that the gateway listens on, and \
works under that name alone.

The key of the server API comes from CAMPANILE_API_KEY, or http_api.key of the configuration, or else from \
the data folder, where `campanile serve` keeps the one that it generated.";

const AFTER_HELP: &str = "\
Examples:
  campanile sign-in
  campanile sign-in --url https://live.example.com
  ssh live.example.com campanile sign-in --config /etc/campanile.toml

Output: the link alone, on standard output. Anyone who has it can sign in until it is used or expires; \
making another link does not invalidate it.

Exit codes: 0 done, 1 refused or not reached, 2 wrong usage.";

/// Make a link that signs in a browser
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct SignIn {
    #[command(flatten)]
    url: UrlArg,
}

#[derive(Deserialize)]
struct Reply {
    link: String,
}

impl SignIn {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let config = source.load()?;
        let secrets = config.read_secrets()?;
        let key = secrets.api_key()?;
        let url = self.url.resolve(&config)?;
        print_line(block_on(ask(&Remote::new(url), key.expose()))?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks for a link and returns it.
pub(super) async fn ask(remote: &Remote, api_key: &str) -> anyhow::Result<String> {
    let answer = remote.send(remote.post("/api/auth/links").header("X-API-Key", api_key)).await?;
    if answer.status == StatusCode::UNAUTHORIZED {
        bail!("{}. {WRONG_KEY}", describe(answer.status, &answer.body));
    }
    ensure!(answer.status.is_success(), "{}", describe(answer.status, &answer.body));
    let reply = serde_json::from_slice(&answer.body).context("this is not a complete response of a gateway");
    let Reply { link } = reply?;
    Ok(printable(&link))
}
