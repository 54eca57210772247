//! A subscriber that polls, page by page from its cursor, and the reading of what a signal left out.
//! 410 is a signal, and `oldest` is where it goes on.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use testkit::http::{self, Answer, Client, RequestBuilder as _};
use tokio::time::Instant;

use super::Subscriber;
use super::subscription::{ConfiguredEvent, Ended};
use crate::cursor;
use crate::history::{Digest, Entry};
use crate::plan::Scenario;

const LIMIT: u32 = 100;
/// Milliseconds between two polls that brought nothing.
const IDLE: std::ops::Range<u64> = 20..200;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
    cursor: String,
}

#[derive(Deserialize)]
struct Problem {
    error: Details,
}

#[derive(Deserialize)]
struct Details {
    details: Bounds,
}

#[derive(Deserialize)]
struct Bounds {
    oldest: String,
    head: String,
}

enum Found {
    /// Offsets and data.
    Events(Vec<(u32, Digest)>),
    /// Everything up to the first offset is gone; the second is the head.
    Gone(u32, u32),
    /// The same of another history, which begins there.
    EpochChanged(u32, u32),
}

impl Subscriber {
    pub(super) async fn poll(&mut self, until: Instant) -> Result<()> {
        let mut client = Client::new(self.context.address);
        let stays = self.context.scenario == Scenario::Stay;
        loop {
            let mut news = false;
            for of in 0..self.subscriptions.len() {
                let from = self.subscriptions[of].offset;
                let known = self.subscriptions[of].etag.take();
                let (found, etag) = self.page(&mut client, of, from, known.as_deref()).await?;
                self.subscriptions[of].etag = etag;
                match found {
                    Found::Events(events) => {
                        news |= !events.is_empty();
                        for (offset, digest) in events {
                            self.subscriptions[of].history.push(Entry::Event { offset, digest });
                            self.subscriptions[of].offset = offset;
                        }
                    }
                    Found::Gone(to, head) | Found::EpochChanged(to, head) => {
                        self.subscriptions[of].gone(to, head)
                    }
                }
            }
            let time_is_up = !stays && Instant::now() >= until;
            if time_is_up || self.is_over() || self.is_at_head() {
                return Ok(());
            }
            if !news {
                let pause = self.random.millis(IDLE);
                self.pause(pause).await;
            }
        }
    }

    /// Reads what signals have left out.
    pub(super) async fn read_unread(&mut self) -> Result<()> {
        let mut client = Client::new(self.context.address);
        for of in 0..self.subscriptions.len() {
            while let Some((from, to)) = self.subscriptions[of].unread.pop() {
                // Back on the list until it is done: the connection may break.
                self.subscriptions[of].unread.push((from, to));
                let (history, next) = match self.page(&mut client, of, from, None).await?.0 {
                    Found::Events(events) => {
                        let wanted = events.into_iter().filter(|(offset, _)| *offset <= to);
                        let read: Vec<Entry> =
                            wanted.map(|(offset, digest)| Entry::Read { offset, digest }).collect();
                        let last = read.iter().rev().find_map(|entry| match entry {
                            Entry::Read { offset, .. } => Some(*offset),
                            _ => None,
                        });
                        // Nothing at all: the verifier will say so.
                        (read, last.unwrap_or(to))
                    }
                    Found::Gone(oldest, head) => (vec![Entry::Gone { to: oldest, head }], oldest),
                    Found::EpochChanged(oldest, head) => {
                        self.subscriptions[of].gone(oldest, head);
                        break;
                    }
                };
                let subscription = &mut self.subscriptions[of];
                subscription.history.extend(history);
                subscription.unread.pop();
                if next < to {
                    subscription.unread.push((next, to));
                }
            }
        }
        Ok(())
    }

    /// The page behind `from` and its `ETag`; no events if it is still the one of the tag `known`.
    async fn page(
        &mut self,
        client: &mut Client,
        of: usize,
        from: u32,
        known: Option<&str>,
    ) -> Result<(Found, Option<String>)> {
        let channel = &self.context.channels[self.subscriptions[of].channel];
        let (name, epoch) = (&channel.name, &self.subscriptions[of].epoch);
        let path = format!("/api/events?channel={name}&cursor={epoch}.{from}&limit={LIMIT}");
        let mut request = http::get(&path).bearer(&self.token);
        if let Some(tag) = known {
            request = request.header("If-None-Match", tag);
        }
        let answer = client.send(request.with("")).await?;
        let etag = answer.header("etag").map(str::to_owned);
        let found = self.found(answer, of, from, known.is_some())?;
        Ok((found, etag))
    }

    fn found(&mut self, answer: Answer, of: usize, from: u32, conditional: bool) -> Result<Found> {
        let channel = &self.context.channels[self.subscriptions[of].channel];
        match answer.status {
            200 => {
                let page: Page<'_> = match serde_json::from_slice(&answer.body) {
                    Ok(page) => page,
                    Err(error) => {
                        self.subscriptions[of].unexpected(format!("no page: {error}"));
                        bail!(Ended("no page"));
                    }
                };
                let mut events = Vec::with_capacity(page.events.len());
                for event in &page.events {
                    events.push(if channel.built_in {
                        // Its offset follows from its place on the page.
                        (from + events.len() as u32 + 1, Digest::of(event.get()))
                    } else {
                        let event: ConfiguredEvent<'_> = serde_json::from_str(event.get())?;
                        (event.offset, Digest::of(event.data.get()))
                    });
                }
                let end = events.last().map_or(from, |(offset, _)| *offset);
                if cursor::parse(&page.cursor) != Some((self.subscriptions[of].epoch.clone(), end)) {
                    let error = format!("a page from {from} to {end} has the cursor {}", page.cursor);
                    self.subscriptions[of].unexpected(error);
                    bail!(Ended("a page has another cursor"));
                }
                Ok(Found::Events(events))
            }
            304 if conditional => Ok(Found::Events(Vec::new())),
            410 => {
                let problem: Problem = serde_json::from_slice(&answer.body).context("410 without details")?;
                let Bounds { oldest, head } = problem.error.details;
                let subscription = &mut self.subscriptions[of];
                match (cursor::parse(&oldest), cursor::parse(&head)) {
                    (Some((epoch, oldest)), Some((same, head)))
                        if epoch == same && epoch != subscription.epoch =>
                    {
                        subscription.change_epoch(&epoch);
                        Ok(Found::EpochChanged(oldest, head))
                    }
                    (Some((epoch, place)), Some((same, end))) if epoch == same && place > from => {
                        Ok(Found::Gone(place, end))
                    }
                    _ => {
                        subscription.unexpected(format!("{from} is gone, with {oldest} and {head}"));
                        bail!(Ended("the cursor is lost"))
                    }
                }
            }
            408 | 429 | 500..=599 => bail!(Ended("the poll was put off")),
            status => {
                let excerpt = answer.excerpt();
                self.subscriptions[of].unexpected(format!("a poll was answered {status} {excerpt}"));
                bail!(Ended("the poll was refused"))
            }
        }
    }
}
