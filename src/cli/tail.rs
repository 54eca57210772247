//! `campanile tail`: shows the events of a channel of a running gateway as they come.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{Local, Utc};
use clap::Args;

use super::backoff::Backoff;
use super::channel_reader::{ChannelReader, Credential, Output};
use super::format::DisplayEvent;
use super::remote::Remote;
use super::url::UrlArg;
use super::{ConfigArgs, block_on, format};
use crate::auth::NewToken;
use crate::config::{Config, Secret};
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::cursor::Cursor;
use crate::domain::position::Position;

const TOKEN_TTL: Duration = Duration::from_secs(3600);
const FIRST_PAUSE: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
Shows the events of a channel as they come, until Ctrl-C. If the connection breaks, it reconnects and \
continues where it stopped: nothing is missed and nothing is shown twice, unless standard error says so.

The token comes from --token or CAMPANILE_TOKEN. Without one, a token is created with the JWT secret of \
the configuration or of the data folder, which works on the machine of the gateway.";

const AFTER_HELP: &str = "\
Examples:
  campanile tail org:acme
  campanile tail repo:acme/api --since 4f1c2a9b00d1.17 --json | jq .type
  CAMPANILE_TOKEN=$(ssh live campanile token --sub ana --org acme) \\
      campanile tail org:acme --url https://live.example.com --count 10

Output: one line for each event. On a terminal: time, type, channel and the beginning of the data; with \
--json, or when the output is not a terminal, the data alone as JSON. Messages about the connection and the \
last cursor go to standard error; --since with that cursor continues from there.

Exit codes: 0 ended by Ctrl-C, by --count or because the reader of the output closed it, 1 refused, or not \
reached at first, 2 wrong usage.";

/// Show the events of a channel as they come
#[derive(Debug, Args)]
#[command(long_about = ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct Tail {
    /// The channel
    #[arg(value_name = "CHANNEL", value_parser = ChannelName::parse)]
    channel: ChannelName,
    /// Begin with the events after this cursor [default: show only new events]
    #[arg(long, value_name = "CURSOR", value_parser = cursor)]
    since: Option<Position>,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print only the data of the events, as JSON
    #[arg(long)]
    json: bool,
    /// Connection token; in the environment other users of the machine do not see it
    #[arg(long, env = "CAMPANILE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    #[command(flatten)]
    url: UrlArg,
}

impl Tail {
    pub(super) fn run(self, source: &ConfigArgs) -> anyhow::Result<ExitCode> {
        let config = source.load()?;
        let credential = self.credential(&config)?;
        let url = self.url.resolve(&config)?;
        let for_people = !self.json && io::stdout().is_terminal();
        if for_people {
            eprintln!("campanile tail: {} at {url}, Ctrl-C ends it", self.channel);
        }
        let remote = Remote::new(url);
        let channel = &self.channel;
        let human = |event: &DisplayEvent| format::human(event, channel, Utc::now(), &Local);
        let output = Output {
            events: &mut io::stdout(),
            line: if for_people { &human } else { &format::json },
            diagnostics: &mut io::stderr(),
        };
        let (cursor, left, backoff) = (self.since.clone(), self.count, Backoff::starting_with(FIRST_PAUSE));
        let mut reader =
            ChannelReader { remote: &remote, channel, credential, cursor, left, output, backoff };
        let done = block_on(async {
            tokio::select! {
                done = reader.run() => done,
                pressed = tokio::signal::ctrl_c() => pressed.context("cannot wait for Ctrl-C"),
            }
        });
        if let Some(cursor) = reader.cursor.filter(|cursor| self.since.as_ref() != Some(cursor)) {
            eprintln!("campanile tail: to continue from here: --since {cursor}");
        }
        done.map(|()| ExitCode::SUCCESS)
    }

    fn credential(&self, config: &Config) -> anyhow::Result<Credential> {
        if let Some(token) = self.token.as_deref().map(str::trim).filter(|token| !token.is_empty()) {
            let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
            anyhow::ensure!(plain, "the token is malformed: pass what `campanile token` printed");
            return Ok(Credential::Given(Secret::new(token)));
        }
        let secrets = config.read_secrets()?;
        let secret = secrets.jwt().context(
            "there is no token, and none can be created here: pass --token or set CAMPANILE_TOKEN",
        )?;
        Ok(Credential::Own { secret: secret.clone(), claims: Box::new(own_claims(&self.channel, config)) })
    }
}

/// Claims that give access to `channel`: the scope `admin` to built-in channels, a capability to channels of
/// namespaces with their history, and `sub` to a personal channel.
fn own_claims(channel: &ChannelName, config: &Config) -> NewToken {
    let named = matches!(channel.kind(), ChannelKind::Plain { .. });
    let user = match channel.kind() {
        ChannelKind::Personal { user, .. } => user,
        _ => "campanile-tail",
    };
    NewToken {
        user: user.to_owned(),
        scopes: vec!["admin".to_owned()],
        reads: named.then(|| channel.clone()).into_iter().collect(),
        ttl: Some(TOKEN_TTL),
        audience: config.client.token.audience.clone(),
        issuer: config.client.token.issuer.clone(),
        ..NewToken::default()
    }
}

fn cursor(text: &str) -> Result<Position, String> {
    match Cursor::parse(text).map_err(|error| error.to_string())? {
        Cursor::One(position) => Ok(position),
        Cursor::Many(_) => {
            Err("this is a cursor of several channels: pass a cursor of this channel alone".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Keys, mint};
    use crate::domain::access::{AccessContext, Action, Resource, may};
    use crate::domain::options::ChannelOptions;

    #[test]
    fn the_own_token_opens_every_channel() {
        let config = Config::default();
        let options = ChannelOptions { allow_user_limited_channels: true, ..ChannelOptions::default() };
        let resource = Resource::Job { repo: None };
        let context = AccessContext { options: Some(&options), resource, ..AccessContext::default() };
        let job = "job:0192f5a8-7c1f-7000-8000-000000000001";
        for name in [
            "repo:a/b",
            "org:a",
            job,
            "db:orders",
            "chat:lobby",
            "news",
            "$secret",
            "#42",
            "chat:#42",
            "dm:#1,2",
        ] {
            let channel = ChannelName::parse(name).unwrap();
            let now = Utc::now();
            let token = mint("secret", &own_claims(&channel, &config), now).unwrap();
            let who = Keys::hmac(["secret"], None, None).authenticate(&token, now).unwrap();
            assert_eq!(may(&who, Action::Subscribe, &channel, &context), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_cursor_is_looked_at_before_anything_is_sent() {
        assert_eq!(cursor("4f1c2a9b00d1.17"), Ok(Position::parse("4f1c2a9b00d1.17").unwrap()));
        assert!(cursor("17").unwrap_err().contains("malformed"));
        let of_two = "eyJvcmc6YWNtZSI6WyJrIiwxXX0";
        assert!(cursor(of_two).unwrap_err().contains("several channels"));
    }
}
