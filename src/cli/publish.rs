//! `campanile publish`: sends one event through the server API of a running gateway. The JSON is sent
//! as it was written. What the gateway would refuse because of its form is refused here before it is sent.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::remote::{self, Remote, RequestError, WRONG_KEY};
use super::terminal::{print_line, printable, read_input};
use super::url::UrlArg;
use super::{ConfigArgs, block_on};
use crate::domain::channel::ChannelName;
use crate::net::http_client::StatusCode;

const ABOUT: &str = "\
Publishes one event through a running gateway and prints its position in the channel's log.

JSON is any JSON value, or `-` to read it from standard input. On built-in channels (repo: org: job: \
build: db:) it must be an object with a text `type`, and may have `data` and `repo`; the gateway adds the \
id and the time. Other channels belong to namespaces of the configuration and take any JSON.

The key of the server API comes from CAMPANILE_API_KEY, or http_api.key of the configuration, or else from \
the data folder, where `campanile serve` keeps the one that it generated.";

const AFTER_HELP: &str = "\
Examples:
  campanile publish chat:lobby '{\"text\":\"hello\"}'
  campanile publish repo:acme/api '{\"type\":\"build:done\",\"data\":{\"ok\":true}}' --key build-17
  make report.json && campanile publish org:acme - < report.json

Output: the cursor of the event, `<epoch>.<offset>`, or `accepted, not kept` on a channel without history. \
`campanile tail CHANNEL --since CURSOR` shows the events after it.

With --key the same event can safely be sent again: it is published once.

Exit codes: 0 accepted, 1 refused or not reached, 2 wrong usage.";

/// Publish an event
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Publish {
    /// The channel
    #[arg(value_name = "CHANNEL", value_parser = ChannelName::parse)]
    channel: ChannelName,
    /// The data, or `-` to read it from standard input
    #[arg(value_name = "JSON", allow_hyphen_values = true)]
    json: String,
    /// Idempotency key: however often an event is sent with the same key, it is published once
    #[arg(long, value_name = "IDEMPOTENCY")]
    key: Option<String>,
    /// A tag of the event; may be repeated
    #[arg(long = "tag", value_name = "K=V", value_parser = tag)]
    tags: Vec<(String, String)>,
    #[command(flatten)]
    url: UrlArg,
}

#[derive(Serialize)]
struct Request<'a> {
    channel: &'a ChannelName,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<&'a str, &'a str>,
}

#[derive(Deserialize)]
struct Reply {
    result: Published,
}

/// Both or neither.
#[derive(Deserialize)]
struct Published {
    offset: Option<u64>,
    epoch: Option<String>,
}

impl Publish {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let config = source.load()?;
        let body = self.body()?;
        let secrets = config.read_secrets()?;
        let key = secrets.api_key()?;
        let url = self.url.resolve(&config)?;
        print_line(block_on(send(&Remote::new(url), key.expose(), body, self.key.is_some()))?)?;
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> anyhow::Result<Bytes> {
        let read = if self.json == "-" { Some(read_input("-")?) } else { None };
        let json = read.as_deref().unwrap_or(self.json.as_bytes());
        let data: &RawValue = serde_json::from_slice(json).context("the data is not JSON")?;
        if self.channel.is_built_in() {
            check_built_in(data)?;
        }
        let request = Request {
            channel: &self.channel,
            data,
            idempotency_key: self.key.as_deref(),
            tags: self.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        };
        Ok(serde_json::to_vec(&request)?.into())
    }
}

/// Sends the request and returns what to print.
pub(super) async fn send(
    remote: &Remote,
    api_key: &str,
    body: Bytes,
    repeatable: bool,
) -> anyhow::Result<String> {
    let request = remote.post("/api/publish").header("X-API-Key", api_key);
    let request = request.header("Content-Type", "application/json").body(body);
    let in_doubt = if repeatable {
        "it is not known whether the event was published: send it again"
    } else {
        "it is not known whether the event was published; with --key it could be sent again"
    };
    let answer = match remote.send(request).await {
        Ok(answer) => answer,
        Err(RequestError::NoResponse(error)) => return Err(error.context(in_doubt)),
        Err(unreachable) => return Err(unreachable.into()),
    };
    if let (StatusCode::OK, Some(message)) = (answer.status, remote::refusal(&answer.body)) {
        bail!("the gateway refused the event: {message}");
    }
    if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        bail!("{}. {WRONG_KEY}", remote::describe(answer.status, &answer.body));
    }
    ensure!(answer.status.is_success(), "{}", remote::describe(answer.status, &answer.body));
    let reply = serde_json::from_slice(&answer.body).context("this is not a complete response of a gateway");
    let Reply { result } = reply.context(in_doubt)?;
    Ok(match result {
        Published { offset: Some(offset), epoch: Some(epoch) } => format!("{}.{offset}", printable(&epoch)),
        _ => "accepted, not kept".to_owned(),
    })
}

/// The form that the gateway wraps into the envelope of built-in channels.
fn check_built_in(data: &RawValue) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct BuiltIn<'a> {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default, borrow, rename = "data")]
        _data: Option<&'a RawValue>,
        #[serde(default, rename = "repo")]
        _repo: Option<String>,
    }
    const FORM: &str = r#"on a built-in channel write {"type":"…","data":…,"repo":"OWNER/NAME"}, where `data` and `repo` may be left out"#;
    ensure!(data.get().starts_with('{'), "the data is not an object: {FORM}");
    let data: BuiltIn<'_> = serde_json::from_str(data.get()).with_context(|| FORM.to_owned())?;
    ensure!(!data.kind.is_empty(), "the type is empty: {FORM}");
    Ok(())
}

fn tag(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::{Cli, Command};

    fn body(args: &[&str]) -> anyhow::Result<String> {
        let cli = Cli::try_parse_from(["campanile", "publish"].iter().chain(args))?;
        let Command::Publish(publish) = cli.command else { panic!("not publish") };
        Ok(String::from_utf8(publish.body()?.to_vec())?)
    }

    #[test]
    fn the_data_is_sent_as_it_was_written() {
        let written = r#"{"n": 1.000000000000000000001, "b":2, "b":3}"#;
        assert_eq!(
            body(&["chat:lobby", written]).unwrap(),
            format!(r#"{{"channel":"chat:lobby","data":{written}}}"#)
        );
        assert_eq!(
            body(&["chat:lobby", "-1", "--key", "k", "--tag", "a=b=c", "--tag", "d="]).unwrap(),
            r#"{"channel":"chat:lobby","data":-1,"idempotency_key":"k","tags":{"a":"b=c","d":""}}"#
        );
    }

    #[test]
    fn built_in_channels_demand_a_type() {
        let ok = [r#"{"type":"build:done"}"#, r#" {"type":"a","data":null,"repo":"acme/api"} "#];
        for json in ok {
            body(&["org:acme", json]).expect(json);
        }
        let bad =
            ["1", "[\"a\"]", "{}", r#"{"type":7}"#, r#"{"type":""}"#, r#"{"type":"a","repo":1}"#, "{", ""];
        for json in bad.into_iter().chain([r#"{"type":"a","dta":1}"#]) {
            assert!(body(&["org:acme", json]).is_err(), "{json}");
        }
        body(&["chat:lobby", "{}"]).expect("other channels take any JSON");
    }

    #[test]
    fn a_malformed_channel_or_tag_is_wrong_usage() {
        for args in [&["repo:acme", "1"][..], &["chat:a", "1", "--tag", "a"], &["chat:a", "1", "--tag", "=a"]]
        {
            let error = body(args).unwrap_err();
            assert_eq!(error.downcast::<clap::Error>().expect("usage").exit_code(), 2, "{args:?}");
        }
    }
}
