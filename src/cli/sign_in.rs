//! `campanile sign-in`: asks a running gateway for a link that signs one browser in. The gateway
//! holds its data alone, so the link is made there; the API key shows that the operator asks.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use awc::http::StatusCode;
use bytes::Bytes;
use clap::Args;
use serde::Deserialize;

use super::ConfigArgs;
use super::remote::{self, Remote, block_on};
use super::terminal::{print_line, printable};
use super::url::UrlArg;

const ABOUT: &str = "\
Prints a link that signs one browser in to a running gateway, as its operator: who opens it sees \
everything and may do everything, until the session ends (server.session_ttl) or is signed out.

The link is valid for ten minutes and works once. Opening it does not use it up; the button on the page \
does. It begins with server.public_url, or else with the address that the gateway listens on, and the \
browser must use it under that name.

The key of the server API comes from CAMPANILE_API_KEY, or http_api.key of the configuration, or else from \
the data folder, where `campanile serve` keeps the one that it generated.";

const AFTER_HELP: &str = "\
Examples:
  campanile sign-in
  campanile sign-in --url https://live.example.com
  ssh live.example.com campanile sign-in --config /etc/campanile.toml

Output: the link alone, on standard output. Whoever has it can sign in until it is used; a newer link does \
not end it.

Exit codes: 0 done, 1 refused or not reached, 2 wrong usage.";

/// Make a link that signs a browser in
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

/// Asks for a link and answers it.
pub(super) async fn ask(remote: &Remote, api_key: &str) -> anyhow::Result<String> {
    let request = remote.post("/api/auth/links").insert_header(("X-API-Key", api_key));
    let answer = remote.send(request, Bytes::new()).await?;
    if answer.status == StatusCode::UNAUTHORIZED {
        bail!(
            "{}. The key comes from CAMPANILE_API_KEY, http_api.key or the data folder: does it belong to this gateway?",
            remote::describe(answer.status, &answer.body)
        );
    }
    ensure!(answer.status.is_success(), "{}", remote::describe(answer.status, &answer.body));
    let reply = serde_json::from_slice(&answer.body).context("this is not a complete response of a gateway");
    let Reply { link } = reply?;
    Ok(printable(&link))
}
