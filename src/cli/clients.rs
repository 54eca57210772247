//! `connections`, `disconnect`, `block`, `unblock` and `revoke`: commands that manage clients through
//! the server API of a running gateway.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use awc::http::{StatusCode, header};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ConfigArgs;
use super::remote::{self, Remote, block_on};
use super::terminal::{print_line, printable};
use super::url::UrlArg;
use crate::domain::units::Span;

const AFTER_HELP: &str = "\
The key of the server API comes from CAMPANILE_API_KEY, or http_api.key of the configuration, or else from \
the data folder, where `campanile serve` keeps the one that it generated.

Exit codes: 0 done, 1 refused or not reached, 2 wrong usage.";

/// List who is connected
///
/// Shows the newest connections of the gateway, over WebSocket and as event streams, with their ids, users
/// and transports. Clients that poll hold no connection.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile connections\n  campanile connections --user ana --limit 1000\n\n{AFTER_HELP}"))]
pub(super) struct Connections {
    /// Only of this user; '' for anonymous
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// At most so many, up to 5000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=5000))]
    limit: u16,
    #[command(flatten)]
    url: UrlArg,
}

/// End a user's connections
///
/// The user's clients are told not to come back (code 3503), but nothing keeps them out: `campanile block`
/// does. An event stream ends with `stream:expired`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile disconnect ana\n  campanile disconnect ana --client 0192f3c1-…\n\n{AFTER_HELP}"))]
pub(super) struct Disconnect {
    /// The user; '' for anonymous
    #[arg(value_name = "USER")]
    user: String,
    /// Only this connection, as `campanile connections` shows it
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    #[command(flatten)]
    url: UrlArg,
}

/// Keep a user out
///
/// Whatever token the user shows is refused from now on, over every transport (3507, over HTTP 403), and its
/// connections end at once. Holds across restarts.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile block ana\n  campanile block ana --for 1h\n\n{AFTER_HELP}"))]
pub(super) struct Block {
    /// The user
    #[arg(value_name = "USER")]
    user: String,
    /// For so long; without it until `campanile unblock`
    #[arg(long = "for", value_name = "TIME")]
    time: Option<Span>,
    #[command(flatten)]
    url: UrlArg,
}

/// Let a blocked user in again
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile unblock ana\n  campanile unblock ana --url https://gateway.example\n\n{AFTER_HELP}"))]
pub(super) struct Unblock {
    /// The user
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    url: UrlArg,
}

/// Make one token worthless
///
/// The token whose `jti` claim is JTI is refused from now on (3500, over HTTP 401), and its connections end
/// at once. Let it hold for as long as the token would have lived. Tokens without a `jti` cannot be revoked:
/// block the user, or change the key.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile revoke 9b2f7c41 --for 30d\n  campanile revoke 9b2f7c41\n\n{AFTER_HELP}"))]
pub(super) struct Revoke {
    /// The token's `jti`
    #[arg(value_name = "JTI")]
    jti: String,
    /// For so long; without it for ever
    #[arg(long = "for", value_name = "TIME")]
    time: Option<Span>,
    #[command(flatten)]
    url: UrlArg,
}

impl Connections {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        #[derive(Deserialize)]
        struct Found {
            user: String,
            transport: String,
            connected_at: String,
            #[serde(default)]
            token_uid: String,
        }
        let asked = json!({ "user": self.user, "limit": self.limit });
        let result = call(source, &self.url, "connections", &asked)?;
        let found: std::collections::BTreeMap<String, Found> =
            serde_json::from_value(result["connections"].clone())
                .context("this is not a response of a gateway")?;
        if found.is_empty() {
            eprintln!("nobody is connected");
        }
        // Ids begin with the time, so their order is that of coming.
        for (id, Found { user, transport, connected_at, token_uid }) in found.iter().rev() {
            let line = [id, connected_at, transport, user, token_uid].map(|text| printable(text)).join("\t");
            print_line(line.trim_end())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Disconnect {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let asked = json!({ "user": self.user, "client": self.client.unwrap_or_default() });
        call(source, &self.url, "disconnect", &asked)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Block {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let asked = json!({ "user": self.user, "expire_at": expiry(self.time)? });
        call(source, &self.url, "block_user", &asked)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Unblock {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        call(source, &self.url, "unblock_user", &json!({ "user": self.user }))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let asked = json!({ "uid": self.jti, "expire_at": expiry(self.time)? });
        call(source, &self.url, "revoke_token", &asked)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// In seconds since 1970; 0 is never.
fn expiry(time: Option<Span>) -> anyhow::Result<i64> {
    let Some(time) = time else { return Ok(0) };
    ensure!(time.0.as_secs() > 0, "--for needs at least a second");
    Ok(chrono::Utc::now().timestamp().saturating_add_unsigned(time.0.as_secs()))
}

/// Calls a method of the server API and answers its result.
fn call(source: &ConfigArgs, url: &UrlArg, method: &str, asked: &Value) -> anyhow::Result<Value> {
    let config = source.load()?;
    let secrets = config.read_secrets()?;
    let (key, url) = (secrets.api_key()?, url.resolve(&config)?);
    block_on(async {
        let remote = Remote::new(url);
        let json = (header::CONTENT_TYPE, "application/json");
        let request = remote.post(&format!("/api/{method}")).insert_header(("X-API-Key", key.expose()));
        let answer = remote.send(request.insert_header(json), asked.to_string().into()).await?;
        if let (StatusCode::OK, Some(message)) = (answer.status, remote::refusal(&answer.body)) {
            bail!("the gateway refused it: {message}");
        }
        ensure!(answer.status.is_success(), "{}", remote::describe(answer.status, &answer.body));
        let answer: Value =
            serde_json::from_slice(&answer.body).context("this is not a response of a gateway")?;
        Ok(answer["result"].clone())
    })
}
