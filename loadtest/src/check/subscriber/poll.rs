//! A subscriber that polls, page by page from its cursor, and the reading of what a signal left out.
//! 410 is a signal, and `oldest` is where it goes on.

use anyhow::{Context, Result, bail};
use campanile::domain::position::Position;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::super::history::{Entry, Said};
use super::super::plan::Scenario;
use super::{Ended, Follow, Subscriber};
use crate::http::Connection;

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
struct Configured<'a> {
    offset: u32,
    #[serde(borrow)]
    data: &'a RawValue,
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
    Events(Vec<(u32, Said)>),
    /// Everything up to the first offset is gone; the second is the head.
    Gone(u32, u32),
    /// The same of another history, which begins there.
    Turned(u32, u32),
}

impl Follow {
    /// It goes on behind `to`; nothing before is left to be read.
    fn gone(&mut self, to: u32, head: u32) {
        self.history.extend([Entry::Signal { head: to }, Entry::Gone { to, head }]);
        self.at = to;
    }
}

impl Subscriber {
    /// Polls until this leg is over.
    pub(super) async fn poll(&mut self, until: Instant) -> Result<()> {
        let mut connection = Connection::to(&self.around.door);
        let stays = self.around.scenario == Scenario::Stay;
        loop {
            let mut news = false;
            for of in 0..self.follows.len() {
                let from = self.follows[of].at;
                let known = self.follows[of].tag.take();
                let found = self.page(&mut connection, of, from, known.as_deref()).await?;
                self.follows[of].tag = connection.etag().map(str::to_owned);
                match found {
                    Found::Events(events) => {
                        news |= !events.is_empty();
                        for (offset, said) in events {
                            self.follows[of].history.push(Entry::Event { offset, said });
                            self.follows[of].at = offset;
                        }
                    }
                    Found::Gone(to, head) | Found::Turned(to, head) => self.follows[of].gone(to, head),
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
    pub(super) async fn read_owed(&mut self) -> Result<()> {
        let mut connection = Connection::to(&self.around.door);
        for of in 0..self.follows.len() {
            while let Some((from, to)) = self.follows[of].owed.pop() {
                // Back on the list until it is done: the way there may break.
                self.follows[of].owed.push((from, to));
                let (history, next) = match self.page(&mut connection, of, from, None).await? {
                    Found::Events(events) => {
                        let wanted = events.into_iter().filter(|(offset, _)| *offset <= to);
                        let read: Vec<Entry> =
                            wanted.map(|(offset, said)| Entry::Read { offset, said }).collect();
                        let last = read.iter().rev().find_map(|entry| match entry {
                            Entry::Read { offset, .. } => Some(*offset),
                            _ => None,
                        });
                        // Nothing at all: the verdict will say so.
                        (read, last.unwrap_or(to))
                    }
                    Found::Gone(oldest, head) => (vec![Entry::Gone { to: oldest, head }], oldest),
                    Found::Turned(oldest, head) => {
                        self.follows[of].gone(oldest, head);
                        break;
                    }
                };
                let follow = &mut self.follows[of];
                follow.history.extend(history);
                follow.owed.pop();
                if next < to {
                    follow.owed.push((next, to));
                }
            }
        }
        Ok(())
    }

    /// The page behind `from`; nothing of it if it is still the one of the tag `known`.
    async fn page(
        &mut self,
        connection: &mut Connection,
        of: usize,
        from: u32,
        known: Option<&str>,
    ) -> Result<Found> {
        let channel = &self.around.channels[self.follows[of].index];
        let request = format!(
            "GET /api/events?channel={}&cursor={}.{from}&limit={LIMIT} HTTP/1.1\r\nHost: localhost\r\n\
             Authorization: Bearer {}\r\n{}\r\n",
            channel.name,
            self.follows[of].epoch,
            self.token,
            known.map(|tag| format!("If-None-Match: {tag}\r\n")).unwrap_or_default()
        );
        let mut body = Vec::new();
        let status = connection.exchange(request.as_bytes(), &mut body).await?;
        let place_of = |cursor: &str| {
            let position = Position::parse(cursor)?;
            Some((position.epoch.as_str().to_owned(), u32::try_from(position.offset).ok()?))
        };
        match status {
            200 => {
                let page: Page<'_> = match serde_json::from_slice(&body) {
                    Ok(page) => page,
                    Err(error) => {
                        self.follows[of].broken(format!("no page: {error}"));
                        bail!(Ended("no page"));
                    }
                };
                let mut events = Vec::with_capacity(page.events.len());
                for event in &page.events {
                    events.push(if channel.built_in {
                        // Its place is that on the page.
                        (from + events.len() as u32 + 1, Said::of(event.get()))
                    } else {
                        let event: Configured<'_> = serde_json::from_str(event.get())?;
                        (event.offset, Said::of(event.data.get()))
                    });
                }
                let end = events.last().map_or(from, |(offset, _)| *offset);
                if place_of(&page.cursor) != Some((self.follows[of].epoch.clone(), end)) {
                    let words = format!("a page from {from} to {end} has the cursor {}", page.cursor);
                    self.follows[of].broken(words);
                    bail!(Ended("a page has another cursor"));
                }
                Ok(Found::Events(events))
            }
            304 if known.is_some() => Ok(Found::Events(Vec::new())),
            410 => {
                let problem: Problem = serde_json::from_slice(&body).context("410 without details")?;
                let Bounds { oldest, head } = problem.error.details;
                let follow = &mut self.follows[of];
                match (place_of(&oldest), place_of(&head)) {
                    (Some((epoch, oldest)), Some((same, head))) if epoch == same && epoch != follow.epoch => {
                        follow.turn(&epoch);
                        Ok(Found::Turned(oldest, head))
                    }
                    (Some((epoch, place)), Some((same, end))) if epoch == same && place > from => {
                        Ok(Found::Gone(place, end))
                    }
                    _ => {
                        follow.broken(format!("{from} is gone, with {oldest} and {head}"));
                        bail!(Ended("the cursor is lost"))
                    }
                }
            }
            408 | 429 | 500..=599 => bail!(Ended("the poll was put off")),
            _ => {
                let words = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
                self.follows[of].broken(format!("a poll was answered {status} {words}"));
                bail!(Ended("the poll was refused"))
            }
        }
    }
}
