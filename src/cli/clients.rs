//! `connections`, `disconnect`, `block`, `unblock` and `revoke`: commands that manage clients through
//! the server API of a running gateway.

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::remote::{self, Remote};
use super::terminal::{print_line, printable};
use super::url::UrlArg;
use super::{ConfigArgs, block_on};
use crate::domain::units::Span;
use crate::net::http_client::StatusCode;

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
    /// Show only connections of this user; '' stands for anonymous users
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Show at most this many connections, up to 5000
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=5000))]
    limit: u16,
    #[command(flatten)]
    url: UrlArg,
}

/// End a user's connections
///
/// The user's clients are told not to reconnect (code 3503), but nothing prevents it: `campanile block` does.
/// An event stream ends with `stream:expired`.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile disconnect ana\n  campanile disconnect ana --client 0192f3c1-…\n\n{AFTER_HELP}"))]
pub(super) struct Disconnect {
    /// The user; '' stands for anonymous users
    #[arg(value_name = "USER")]
    user: String,
    /// End only the connection with this id, which `campanile connections` shows
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    #[command(flatten)]
    url: UrlArg,
}

/// Block a user
///
/// Every token of the user is refused from now on, over every transport (with code 3507, over HTTP with status
/// 403), and the user's connections end at once. The block survives restarts.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile block ana\n  campanile block ana --for 1h\n\n{AFTER_HELP}"))]
pub(super) struct Block {
    /// The user
    #[arg(value_name = "USER")]
    user: String,
    /// How long the user is blocked [default: until `campanile unblock`]
    #[arg(long = "for", value_name = "TIME")]
    time: Option<Span>,
    #[command(flatten)]
    url: UrlArg,
}

/// Unblock a user
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile unblock ana\n  campanile unblock ana --url https://gateway.example\n\n{AFTER_HELP}"))]
pub(super) struct Unblock {
    /// The user
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    url: UrlArg,
}

/// Revoke a token
///
/// The token whose `jti` claim is JTI is refused from now on (with code 3500, over HTTP with status 401), and its
/// connections end at once. --for need not be longer than the token would have been valid. Tokens without a
/// `jti` cannot be revoked: block the user, or change the key.
#[derive(Debug, Args)]
#[command(after_long_help = format!("Examples:\n  campanile revoke 9b2f7c41 --for 30d\n  campanile revoke 9b2f7c41\n\n{AFTER_HELP}"))]
pub(super) struct Revoke {
    /// The `jti` claim of the token
    #[arg(value_name = "JTI")]
    jti: String,
    /// How long the token is refused [default: forever]
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
            eprintln!("no client is connected");
        }
        // Ids begin with the time of the connection, so the newest come first.
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

/// When this time has passed, in seconds since 1970; 0 stands for never.
fn expiry(time: Option<Span>) -> anyhow::Result<i64> {
    let Some(time) = time else { return Ok(0) };
    ensure!(time.0.as_secs() > 0, "--for needs at least a second");
    Ok(chrono::Utc::now().timestamp().saturating_add_unsigned(time.0.as_secs()))
}

/// Calls a method of the server API and returns its result.
fn call(source: &ConfigArgs, url: &UrlArg, method: &str, asked: &Value) -> anyhow::Result<Value> {
    let config = source.load()?;
    let secrets = config.read_secrets()?;
    let (key, url) = (secrets.api_key()?, url.resolve(&config)?);
    block_on(async {
        let remote = Remote::new(url);
        let request = remote.post(&format!("/api/{method}")).header("X-API-Key", key.expose());
        let request = request.header("Content-Type", "application/json").body(asked.to_string());
        let answer = remote.send(request).await?;
        if let (StatusCode::OK, Some(message)) = (answer.status, remote::refusal(&answer.body)) {
            bail!("the gateway refused the request: {message}");
        }
        ensure!(answer.status.is_success(), "{}", remote::describe(answer.status, &answer.body));
        let answer: Value =
            serde_json::from_slice(&answer.body).context("this is not a response of a gateway")?;
        Ok(answer["result"].clone())
    })
}
