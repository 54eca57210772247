//! Publishers: signed webhooks, and numbered publications with idempotency keys. One thing at a time
//! each, sent again under the same name until it is accepted; now and then one gives up after an
//! answer that left it open, and then the event may be in the log or not. Each keeps a record of what
//! became of its events. Any other refusal is a violation.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::http::{self, Answer, Client, Request, RequestBuilder as _};
use testkit::payload::{OWNER, Payloads};
use testkit::random::Random;
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;

/// Milliseconds between an answer and the next event of the same publisher.
const PAUSE: std::ops::Range<u64> = 1..40;
/// Milliseconds before the same is sent again.
const RETRY: std::ops::Range<u64> = 5..60;
/// One in so many open questions is left open.
const GIVES_UP: u32 = 25;
/// One in so many events goes over a connection of its own, perhaps to another node.
const MOVES: u32 = 20;

/// What an event is known by, wherever it turns up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// The run of a webhook.
    Run(u64),
    /// A publisher and its count.
    Number(u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered 2xx; publications are answered with their offset.
    Accepted(Option<u32>),
    /// Given up after an answer that left it open.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Sent {
    /// What it is known by.
    pub name: Name,
    /// Where it has to be.
    pub channels: Vec<String>,
    /// A webhook's delivery.
    pub delivery: Option<Uuid>,
    pub outcome: Outcome,
}

/// What one publisher has done, in its order.
#[derive(Debug, Default)]
pub struct Record {
    pub sent: Vec<Sent>,
    /// Answers that should never be.
    pub refusals: Vec<String>,
}

/// What all publishers together have come to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Progress {
    pub settled: u64,
    /// Attempts that were not accepted.
    pub put_off: u64,
}

#[derive(Clone)]
pub struct Context {
    pub address: SocketAddr,
    pub api_key: String,
    pub payloads: Arc<Payloads>,
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

enum Verdict {
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

impl Context {
    /// Publishes `share` webhooks at least.
    pub async fn webhooks(self, share: u32, mut random: Random) -> Record {
        let (mut record, mut client) = (Record::default(), Client::new(self.address));
        for _ in (0..).take_while(|count| self.goes_on(*count, share)) {
            let (delivery, request) = self.payloads.next_request();
            let judge = |answer: &Answer| match answer.status {
                200 | 202 => Verdict::Accepted(None),
                // 408: this process was too slow, on a machine with a lot to do.
                408 | 429 | 500..=599 => Verdict::Open,
                _ => refused(answer),
            };
            let outcome = self.deliver(request, judge, &mut random, &mut client, &mut record.refusals).await;
            let channels = vec![format!("repo:{OWNER}/r{}", delivery.repo), format!("org:{OWNER}")];
            let name = Name::Run(delivery.run_id);
            record.sent.push(Sent { name, channels, delivery: Some(delivery.id), outcome });
        }
        record
    }

    /// Publishes `share` numbered publications at least, as publisher `number`.
    pub async fn publications(self, number: u32, share: u32, mut random: Random) -> Record {
        let (mut record, mut client) = (Record::default(), Client::new(self.address));
        for count in (0..).take_while(|count| self.goes_on(*count, share)) {
            let channel = &self.channels[random.within(0..self.channels.len() as u64) as usize];
            let padding = "x".repeat(random.within(0..self.padding) as usize);
            let request = http::post("/api/publish").header("X-API-Key", &self.api_key).json(&json!({
                "channel": channel, "idempotency_key": format!("{number}-{count}"),
                "data": { "publisher": number, "number": count, "padding": padding },
            }));
            let outcome =
                self.deliver(request, published, &mut random, &mut client, &mut record.refusals).await;
            let name = Name::Number(number, count);
            record.sent.push(Sent { name, channels: vec![channel.clone()], delivery: None, outcome });
        }
        record
    }

    fn goes_on(&self, count: u32, share: u32) -> bool {
        count < share || !*self.enough.borrow()
    }

    async fn deliver(
        &self,
        request: Request,
        judge: impl Fn(&Answer) -> Verdict,
        random: &mut Random,
        client: &mut Client,
        refusals: &mut Vec<String>,
    ) -> Outcome {
        if random.once_in(MOVES) {
            *client = Client::new(self.address);
        }
        let outcome = loop {
            match client.send(request.clone()).await.map(|answer| judge(&answer)) {
                Ok(Verdict::Accepted(offset)) => break Outcome::Accepted(offset),
                Ok(Verdict::Refused(refusal)) => {
                    refusals.push(refusal);
                    break Outcome::Unknown;
                }
                Ok(Verdict::Open) | Err(_) => {
                    *client = Client::new(self.address);
                    self.progress.send_modify(|progress| progress.put_off += 1);
                    if *self.over.borrow() || random.once_in(GIVES_UP) {
                        break Outcome::Unknown;
                    }
                    sleep(random.millis(RETRY)).await;
                }
            }
        };
        self.progress.send_modify(|progress| progress.settled += 1);
        sleep(random.millis(PAUSE) * self.pace).await;
        outcome
    }
}

fn published(answer: &Answer) -> Verdict {
    if matches!(answer.status, 408 | 429 | 500..=599) {
        return Verdict::Open;
    }
    let body: Option<Published> = serde_json::from_slice(&answer.body).ok().filter(|_| answer.status == 200);
    match body {
        Some(Published { result: Some(place), error: None }) => Verdict::Accepted(place.offset),
        // Internal, or too many requests: temporary.
        Some(Published { error: Some(error), .. })
            if [100, 111].contains(&error["code"].as_u64().unwrap_or(0)) =>
        {
            Verdict::Open
        }
        _ => refused(answer),
    }
}

fn refused(answer: &Answer) -> Verdict {
    Verdict::Refused(format!("publishing was answered {} {}", answer.status, answer.excerpt()))
}

/// Waits until the progress is as wanted, or until there will be no more of it.
pub async fn until(
    progress: &mut watch::Receiver<Progress>,
    wanted: impl FnMut(&Progress) -> bool,
) -> Result<()> {
    progress.wait_for(wanted).await?;
    Ok(())
}
