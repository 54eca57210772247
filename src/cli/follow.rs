//! Follows a channel for as long as it takes: one connection after another, each subscribing from
//! the position where the last one ended, so that nothing is missed or shown twice. Refusals that
//! will not change by themselves end it; everything else is waited out, with growing and random
//! pauses.
//! Must hold: the position only moves past what was shown, or past what was said to be missing.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::anyhow;
use serde_json::json;
use tokio::time::Instant;

use super::client::{Client, Failure, Gone, Heard, History, Publication, Push, Reply, Subscribed};
use super::line::Shown;
use super::remote::{PATIENCE, Remote};
use super::terminal::printable;
use crate::auth::{NewToken, mint};
use crate::config::Secret;
use crate::domain::channel::{ChannelKind, ChannelName};
use crate::domain::position::{Epoch, Position};
use crate::protocol::code::{Class, ErrorCode, UnsubscribeCode};

/// Events in one read of the history; a gateway may give fewer.
const PAGE: u32 = 300;
/// From here on a code ends also the place (protocol §6.2).
const STATE_INVALIDATED: u32 = UnsubscribeCode::StateInvalidated.code() as u32;
const UNRECOVERABLE: u32 = ErrorCode::UnrecoverablePosition.code() as u32;

/// What opens the connection.
pub(super) enum Credential {
    /// A token that somebody gave.
    Given(Secret),
    /// A token that is made for each connection anew, so that it never ends for good.
    Own {
        /// What it is signed with.
        secret: Secret,
        /// What it says.
        claims: Box<NewToken>,
    },
}

/// Where events and remarks go.
pub(super) struct Output<'a> {
    /// Events, a line each.
    pub(super) events: &'a mut dyn Write,
    /// How an event becomes a line.
    pub(super) line: &'a dyn Fn(&Shown) -> String,
    /// What happens to the connection.
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
    pub(super) cursor: Option<Position>,
    /// How many events are still wanted; `None` is all.
    pub(super) left: Option<u64>,
    /// Where it all goes.
    pub(super) output: Output<'a>,
    /// How long to wait before the next connection.
    pub(super) pauses: Pauses,
}

/// Why one connection is not read any further.
enum End {
    /// As many events as were wanted.
    Enough,
    /// The connection is over.
    Gone(Gone),
    /// Nothing can be shown any more.
    Output(io::Error),
}

impl From<Gone> for End {
    fn from(gone: Gone) -> Self {
        Self::Gone(gone)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Where one subscription is.
struct Progress {
    /// The number of the `subscribe` whose answer is awaited; nothing is shown before it.
    subscribing: Option<u32>,
    /// There was a subscription on this connection.
    was_there: bool,
    /// Something was shown since it began.
    is_fruitful: bool,
    /// The history that is being read.
    reading: Option<(u32, Reading)>,
    /// Until then an answer must have come.
    answer_by: Option<Instant>,
    /// The gateway has events up to here. What lies between the cursor and this is read from the
    /// history, and live events wait there too.
    head: u64,
}

/// Why a history is read.
enum Reading {
    /// To show what was missed.
    Missed,
    /// To say what is retained, before going on from here.
    Oldest(Position),
}

impl Follower<'_> {
    /// Follows until there is enough, or no use in going on.
    pub(super) async fn run(&mut self) -> anyhow::Result<()> {
        let mut was_there = false;
        loop {
            let gone = match self.follow(&mut was_there).await {
                End::Enough => return Ok(()),
                End::Output(error) => return Err(error.into()),
                End::Gone(gone) => gone,
            };
            let reason = match gone {
                Gone::Unreachable(error) if was_there => error.to_string(),
                Gone::Later(error) => error.to_string(),
                Gone::Expired if matches!(self.credential, Credential::Own { .. }) => {
                    "the token ended, a new one is made".to_owned()
                }
                Gone::Expired => anyhow::bail!("the token has expired: pass a new one"),
                Gone::BadToken(said) => anyhow::bail!("{said}. {}", self.credential.advice()),
                Gone::Unreachable(error) | Gone::Final(error) => return Err(error),
            };
            let pause = self.pauses.next(rand::random());
            let from = if self.cursor.is_some() { "" } else { ", from what comes then" };
            self.remark(&format!("{reason}; trying again in {:.1} s{from}", pause.as_secs_f64()))?;
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows over one connection.
    async fn follow(&mut self, was_there: &mut bool) -> End {
        match self.try_follow(was_there).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(&mut self, was_there: &mut bool) -> Result<std::convert::Infallible, End> {
        let token = self.credential.token().map_err(Gone::Final)?;
        let mut client = Client::connect(self.remote, &token).await?;
        if client.is_subscribed(self.channel.as_str()) {
            // By the token, which has no position: it is done again with one.
            client.send("unsubscribe", json!({ "channel": self.channel.as_str() })).await?;
        }
        let mut progress = Progress {
            subscribing: None,
            was_there: false,
            is_fruitful: false,
            reading: None,
            answer_by: None,
            head: 0,
        };
        self.subscribe(&mut client, &mut progress).await?;
        loop {
            match client.next(progress.answer_by).await? {
                Heard::Push(push) if push.channel == self.channel.as_str() => {
                    self.take_push(push, &mut client, &mut progress).await?;
                }
                Heard::Push(_) => {}
                Heard::Reply(id, reply) if progress.subscribing == Some(id) => {
                    let reply = reply.map_err(|failure| self.refused(failure))?;
                    if std::mem::replace(was_there, true) && !progress.was_there {
                        self.remark("connected again")?;
                    }
                    self.pauses.reset();
                    (progress.subscribing, progress.answer_by) = (None, None);
                    (progress.was_there, progress.is_fruitful) = (true, false);
                    if let Reply::Subscribed(subscribed) = reply {
                        self.take_subscribed(subscribed, &mut client, &mut progress).await?;
                    }
                }
                Heard::Reply(id, reply) => {
                    let Some((_, reading)) = progress.reading.take_if(|(reading, _)| *reading == id) else {
                        continue;
                    };
                    progress.answer_by = None;
                    let history = reply.map(|reply| match reply {
                        Reply::History(history) => history,
                        _ => History::default(),
                    });
                    match reading {
                        Reading::Missed => self.take_missed(history, &mut progress)?,
                        Reading::Oldest(begun) => self.take_oldest(history.ok(), begun)?,
                    }
                }
            }
            self.read_missed(&mut client, &mut progress).await?;
        }
    }

    async fn subscribe(&mut self, client: &mut Client, progress: &mut Progress) -> Result<(), Gone> {
        let mut about = json!({ "channel": self.channel.as_str(), "positioned": true, "recoverable": true });
        if let Some(Position { epoch, offset }) = &self.cursor {
            about["recover"] = true.into();
            about["epoch"] = epoch.as_str().into();
            about["offset"] = (*offset).into();
        }
        progress.subscribing = Some(client.send("subscribe", about).await?);
        progress.reading = None;
        progress.answer_by = Some(Instant::now() + PATIENCE);
        progress.head = 0;
        Ok(())
    }

    async fn read(&self, reading: Reading, client: &mut Client, progress: &mut Progress) -> Result<(), Gone> {
        let mut about = json!({ "channel": self.channel.as_str(), "limit": 1 });
        if let (Reading::Missed, Some(Position { epoch, offset })) = (&reading, &self.cursor) {
            about["limit"] = PAGE.into();
            about["since"] = json!({ "epoch": epoch.as_str(), "offset": offset });
        }
        progress.reading = Some((client.send("history", about).await?, reading));
        progress.answer_by = Some(Instant::now() + PATIENCE);
        Ok(())
    }

    /// Reads on if events are known that have not been shown.
    async fn read_missed(&self, client: &mut Client, progress: &mut Progress) -> Result<(), Gone> {
        let busy = progress.subscribing.is_some() || progress.reading.is_some();
        match &self.cursor {
            Some(cursor) if !busy && cursor.offset < progress.head => {
                self.read(Reading::Missed, client, progress).await
            }
            _ => Ok(()),
        }
    }

    /// Where the subscription begins (protocol §7.3).
    async fn take_subscribed(
        &mut self,
        subscribed: Subscribed,
        client: &mut Client,
        progress: &mut Progress,
    ) -> Result<(), End> {
        let Subscribed { recoverable, positioned, epoch, offset, recovered, publications } = subscribed;
        let epoch = Epoch::parse(&epoch).filter(|_| recoverable || positioned);
        let begun = epoch.map(|epoch| Position::new(epoch, offset));
        match (self.cursor.take(), begun) {
            (None, begun) => self.cursor = begun,
            (Some(_), None) => self.remark(&format!(
                "there is no place in {} to go on from: its namespace keeps no history, or the token does not                  admit to it; shown is what comes from now on",
                self.channel
            ))?,
            (Some(old), Some(begun)) if recovered => {
                self.cursor = Some(Position { epoch: begun.epoch, offset: old.offset });
                for publication in &publications {
                    self.take(publication, progress)?;
                }
            }
            // More was missed than a subscription brings at once; perhaps the history has it.
            (Some(old), Some(begun)) if old.epoch == begun.epoch && old.offset <= begun.offset => {
                progress.head = begun.offset;
                self.cursor = Some(old);
            }
            (Some(old), Some(begun)) => {
                self.cursor = Some(old);
                self.read(Reading::Oldest(begun), client, progress).await?;
            }
        }
        Ok(())
    }

    async fn take_push(
        &mut self,
        push: Push,
        client: &mut Client,
        progress: &mut Progress,
    ) -> Result<(), End> {
        if progress.subscribing.is_some() {
            // It comes again, behind the answer.
            return Ok(());
        }
        if let Some(publication) = push.publication {
            return self.take(&publication, progress);
        }
        let Some(ended) = push.unsubscribe else { return Ok(()) };
        let said =
            printable(&format!("the gateway ended the subscription: {} (code {})", ended.reason, ended.code));
        if Class::of_unsubscribe(ended.code) == Class::Terminal {
            return Err(Gone::Final(anyhow!(said)).into());
        }
        if ended.code == STATE_INVALIDATED {
            self.cursor = None;
        }
        if !progress.is_fruitful {
            // One that ends at once, again and again, must not be begun without a pause.
            return Err(Gone::Later(anyhow!(said)).into());
        }
        Ok(self.subscribe(client, progress).await?)
    }

    /// Shows an event if it is the next one.
    fn take(&mut self, publication: &Publication, progress: &mut Progress) -> Result<(), End> {
        let Some(cursor) = self.cursor.as_mut().filter(|_| publication.offset > 0) else {
            return self.show(publication, progress);
        };
        if matches!(progress.reading, Some((_, Reading::Oldest(_)))) {
            progress.head = progress.head.max(publication.offset);
            return Ok(());
        }
        if publication.offset <= cursor.offset {
            return Ok(());
        }
        if publication.offset > cursor.offset + 1 {
            progress.head = progress.head.max(publication.offset);
            return Ok(());
        }
        self.show(publication, progress)
    }

    fn show(&mut self, publication: &Publication, progress: &mut Progress) -> Result<(), End> {
        let line = (self.output.line)(&Shown::of(publication, self.channel));
        let out = &mut self.output.events;
        out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n"))?;
        out.flush()?;
        // Only what was shown counts as seen.
        if let Some(cursor) = self.cursor.as_mut().filter(|_| publication.offset > 0) {
            cursor.offset = publication.offset;
        }
        progress.is_fruitful = true;
        self.left = self.left.map(|left| left.saturating_sub(1));
        if self.left == Some(0) { Err(End::Enough) } else { Ok(()) }
    }

    /// Shows what the history has, or says that it has it no more.
    fn take_missed(&mut self, history: Result<History, Failure>, progress: &mut Progress) -> Result<(), End> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        let head = Position { epoch: cursor.epoch.clone(), offset: progress.head };
        let said = match history {
            Ok(History { publications, .. })
                if publications.iter().any(|event| event.offset == cursor.offset + 1) =>
            {
                return publications.iter().try_for_each(|event| self.take(event, progress));
            }
            _ if cursor.offset >= progress.head => return Ok(()),
            Ok(history) => gone(self.channel, history.oldest().as_ref(), &head),
            Err(failure) if failure.is_temporary() => return Err(Gone::from(failure).into()),
            Err(failure) if failure.code == UNRECOVERABLE => gone(self.channel, None, &head),
            Err(failure) => format!(
                "some events of {} are missing here: more than come with a subscription, and about its \
                 history {}; the stream goes on live from {head}",
                self.channel,
                failure.said()
            ),
        };
        self.remark(&said)?;
        self.cursor = Some(head);
        Ok(())
    }

    /// Says that the place is gone, and what is retained.
    fn take_oldest(&mut self, history: Option<History>, begun: Position) -> Result<(), End> {
        let oldest = history.and_then(|history| history.oldest());
        self.remark(&gone(self.channel, oldest.as_ref(), &begun))?;
        self.cursor = Some(begun);
        Ok(())
    }

    /// What it means that the subscription is refused.
    fn refused(&self, failure: Failure) -> Gone {
        const UNKNOWN_CHANNEL: u32 = ErrorCode::UnknownChannel.code() as u32;
        const PERMISSION_DENIED: u32 = ErrorCode::PermissionDenied.code() as u32;
        let channel = self.channel;
        let advice = match (failure.code, channel.kind()) {
            (UNKNOWN_CHANNEL, _) => format!("the namespace of {channel} is not declared there"),
            (PERMISSION_DENIED, ChannelKind::Org { owner }) => {
                format!(
                    "the token must admit to {channel}: `campanile token --org {owner}` makes one that does"
                )
            }
            (PERMISSION_DENIED, ChannelKind::Repo { owner, name }) => format!(
                "the token must admit to {channel}: `campanile token --repo {owner}/{name}` or `--org {owner}` \
                 makes one that does"
            ),
            (PERMISSION_DENIED, ChannelKind::Personal { user, .. }) => {
                format!("{channel} opens to the user {user} alone: the token must be theirs (`sub`)")
            }
            (PERMISSION_DENIED, _) if channel.is_built_in() => format!(
                "the token must admit to {channel}: `campanile token --scope admin` makes one for all built-in \
                 channels"
            ),
            (PERMISSION_DENIED, _) => format!(
                "the token must admit to {channel} (claim `channels`), or its namespace to clients \
                 (`allow_subscribe_for_client`)"
            ),
            _ => return failure.into(),
        };
        Gone::Final(anyhow!("{}: {}", failure.said(), printable(&advice)))
    }

    fn remark(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.output.remarks, "campanile tail: {}", printable(text))
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

/// What a lost place means for the person who reads on.
fn gone(channel: &ChannelName, oldest: Option<&Position>, head: &Position) -> String {
    let retained =
        oldest.map(|oldest| format!(". What is retained: campanile tail {channel} --since {oldest}"));
    let retained = retained.unwrap_or_default();
    format!(
        "the place in {channel} is gone, some events are missing here; the stream goes on live from \
         {head}{retained}"
    )
}

/// How long to wait between connections: doubled with each failure in a row, half of it random, so
/// that many readers do not come back in the same moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    first: Duration,
    failures: u32,
}

impl Pauses {
    const LONGEST: Duration = Duration::from_secs(30);

    /// Pauses that begin with `first`.
    pub(super) fn beginning_with(first: Duration) -> Self {
        Self { first, failures: 0 }
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    /// The next pause; `dice` is from 0 to 1.
    fn next(&mut self, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        doubled.min(Self::LONGEST).mul_f64(0.5 + dice / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_begin_anew() {
        let mut pauses = Pauses::beginning_with(Duration::from_secs(1));
        let seconds: Vec<f64> = (0..7).map(|_| pauses.next(1.0).as_secs_f64()).collect();
        assert_eq!(seconds, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        pauses.failures = u32::MAX - 1;
        assert_eq!(pauses.next(0.0), Duration::from_secs(15));
        pauses.reset();
        assert_eq!(pauses.next(0.0), Duration::from_millis(500));
    }

    #[test]
    fn a_lost_place_says_where_to_read_on() {
        let channel = ChannelName::parse("org:acme").unwrap();
        let at = |text| Position::parse(text).unwrap();
        let text = gone(&channel, Some(&at("k.7")), &at("k.9"));
        assert!(
            text.contains("live from k.9") && text.ends_with("campanile tail org:acme --since k.7"),
            "{text}"
        );
        assert!(gone(&channel, None, &at("k.9")).ends_with("live from k.9"));
    }
}
