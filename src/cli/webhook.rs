//! `campanile webhook`: posts a file to a running gateway as GitHub would, signature included.
//! The body is sent byte for byte, even if it is malformed, so that one can see what happens then.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use uuid::Uuid;

use super::remote::{Answer, Remote};
use super::terminal::{print_line, printable, read_input};
use super::url::UrlArg;
use super::{ConfigArgs, block_on};
use crate::config::Secret;
use crate::domain::delivery::DeliveryId;
use crate::sources::github::signature::sign;

const ABOUT: &str = "\
Signs a file as GitHub signs its webhooks and posts it to /webhooks/github of a running gateway. Use it to \
try out what a delivery does, or to send again one that was lost.

It is signed with the first secret of GITHUB_WEBHOOK_SECRET or github.webhook_secrets, or else with the \
one that `campanile serve` generated in the data folder.";

const AFTER_HELP: &str = "\
Examples:
  echo '{\"zen\":\"Keep it simple\"}' | campanile webhook ping -
  campanile webhook workflow_run completed.json
  campanile webhook push push.json --delivery 72d3162e-cc78-11e3-81ab-4c9367dc0958

Output: the status and the body of the response. 202 means accepted, 200 with `duplicate` that the gateway has \
received this delivery before, 401 that it does not accept the signature.

Exit codes: 0 the status is 2xx, 1 it is not or the gateway was not reached, 2 wrong usage.";

/// Sign a file as GitHub would and post it
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Webhook {
    /// The event, such as workflow_run
    #[arg(value_name = "EVENT", value_parser = event)]
    event: String,
    /// File with the payload, or `-` to read it from standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// The id of the delivery [default: a new one]
    #[arg(long, value_name = "ID", value_parser = delivery)]
    delivery: Option<DeliveryId>,
    #[command(flatten)]
    url: UrlArg,
}

impl Webhook {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let config = source.load()?;
        let body = read_input(&self.file)?;
        let secrets = config.read_secrets()?;
        let secret = secrets.github()?.first().context("there is no secret to sign with")?;
        let remote = Remote::new(self.url.resolve(&config)?);
        let delivery = self.delivery.map_or_else(|| Uuid::new_v4().to_string(), |id| id.to_string());
        let answer = block_on(post(&remote, &self.event, &delivery, secret, body))?;
        print_line(answer.status)?;
        let text = String::from_utf8_lossy(&answer.body);
        for line in text.lines() {
            print_line(printable(line))?;
        }
        Ok(if answer.status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Sends what GitHub would send, except for the name in `User-Agent`.
pub(super) async fn post(
    remote: &Remote,
    event: &str,
    delivery: &str,
    secret: &Secret,
    body: Vec<u8>,
) -> anyhow::Result<Answer> {
    let request = remote
        .post("/webhooks/github")
        .header("Content-Type", "application/json")
        .header("User-Agent", concat!("campanile-webhook/", env!("CARGO_PKG_VERSION")))
        .header("X-GitHub-Event", event)
        .header("X-GitHub-Delivery", delivery)
        .header("X-Hub-Signature-256", &sign(secret.expose().as_bytes(), &body));
    Ok(remote.send(request.body(body)).await?)
}

fn event(text: &str) -> Result<String, &'static str> {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && (1..=100).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("write the name of an event as GitHub does, such as workflow_run")
    }
}

fn delivery(text: &str) -> Result<DeliveryId, &'static str> {
    DeliveryId::parse(text).ok_or("an id has 1 to 100 letters, digits and hyphens")
}
