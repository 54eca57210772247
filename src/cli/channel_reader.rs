//! Reads a channel until it is stopped: one connection after another, each subscribing from the position
//! where the last one ended, so that no event is missed or shown twice. Permanent errors end it; all others
//! are retried with an exponential, randomized backoff.
//! Must hold: the position only advances past events that were shown, or that were reported as missing.

use std::convert::Infallible;
use std::io::{self, Write};

use anyhow::anyhow;
use serde_json::json;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::{Client, Disconnected, Failure, History, Incoming, Publication, Push, Reply, Subscribed};
use super::format::DisplayEvent;
use super::remote::{RESPONSE_TIMEOUT, Remote};
use super::terminal::printable;
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::position::{Epoch, Position};
use crate::protocol::code::{ClientAction, ErrorCode, UnsubscribeCode};

/// Events in one read of the history; a gateway may give fewer.
const PAGE: u32 = 300;
/// With this code the position is lost too (protocol §6.2).
const STATE_INVALIDATED: u32 = UnsubscribeCode::StateInvalidated.code() as u32;
const UNRECOVERABLE: u32 = ErrorCode::UnrecoverablePosition.code() as u32;

/// The token of the connections.
pub(super) enum Credential {
    /// A token that the user passed.
    Given(Secret),
    /// A new token for each connection, so that it never expires for good.
    Own {
        /// The secret that it is signed with.
        secret: Secret,
        claims: Box<NewToken>,
    },
}

/// Where events and diagnostics are written.
pub(super) struct Output<'a> {
    /// Events, one line each.
    pub(super) events: &'a mut dyn Write,
    /// Formats an event as a line.
    pub(super) line: &'a dyn Fn(&DisplayEvent) -> String,
    /// Messages about the connection.
    pub(super) diagnostics: &'a mut dyn Write,
}

pub(super) struct ChannelReader<'a> {
    pub(super) remote: &'a Remote,
    pub(super) channel: &'a ChannelName,
    pub(super) credential: Credential,
    /// Everything up to here was shown, or is older than the starting position.
    pub(super) cursor: Option<Position>,
    /// How many more events to show; `None` is no limit.
    pub(super) left: Option<u64>,
    pub(super) output: Output<'a>,
    /// How long to wait before the next connection.
    pub(super) backoff: Backoff,
}

/// Why reading one connection stopped.
#[derive(derive_more::From)]
enum Stop {
    /// The requested number of events was shown.
    LimitReached,
    /// The connection is over.
    #[from]
    Disconnected(Disconnected),
    /// The output cannot be written.
    #[from]
    Output(io::Error),
}

/// One connection, and how far the subscription on it has come.
struct Progress {
    client: Client,
    /// The id of the `subscribe` whose reply is awaited; nothing is shown before it.
    subscribing: Option<u32>,
    /// Whether there was a subscription on this connection before.
    was_subscribed: bool,
    /// Whether an event was shown since the subscription began.
    made_progress: bool,
    /// The id of the `history` whose reply is awaited, and why it is read.
    reading: Option<(u32, Reading)>,
    /// When the awaited reply must have arrived.
    answer_by: Option<Instant>,
    /// The gateway has events up to here. What lies between the cursor and this is read from the
    /// history, and live events wait there too.
    head: u64,
}

impl Progress {
    fn of(client: Client) -> Self {
        Self {
            client,
            subscribing: None,
            was_subscribed: false,
            made_progress: false,
            reading: None,
            answer_by: None,
            head: 0,
        }
    }
}

/// Why a history is read.
enum Reading {
    /// To show what was missed.
    Missed,
    /// To report what is still retained, before continuing from this position.
    Oldest(Position),
}

impl ChannelReader<'_> {
    /// Reads until the limit is reached or a permanent error occurs.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut was_subscribed = false;
        loop {
            let Err(stop) = self.read_connection(&mut was_subscribed).await;
            let disconnected = match stop {
                Stop::LimitReached => return Ok(()),
                Stop::Output(error) => return Err(error.into()),
                Stop::Disconnected(disconnected) => disconnected,
            };
            let reason = match disconnected {
                Disconnected::Unreachable(error) if was_subscribed => error.to_string(),
                Disconnected::Retry(error) => error.to_string(),
                Disconnected::Expired if matches!(self.credential, Credential::Own { .. }) => {
                    "the token has expired, a new one is created".to_owned()
                }
                Disconnected::Expired => anyhow::bail!("the token has expired: pass a new one"),
                Disconnected::BadToken(message) => anyhow::bail!("{message}. {}", self.credential.advice()),
                Disconnected::Unreachable(error) | Disconnected::Fatal(error) => return Err(error),
            };
            let pause = self.backoff.next(rand::random());
            let from = if self.cursor.is_some() { "" } else { ", starting with new events" };
            self.report(&format!("{reason}; retrying in {:.1} s{from}", pause.as_secs_f64()))?;
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads over one connection.
    async fn read_connection(&mut self, was_subscribed: &mut bool) -> Result<Infallible, Stop> {
        let token = self.credential.token().map_err(Disconnected::Fatal)?;
        let mut client = Client::connect(self.remote, &token).await?;
        if client.is_subscribed(self.channel.as_str()) {
            // The token subscribed without a position; subscribe again with one.
            client.send("unsubscribe", json!({ "channel": self.channel.as_str() })).await?;
        }
        let mut progress = Progress::of(client);
        self.subscribe(&mut progress).await?;
        loop {
            match progress.client.next(progress.answer_by).await? {
                Incoming::Push(push) if push.channel == self.channel.as_str() => {
                    self.handle_push(push, &mut progress).await?;
                }
                Incoming::Push(_) => {}
                Incoming::Reply(id, reply) if progress.subscribing == Some(id) => {
                    let reply = reply.map_err(|failure| self.refused(failure))?;
                    if std::mem::replace(was_subscribed, true) && !progress.was_subscribed {
                        self.report("reconnected")?;
                    }
                    self.handle_subscribed(reply, &mut progress).await?;
                }
                Incoming::Reply(id, reply) => self.handle_history(id, reply, &mut progress)?,
            }
            self.read_missed(&mut progress).await?;
        }
    }

    async fn subscribe(&self, progress: &mut Progress) -> Result<(), Disconnected> {
        let mut about = json!({ "channel": self.channel.as_str(), "positioned": true, "recoverable": true });
        if let Some(Position { epoch, offset }) = &self.cursor {
            about["recover"] = true.into();
            about["epoch"] = epoch.as_str().into();
            about["offset"] = (*offset).into();
        }
        progress.subscribing = Some(progress.client.send("subscribe", about).await?);
        progress.reading = None;
        progress.answer_by = Some(Instant::now() + RESPONSE_TIMEOUT);
        progress.head = 0;
        Ok(())
    }

    async fn request_history(&self, reading: Reading, progress: &mut Progress) -> Result<(), Disconnected> {
        let mut about = json!({ "channel": self.channel.as_str(), "limit": 1 });
        if let (Reading::Missed, Some(Position { epoch, offset })) = (&reading, &self.cursor) {
            about["limit"] = PAGE.into();
            about["since"] = json!({ "epoch": epoch.as_str(), "offset": offset });
        }
        progress.reading = Some((progress.client.send("history", about).await?, reading));
        progress.answer_by = Some(Instant::now() + RESPONSE_TIMEOUT);
        Ok(())
    }

    /// Reads on if events are known that have not been shown.
    async fn read_missed(&self, progress: &mut Progress) -> Result<(), Disconnected> {
        let busy = progress.subscribing.is_some() || progress.reading.is_some();
        match &self.cursor {
            Some(cursor) if !busy && cursor.offset < progress.head => {
                self.request_history(Reading::Missed, progress).await
            }
            _ => Ok(()),
        }
    }

    /// Decides where to read on, from what the subscription recovered (protocol §7.3).
    async fn handle_subscribed(&mut self, reply: Reply, progress: &mut Progress) -> Result<(), Stop> {
        self.backoff.reset();
        (progress.subscribing, progress.answer_by) = (None, None);
        (progress.was_subscribed, progress.made_progress) = (true, false);
        let Reply::Subscribed(subscribed) = reply else { return Ok(()) };
        let Subscribed { recoverable, positioned, epoch, offset, recovered, publications } = subscribed;
        let epoch = Epoch::parse(&epoch).filter(|_| recoverable || positioned);
        let begun = epoch.map(|epoch| Position::new(epoch, offset));
        match (self.cursor.take(), begun) {
            (None, begun) => self.cursor = begun,
            (Some(_), None) => self.report(&format!(
                "cannot resume {}: its namespace keeps no history, or the token does not give access to it; \
                 only new events are shown",
                self.channel
            ))?,
            (Some(old), Some(begun)) if recovered => {
                self.cursor = Some(Position { epoch: begun.epoch, offset: old.offset });
                for publication in &publications {
                    self.take(publication, progress)?;
                }
            }
            // More was missed than a subscription recovers, but the history may have it.
            (Some(old), Some(begun)) if old.epoch == begun.epoch && old.offset <= begun.offset => {
                progress.head = begun.offset;
                self.cursor = Some(old);
            }
            (Some(old), Some(begun)) => {
                self.cursor = Some(old);
                self.request_history(Reading::Oldest(begun), progress).await?;
            }
        }
        Ok(())
    }

    async fn handle_push(&mut self, push: Push, progress: &mut Progress) -> Result<(), Stop> {
        if progress.subscribing.is_some() {
            // The recovery contains it again.
            return Ok(());
        }
        if let Some(publication) = push.publication {
            return self.take(&publication, progress);
        }
        let Some(ended) = push.unsubscribe else { return Ok(()) };
        let message =
            printable(&format!("the gateway ended the subscription: {} (code {})", ended.reason, ended.code));
        if ClientAction::of_unsubscribe(ended.code) == ClientAction::Terminal {
            return Err(Disconnected::Fatal(anyhow!(message)).into());
        }
        if ended.code == STATE_INVALIDATED {
            self.cursor = None;
        }
        if !progress.made_progress {
            // Subscribing again without a pause could go on forever.
            return Err(Disconnected::Retry(anyhow!(message)).into());
        }
        Ok(self.subscribe(progress).await?)
    }

    /// Shows an event if it is the next one.
    fn take(&mut self, publication: &Publication, progress: &mut Progress) -> Result<(), Stop> {
        let Some(cursor) = self.cursor.as_mut().filter(|_| publication.offset > 0) else {
            return self.show(publication, progress);
        };
        if matches!(progress.reading, Some((_, Reading::Oldest(_)))) {
            progress.head = progress.head.max(publication.offset);
            return Ok(());
        }
        match publication.offset.checked_sub(cursor.offset) {
            None | Some(0) => Ok(()),
            Some(1) => self.show(publication, progress),
            Some(_) => {
                progress.head = progress.head.max(publication.offset);
                Ok(())
            }
        }
    }

    fn show(&mut self, publication: &Publication, progress: &mut Progress) -> Result<(), Stop> {
        let line = (self.output.line)(&DisplayEvent::of(publication, self.channel));
        let out = &mut self.output.events;
        out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"))?;
        out.flush()?;
        // Only what was shown counts as seen.
        if let Some(cursor) = self.cursor.as_mut().filter(|_| publication.offset > 0) {
            cursor.offset = publication.offset;
        }
        progress.made_progress = true;
        self.left = self.left.map(|left| left.saturating_sub(1));
        if self.left == Some(0) { Err(Stop::LimitReached) } else { Ok(()) }
    }

    fn handle_history(
        &mut self,
        id: u32,
        reply: Result<Reply, Failure>,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let Some((_, reading)) = progress.reading.take_if(|(reading, _)| *reading == id) else {
            return Ok(());
        };
        progress.answer_by = None;
        let history = reply.map(|reply| match reply {
            Reply::History(history) => history,
            _ => History::default(),
        });
        match reading {
            Reading::Missed => self.handle_missed(history, progress),
            Reading::Oldest(begun) => self.handle_oldest(history.ok(), begun),
        }
    }

    /// Shows what the history has, or reports that it has been removed.
    fn handle_missed(
        &mut self,
        history: Result<History, Failure>,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        let head = Position { epoch: cursor.epoch.clone(), offset: progress.head };
        let message = match history {
            Ok(History { publications, .. })
                if publications.iter().any(|event| event.offset == cursor.offset + 1) =>
            {
                return publications.iter().try_for_each(|event| self.take(event, progress));
            }
            _ if cursor.offset >= progress.head => return Ok(()),
            Ok(history) => position_lost(self.channel, history.oldest().as_ref(), &head),
            Err(failure) if failure.is_temporary() => return Err(Disconnected::from(failure).into()),
            Err(failure) if failure.code == UNRECOVERABLE => position_lost(self.channel, None, &head),
            Err(failure) => format!(
                "some events of {} are missing here: there are more than a subscription recovers, and \
                 reading the history failed: {}; the stream continues live from {head}",
                self.channel,
                failure.text()
            ),
        };
        self.report(&message)?;
        self.cursor = Some(head);
        Ok(())
    }

    /// Reports that the position is lost, and what is retained.
    fn handle_oldest(&mut self, history: Option<History>, begun: Position) -> Result<(), Stop> {
        let oldest = history.and_then(|history| history.oldest());
        self.report(&position_lost(self.channel, oldest.as_ref(), &begun))?;
        self.cursor = Some(begun);
        Ok(())
    }

    /// Explains a refused subscription.
    fn refused(&self, failure: Failure) -> Disconnected {
        const UNKNOWN_CHANNEL: u32 = ErrorCode::UnknownChannel.code() as u32;
        const PERMISSION_DENIED: u32 = ErrorCode::PermissionDenied.code() as u32;
        let channel = self.channel;
        let advice = match (failure.code, channel.kind()) {
            (UNKNOWN_CHANNEL, _) => format!("the namespace of {channel} is not declared there"),
            (PERMISSION_DENIED, ChannelKind::Org { owner }) => {
                format!(
                    "the token must give access to {channel}: `campanile token --org {owner}` makes one that does"
                )
            }
            (PERMISSION_DENIED, ChannelKind::Repo { owner, name }) => format!(
                "the token must give access to {channel}: `campanile token --repo {owner}/{name}` or `--org {owner}` \
                 makes one that does"
            ),
            (PERMISSION_DENIED, ChannelKind::Personal { user, .. }) => {
                format!("{channel} opens to the user {user} alone: the token must be theirs (`sub`)")
            }
            (PERMISSION_DENIED, _) if channel.is_built_in() => format!(
                "the token must give access to {channel}: `campanile token --scope admin` makes one for all built-in \
                 channels"
            ),
            (PERMISSION_DENIED, _) => format!(
                "the token must give access to {channel} (claim `channels`), or its namespace must admit clients \
                 (`allow_subscribe_for_client`)"
            ),
            _ => return failure.into(),
        };
        Disconnected::Fatal(anyhow!("{}: {}", failure.text(), printable(&advice)))
    }

    fn report(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.output.diagnostics, "campanile tail: {}", printable(text))
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
            Self::Given(_) => "Create another token with `campanile token` on the machine of the gateway",
            Self::Own { .. } => {
                "The token was made with the secret of this configuration and data folder: does it belong to \
                 this gateway? If not, set CAMPANILE_TOKEN to a token that does"
            }
        }
    }
}

/// The message about a lost position, for the person who reads on.
fn position_lost(channel: &ChannelName, oldest: Option<&Position>, head: &Position) -> String {
    let retained =
        oldest.map(|oldest| format!(". What is retained: campanile tail {channel} --since {oldest}"));
    let retained = retained.unwrap_or_default();
    format!(
        "the position in {channel} is no longer retained, so some events are missing here; \
         the stream continues live from \
         {head}{retained}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_place_says_where_to_read_on() {
        let channel = ChannelName::parse("org:acme").unwrap();
        let at = |text| Position::parse(text).unwrap();
        let text = position_lost(&channel, Some(&at("k.7")), &at("k.9"));
        assert!(
            text.contains("live from k.9") && text.ends_with("campanile tail org:acme --since k.7"),
            "{text}"
        );
        assert!(position_lost(&channel, None, &at("k.9")).ends_with("live from k.9"));
    }
}
