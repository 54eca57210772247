//! Publishers: signed webhooks, and numbered publications with idempotency keys. One thing at a time
//! each, sent again under the same name until it is accepted; now and then one gives up after an
//! answer that left it open, and then the event may be in the log or not. What was accepted goes
//! into the book. Any other refusal is a breach.

use std::sync::Arc;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;

use super::random::Random;
use crate::http::Connection;
use crate::payload::Payloads;
use crate::target::Target;

/// Milliseconds between an answer and the next event of the same publisher.
const BETWEEN: std::ops::Range<u64> = 1..40;
/// Milliseconds before the same is sent again.
const AGAIN: std::ops::Range<u64> = 5..60;
/// One in so many open questions is left open.
const GIVES_UP: u64 = 25;
/// One in so many events goes over a connection of its own, perhaps to another node.
const MOVES: u64 = 20;

/// What an event is known by, wherever it turns up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// The run of a webhook.
    Run(u64),
    /// A publisher and its count.
    Number(u32, u32),
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered 2xx; publications are answered with their offset.
    Accepted(Option<u32>),
    /// Given up after an answer that left it open.
    Unknown,
}

/// One event of a publisher.
#[derive(Debug, Clone)]
pub struct Sent {
    /// What it is known by.
    pub name: Name,
    /// Where it has to be.
    pub channels: Vec<String>,
    /// A webhook's delivery.
    pub delivery: Option<Uuid>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What one publisher has done, in its order.
#[derive(Debug, Default)]
pub struct Book {
    /// All that it sent.
    pub sent: Vec<Sent>,
    /// Answers that should never be.
    pub refusals: Vec<String>,
}

/// What all publishers together have come to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Progress {
    /// Events that are settled.
    pub settled: u64,
    /// Attempts that were not accepted.
    pub put_off: u64,
}

/// What publishers have in common.
#[derive(Clone)]
pub struct Press {
    /// The way to the nodes.
    pub door: Target,
    /// For the server API.
    pub api_key: String,
    /// Webhooks.
    pub payloads: Arc<Payloads>,
    /// Channels of publications.
    pub channels: Vec<String>,
    /// The most that is added to a publication, in bytes.
    pub padding: u64,
    /// Told after each event.
    pub progress: watch::Sender<Progress>,
    /// How many times longer than usual the pauses are.
    pub pace: u32,
    /// The nemesis has done all it wanted: whoever has published its share may end.
    pub enough: watch::Receiver<bool>,
    /// Nobody waits any longer.
    pub over: watch::Receiver<bool>,
}

enum Answer {
    Accepted(Option<u32>),
    /// Not now, or nobody knows: the same again is safe.
    Open,
    Refused(String),
}

#[derive(Deserialize)]
struct Published {
    result: Option<Place>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Place {
    offset: Option<u32>,
}

impl Press {
    /// Publishes `share` webhooks at least.
    pub async fn webhooks(self, share: u32, mut random: Random) -> Book {
        let (mut book, mut request, mut connection) = (Book::default(), Vec::new(), None);
        for _ in (0..).take_while(|count| self.goes_on(*count, share)) {
            let delivery = self.payloads.next(&mut request);
            let repo = format!("repo:{}/r{}", crate::payload::OWNER, delivery.repo);
            let judge = |status: u16, body: &[u8]| match status {
                200 | 202 => Answer::Accepted(None),
                // 408: this process was too slow, on a machine with a lot to do.
                408 | 429 | 500..=599 => Answer::Open,
                _ => Answer::Refused(said(status, body)),
            };
            let refusals = &mut book.refusals;
            let outcome = self.deliver(&request, judge, &mut random, &mut connection, refusals).await;
            let channels = vec![repo, format!("org:{}", crate::payload::OWNER)];
            let name = Name::Run(delivery.run_id);
            book.sent.push(Sent { name, channels, delivery: Some(delivery.id), outcome });
        }
        book
    }

    /// Publishes `share` numbered publications at least, as publisher `number`.
    pub async fn publications(self, number: u32, share: u32, mut random: Random) -> Book {
        let (mut book, mut connection) = (Book::default(), None);
        for count in (0..).take_while(|count| self.goes_on(*count, share)) {
            let channel = &self.channels[random.within(0..self.channels.len() as u64) as usize];
            let padding = "x".repeat(random.within(0..self.padding) as usize);
            let body = json!({
                "channel": channel, "idempotency_key": format!("{number}-{count}"),
                "data": { "publisher": number, "number": count, "padding": padding },
            })
            .to_string();
            let request = format!(
                "POST /api/publish HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                self.api_key,
                body.len()
            );
            let (request, refusals) = (request.as_bytes(), &mut book.refusals);
            let outcome = self.deliver(request, published, &mut random, &mut connection, refusals).await;
            let name = Name::Number(number, count);
            book.sent.push(Sent { name, channels: vec![channel.clone()], delivery: None, outcome });
        }
        book
    }

    fn goes_on(&self, count: u32, share: u32) -> bool {
        count < share || !*self.enough.borrow()
    }

    async fn deliver(
        &self,
        request: &[u8],
        judge: impl Fn(u16, &[u8]) -> Answer,
        random: &mut Random,
        connection: &mut Option<Connection>,
        refusals: &mut Vec<String>,
    ) -> Outcome {
        let mut body = Vec::new();
        if random.once_in(MOVES) {
            *connection = None;
        }
        let outcome = loop {
            let door = connection.get_or_insert_with(|| Connection::to(&self.door));
            match door.exchange(request, &mut body).await.map(|status| judge(status, &body)) {
                Ok(Answer::Accepted(offset)) => break Outcome::Accepted(offset),
                Ok(Answer::Refused(words)) => {
                    refusals.push(words);
                    break Outcome::Unknown;
                }
                Ok(Answer::Open) | Err(_) => {
                    *connection = None;
                    self.progress.send_modify(|progress| progress.put_off += 1);
                    if *self.over.borrow() || random.once_in(GIVES_UP) {
                        break Outcome::Unknown;
                    }
                    sleep(random.millis(AGAIN)).await;
                }
            }
        };
        self.progress.send_modify(|progress| progress.settled += 1);
        sleep(random.millis(BETWEEN) * self.pace).await;
        outcome
    }
}

fn published(status: u16, body: &[u8]) -> Answer {
    if matches!(status, 408 | 429 | 500..=599) {
        return Answer::Open;
    }
    let answer: Option<Published> = serde_json::from_slice(body).ok().filter(|_| status == 200);
    match answer {
        Some(Published { result: Some(place), error: None }) => Answer::Accepted(place.offset),
        // Internal, or too many requests: temporary.
        Some(Published { error: Some(error), .. })
            if [100, 111].contains(&error["code"].as_u64().unwrap_or(0)) =>
        {
            Answer::Open
        }
        _ => Answer::Refused(said(status, body)),
    }
}

fn said(status: u16, body: &[u8]) -> String {
    format!("publishing was answered {status} {}", String::from_utf8_lossy(&body[..body.len().min(200)]))
}

/// Waits until the progress is as wanted, or until there will be no more of it.
pub async fn until(
    progress: &mut watch::Receiver<Progress>,
    wanted: impl FnMut(&Progress) -> bool,
) -> Result<()> {
    progress.wait_for(wanted).await?;
    Ok(())
}
