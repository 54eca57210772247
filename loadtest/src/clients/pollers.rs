//! Many readers that poll one channel over kept-alive connections, on one thread. Each has its own
//! position: a cursor and the tag of what it saw there. Invariant: while nothing is published every
//! answer is 304, and what was published reaches each of them once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Poll, Token};
use serde_json::Value;

use crate::compare::session::Session;
use crate::pipeline::{self, Answer, Pipeline};
use crate::progress::TIMEOUT;
use crate::stats::Histogram;
use crate::ws::message;

const EVENTS: usize = 1024;

pub struct Pollers {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    members: Vec<Member>,
    /// Look for answers without ever sleeping.
    spin: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Again as soon as there is an answer.
    Saturating {
        /// Requests under way on each connection.
        under_way: usize,
    },
    /// At this interval. With `longest`, half as long again after each answer without news, up to it.
    Every { interval: Duration, longest: Duration },
}

struct Member {
    pipeline: Pipeline,
    /// Who asks for what, up to the cursor.
    before: String,
    /// The rest of the request.
    after: String,
    cursor: Option<String>,
    /// The request for news, as often as requests are under way.
    requests: Vec<u8>,
    /// The length of one.
    length: usize,
    asked: Instant,
    due: Instant,
    interval: Duration,
}

/// What came of a time of polling.
pub struct Outcome {
    /// Answers 304.
    pub unchanged: u64,
    pub latencies: Histogram,
    /// From the first request to the end.
    pub took: Duration,
}

impl Pollers {
    /// Connects this many, each a user of its own. With `spin` they never sleep.
    pub fn open(session: &Session, count: usize, spin: bool) -> Result<Self> {
        let poll = Poll::new()?;
        let now = Instant::now();
        let channel = session.channel(0);
        let member = |index: usize| {
            let token = session.token(index, None);
            Ok(Member {
                pipeline: Pipeline::open(session.address, poll.registry(), Token(index))?,
                before: format!("GET /api/events?channel={channel}"),
                after: format!(" HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n", session.host),
                cursor: None,
                requests: Vec::new(),
                length: 0,
                asked: now,
                due: now,
                interval: Duration::ZERO,
            })
        };
        let members = (0..count).map(member).collect::<Result<_>>()?;
        let buffer = vec![0; pipeline::BUFFER];
        Ok(Self { poll, events: Events::with_capacity(EVENTS), buffer, members, spin })
    }

    /// Lets each read until nothing is left, and remember the tag of that position. Gives the numbers of
    /// the publications that each has read.
    pub fn catch_up(&mut self) -> Result<Vec<Vec<u32>>> {
        let Self { poll, events, buffer, members, .. } = self;
        let mut seen = vec![Vec::new(); members.len()];
        let mut reading = members.len();
        for member in members.iter_mut() {
            member.read()?;
        }
        while reading > 0 {
            poll.poll(events, Some(TIMEOUT))?;
            ensure!(!events.is_empty(), "{reading} pollers have no answer");
            for event in events.iter() {
                let Token(index) = event.token();
                let member = &mut members[index];
                let mut page = None;
                member.pipeline.receive(buffer, |answer| {
                    page = Some(Page::read(&answer)?);
                    Ok(())
                })?;
                let Some(page) = page else { continue };
                seen[index].extend(page.numbers);
                // The tag is that of the position that was asked for.
                if member.cursor.as_ref() == Some(&page.cursor) {
                    member.remember(&page.tag);
                    reading -= 1;
                } else {
                    member.cursor = Some(page.cursor);
                    member.read()?;
                }
            }
        }
        Ok(seen)
    }

    /// Asks for news for a while; there is none.
    pub fn run(&mut self, pace: Pace, time: Duration) -> Result<Outcome> {
        let Self { poll, events, buffer, members, spin } = self;
        let mut outcome = Outcome { unchanged: 0, latencies: Histogram::new(), took: Duration::ZERO };
        let began = Instant::now();
        let end = began + time;
        let count = members.len() as u32;
        for (index, member) in members.iter_mut().enumerate() {
            match pace {
                Pace::Saturating { under_way } => member.send(under_way, began)?,
                Pace::Every { interval, .. } => {
                    // Spread from the start, as pollers are that came at different times.
                    member.due = began + interval * index as u32 / count;
                    member.interval = interval;
                }
            }
        }
        let mut outstanding: usize = members.iter().map(|member| member.pipeline.outstanding()).sum();
        let mut heard = Instant::now();
        loop {
            let now = Instant::now();
            if now >= end && outstanding == 0 {
                return Ok(outcome);
            }
            ensure!(
                outstanding == 0 || heard.elapsed() < TIMEOUT,
                "{outstanding} answers are outstanding and do not come"
            );
            let mut wake = if now < end { end } else { now + TIMEOUT };
            if let Pace::Every { .. } = pace {
                for member in members.iter_mut().filter(|_| now < end) {
                    if member.due <= now && member.pipeline.outstanding() == 0 {
                        // The clock of a poll starts when it is due, not when this loop gets to it.
                        member.send(1, member.due)?;
                        outstanding += 1;
                        heard = now;
                        member.due += member.interval;
                    }
                    wake = wake.min(member.due);
                }
            }
            let timeout = if *spin { Duration::ZERO } else { wake.saturating_duration_since(now) };
            poll.poll(events, Some(timeout))?;
            let now = Instant::now();
            for event in events.iter() {
                let Token(index) = event.token();
                let member = &mut members[index];
                let mut answered = 0;
                member.pipeline.receive(buffer, |answer| {
                    ensure!(
                        answer.status == 304,
                        "a poll without news was answered {} {}",
                        answer.status,
                        message::excerpt(answer.body)
                    );
                    answered += 1;
                    Ok(())
                })?;
                if answered == 0 {
                    continue;
                }
                heard = now;
                outstanding -= answered;
                for _ in 0..answered {
                    outcome.latencies.record(now.saturating_duration_since(member.asked));
                }
                if now < end {
                    outcome.unchanged += answered as u64;
                    outcome.took = now - began;
                    match pace {
                        Pace::Saturating { .. } => {
                            member.send(answered, now)?;
                            outstanding += answered;
                        }
                        Pace::Every { longest, .. } => {
                            member.interval = (member.interval * 3 / 2).min(longest);
                        }
                    }
                }
            }
        }
    }
}

impl Member {
    /// Asks for what comes after its position, without a tag.
    fn read(&mut self) -> Result<()> {
        let request = self.request("");
        self.pipeline.send(&request, 1)
    }

    fn request(&self, condition: &str) -> Vec<u8> {
        let cursor = self.cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        format!("{}{cursor}{}{condition}\r\n", self.before, self.after).into_bytes()
    }

    fn remember(&mut self, tag: &str) {
        let request = self.request(&format!("If-None-Match: {tag}\r\n"));
        self.length = request.len();
        self.requests = request;
    }

    fn send(&mut self, count: usize, at: Instant) -> Result<()> {
        while self.requests.len() < self.length * count {
            self.requests.extend_from_within(..self.length);
        }
        self.asked = at;
        self.pipeline.send(&self.requests[..self.length * count], count)
    }
}

struct Page {
    tag: String,
    cursor: String,
    numbers: Vec<u32>,
}

impl Page {
    fn read(answer: &Answer<'_>) -> Result<Self> {
        if answer.status != 200 {
            bail!("a poll was answered {} {}", answer.status, message::excerpt(answer.body));
        }
        let tag = answer.header("etag").context("a page without a tag")?.to_owned();
        let page: Value = serde_json::from_slice(answer.body).context("a page that is not JSON")?;
        let cursor = page["cursor"].as_str().context("a page without a cursor")?.to_owned();
        let numbers: Vec<u32> = message::numbers(answer.body).collect::<Result<_>>()?;
        let events = page["events"].as_array().context("a page without events")?.len();
        ensure!(events == numbers.len(), "a page with {events} events, of them {} of ours", numbers.len());
        Ok(Self { tag, cursor, numbers })
    }
}
