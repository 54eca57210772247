//! Follows a channel for as long as it takes: one stream after another, each from the cursor where
//! the last one ended, so that nothing is missed or shown twice. Refusals that will not change by
//! themselves end it; everything else is waited out, with growing and random pauses.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use awc::error::PayloadError;
use awc::http::{StatusCode, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;

use super::remote::{NoAnswer, Remote, describe};
use super::sse::{SseEvent, SseParser};
use super::terminal::printable;
use super::url::in_query;
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::channel::ChannelName;

/// A stream that says nothing for so long is dead: a gateway sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
const LARGEST_REFUSAL: usize = 64 << 10;

/// What opens the stream.
pub(super) enum Credential {
    /// A token that somebody gave.
    Given(Secret),
    /// A token that is made for each stream anew, so that it never ends for good.
    Own {
        /// What it is signed with.
        secret: Secret,
        /// What it says.
        claims: NewToken,
    },
}

/// Where events and remarks go.
pub(super) struct Output<'a> {
    /// Events, a line each.
    pub(super) events: &'a mut dyn Write,
    /// How an event becomes a line.
    pub(super) line: &'a dyn Fn(&SseEvent) -> String,
    /// What happens to the stream.
    pub(super) remarks: &'a mut dyn Write,
}

/// One reader of one channel.
pub(super) struct Follower<'a> {
    /// The gateway.
    pub(super) remote: &'a Remote,
    /// The channel.
    pub(super) channel: &'a ChannelName,
    /// What opens it.
    pub(super) credential: Credential,
    /// Everything up to here was shown, or lies before where the reader began.
    pub(super) cursor: Option<String>,
    /// How many events are still wanted; `None` is all.
    pub(super) left: Option<u64>,
    /// Where it all goes.
    pub(super) output: Output<'a>,
    /// How long to wait before the next stream.
    pub(super) pauses: Pauses,
}

/// How one stream ended.
enum End {
    /// As many events as were wanted.
    Enough,
    /// Come back; this is why it ended.
    Lost(String),
    /// The token's time is over.
    Expired,
}

/// Why there is no stream.
enum Refused {
    /// The gateway cannot be reached.
    Unreachable(anyhow::Error),
    /// Perhaps later, at the earliest after this time.
    Later(anyhow::Error, Option<Duration>),
    /// Not ever with this request.
    Final(anyhow::Error),
}

impl Follower<'_> {
    /// Follows until there is enough, or no use in going on.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut was_there = false;
        loop {
            let (reason, at_least) = match self.open().await {
                Ok(stream) => {
                    if was_there {
                        self.remark("connected again")?;
                    }
                    was_there = true;
                    self.pauses.reset();
                    match self.read(stream).await? {
                        End::Enough => return Ok(()),
                        End::Lost(reason) => (reason, None),
                        End::Expired if matches!(self.credential, Credential::Own { .. }) => {
                            ("the token ended, a new one is made".to_owned(), None)
                        }
                        End::Expired => anyhow::bail!("the token has expired: pass a new one"),
                    }
                }
                Err(Refused::Unreachable(error)) if was_there => (error.to_string(), None),
                Err(Refused::Later(error, at_least)) => (error.to_string(), at_least),
                Err(Refused::Unreachable(error) | Refused::Final(error)) => return Err(error),
            };
            let pause = self.pauses.next(rand::random()).max(at_least.unwrap_or_default());
            let from = if self.cursor.is_some() { "" } else { ", from what comes then" };
            self.remark(&format!("{reason}; trying again in {:.1} s{from}", pause.as_secs_f64()))?;
            tokio::time::sleep(pause).await;
        }
    }

    async fn open(&self) -> Result<impl Stream<Item = Result<Bytes, PayloadError>> + Unpin + use<>, Refused> {
        let token = self.credential.token().map_err(Refused::Final)?;
        let mut path = format!("/api/events/stream?channels={}", in_query(self.channel.as_str()));
        if let Some(cursor) = &self.cursor {
            path.push_str("&cursor=");
            path.push_str(&in_query(cursor));
        }
        let request = self.remote.get(&path).bearer_auth(token);
        let request = request.insert_header((header::ACCEPT, "text/event-stream"));
        let response = request.send().await.map_err(|error| match self.remote.no_answer(&error) {
            NoAnswer::Unreachable(error) => Refused::Unreachable(error),
            NoAnswer::Lost(error) => Refused::Later(error, None),
        })?;
        let status = response.status();
        let of_type = |kind: &str| {
            let found = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            found.is_some_and(|found| found.trim_start().starts_with(kind))
        };
        if status == StatusCode::OK && of_type("text/event-stream") {
            return Ok(response);
        }
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut response = response.timeout(Duration::from_secs(5));
        let body = response.body().limit(LARGEST_REFUSAL).await.unwrap_or_default();
        let said = describe(status, &body);
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Refused::Later(anyhow!(said), retry_after.map(Duration::from_secs))
            }
            _ if status.is_server_error() => {
                Refused::Later(anyhow!(said), retry_after.map(Duration::from_secs))
            }
            StatusCode::UNAUTHORIZED => Refused::Final(anyhow!("{said}. {}", self.credential.advice())),
            _ if status.is_success() => Refused::Final(anyhow!("{said}, but this is no stream of events")),
            _ => Refused::Final(anyhow!(said)),
        })
    }

    /// Shows what one stream brings. Fails only if it cannot be shown.
    async fn read(
        &mut self,
        mut stream: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    ) -> anyhow::Result<End> {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        loop {
            let bytes = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(Ok(bytes))) => bytes,
                Ok(Some(Err(error))) => return Ok(End::Lost(format!("the connection broke: {error}"))),
                Ok(None) => return Ok(End::Lost("the gateway ended the stream".to_owned())),
                Err(_) => return Ok(End::Lost(format!("nothing was heard for {} s", SILENCE.as_secs()))),
            };
            let in_bounds = parser.push(&bytes, &mut events);
            if let Some(retry) = parser.retry() {
                self.pauses.wish(retry);
            }
            for event in events.drain(..) {
                if let Some(end) = self.take(&event)? {
                    return Ok(end);
                }
            }
            if let Some(id) = parser.last_id() {
                self.cursor = Some(id.to_owned());
            }
            // Coming back would bring the same event again.
            in_bounds.context("the stream cannot be read")?;
        }
    }

    fn take(&mut self, event: &SseEvent) -> anyhow::Result<Option<End>> {
        match event.kind.as_str() {
            "stream:reset" => self.remark(&reset(self.channel, &event.data))?,
            "stream:expired" => return Ok(Some(End::Expired)),
            "stream:closing" => return Ok(Some(End::Lost("the gateway is going away".to_owned()))),
            _ => {
                let line = (self.output.line)(event);
                let out = &mut self.output.events;
                out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"))?;
                out.flush()?;
                self.left = self.left.map(|left| left.saturating_sub(1));
            }
        }
        // Only what was shown counts as seen.
        self.cursor = event.id.clone().or(self.cursor.take());
        Ok((self.left == Some(0)).then_some(End::Enough))
    }

    fn remark(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.output.remarks, "campanile tail: {}", printable(text))?)
    }
}

impl Credential {
    fn token(&self) -> anyhow::Result<String> {
        match self {
            Self::Given(token) => Ok(token.expose().to_owned()),
            Self::Own { secret, claims } => Ok(mint(secret.expose(), claims, chrono::Utc::now())?),
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::Given(_) => "Make another token with `campanile token`, on the machine of the gateway",
            Self::Own { .. } => {
                "The token was made with the secret of this configuration and data folder: is it this \
                 gateway's? If not, set CAMPANILE_TOKEN to a token that is"
            }
        }
    }
}

/// What `stream:reset` means for the person who reads on.
fn reset(channel: &ChannelName, data: &str) -> String {
    #[derive(Deserialize)]
    struct Reset {
        oldest: String,
        head: String,
    }
    match serde_json::from_str(data) {
        Ok(Reset { oldest, head }) => format!(
            "the place in {channel} is gone, some events are missing here; the stream goes on live from {head}. \
             What is retained: campanile tail {channel} --since {oldest}"
        ),
        Err(_) => format!("the place in {channel} is gone, some events are missing here"),
    }
}

/// How long to wait between streams: what the gateway wishes, doubled with each failure in a row,
/// half of it random, so that many readers do not come back in the same moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    wish: Duration,
    failures: u32,
}

impl Pauses {
    const LONGEST: Duration = Duration::from_secs(30);

    /// Pauses that begin with a second.
    pub(super) fn new() -> Self {
        Self { wish: Duration::from_secs(1), failures: 0 }
    }

    fn wish(&mut self, wish: Duration) {
        self.wish = wish.min(Self::LONGEST);
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause; `dice` is from 0 to 1.
    fn next(&mut self, dice: f64) -> Duration {
        let doubled = self.wish.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        doubled.min(Self::LONGEST).mul_f64(0.5 + dice / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_begin_anew() {
        let mut pauses = Pauses::new();
        let seconds: Vec<f64> = (0..7).map(|_| pauses.next(1.0).as_secs_f64()).collect();
        assert_eq!(seconds, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        pauses.failures = u32::MAX - 1;
        assert_eq!(pauses.next(0.0), Duration::from_secs(15));
        pauses.reset();
        pauses.wish(Duration::from_millis(200));
        assert_eq!(pauses.next(0.0), Duration::from_millis(100));
        pauses.wish(Duration::from_secs(1 << 40));
        assert_eq!(pauses.next(1.0), Duration::from_secs(30));
    }

    #[test]
    fn a_reset_says_where_to_read_on() {
        let channel = ChannelName::parse("org:acme").unwrap();
        let text = reset(&channel, r#"{"channel":"org:acme","oldest":"k.7","head":"k.9"}"#);
        assert!(
            text.contains("live from k.9") && text.ends_with("campanile tail org:acme --since k.7"),
            "{text}"
        );
        assert!(reset(&channel, "?").contains("org:acme"));
    }
}
