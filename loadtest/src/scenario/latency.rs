//! `latency`: how long an event takes from the webhook to a subscriber, measured by one clock.
//! Invariant: each posted run arrives once, offsets have no hole, and what was answered before
//! another was sent also arrives before it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use campanile::domain::cursor::Cursor;
use campanile::domain::position::Position;
use clap::Args;
use serde_json::Value;
use testkit::http::{self, Answer, Client, RequestBuilder as _};
use testkit::payload::{OWNER, Payloads};
use testkit::sse::{Events, Sse};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep_until, timeout};

use super::{Shape, count, percentile};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::stats::{Histogram, Timeline};

const CHANNEL: &str = "repo:acme/r0";
/// A timer may be late by as much as this, so the rest of the way is waited for without sleeping.
const TIMER: Duration = Duration::from_millis(2);

/// Posts webhooks at a fixed rate and measures when their events reach an SSE subscriber.
///
/// Webhooks are due on a schedule, and latency counts from when they were due, so a server that
/// stalls is charged for everything that waited. Writer and reader share one clock. The floor
/// appends the body to a file, syncs it, and writes an event.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest latency
  loadtest latency --rate 1000 --seconds 30 --html latency.html
  loadtest latency --url http://127.0.0.1:8080 --secret S --jwt-secret J")]
#[group(skip)]
pub struct Options {
    /// Webhooks a second.
    #[arg(long, default_value_t = 200, value_parser = count(1..=10_000))]
    rate: usize,
    /// For how long.
    #[arg(long, default_value_t = 10, value_parser = count(1..=600))]
    seconds: usize,
    /// Instead of --seconds: this many webhooks.
    #[arg(long, value_parser = count(1..=1_000_000))]
    events: Option<usize>,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 1, value_parser = count(0..=60))]
    warmup: usize,
    /// Connections that take turns in posting.
    #[arg(long, default_value_t = 8, value_parser = count(1..=256))]
    connections: usize,
    /// Seconds to wait for the last events.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    grace: u64,
    #[command(flatten)]
    shape: Shape,
}

/// A run that was posted and accepted.
#[derive(Debug, Clone, Copy)]
struct Posted {
    run: u64,
    /// By the schedule.
    due: Instant,
    /// Just before its request was written.
    sent: Instant,
    /// Just after its 202 was read.
    answered: Instant,
    /// After the warm-up.
    counts: bool,
}

#[derive(Debug)]
struct Arrival {
    at: Instant,
    /// Of `workflow:…` events.
    run: Option<u64>,
    position: Position,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { rate, connections, shape, .. } = self;
        format!(
            "latency: {} webhooks a round, {rate} /s over {connections} connections, {} bytes",
            self.count(),
            shape.size
        )
    }

    fn connections(&self) -> usize {
        self.connections
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        // The posters wait for the moment that is due without sleeping.
        session.meter.spin();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.post_and_listen(session))
    }
}

impl Options {
    /// How many webhooks are counted.
    fn count(&self) -> usize {
        self.events.unwrap_or(self.rate * self.seconds)
    }

    async fn post_and_listen(&self, session: &Session) -> Result<Vec<Figure>> {
        let events = subscribe(session).await?;
        let (arrive, mut arrived) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(events, arrive));
        let watch = session.meter.start();
        let posted = self.post(session).await?;
        let cost = session.meter.finish(watch);
        let grace = Duration::from_secs(self.grace);
        let mut arrivals = Vec::with_capacity(posted.len());
        let mut runs = 0;
        while runs < posted.len() {
            match timeout(grace, arrived.recv()).await {
                Ok(Some(arrival)) => {
                    runs += usize::from(arrival.run.is_some());
                    arrivals.push(arrival);
                }
                Ok(None) => bail!("the stream ended: {:#}", reader.await?.err().context("without a reason")?),
                Err(_) => break,
            }
        }
        // What should not come would come about now.
        while let Ok(Some(arrival)) = timeout(Duration::from_millis(300), arrived.recv()).await {
            arrivals.push(arrival);
        }
        reader.abort();

        verify(&posted, &arrivals)?;
        let mut figures = self.figures(session, &posted, &arrivals)?;
        if let Some(used) = cost.server {
            figures.push(figure("server CPU per webhook, µs", used * 1e6 / posted.len() as f64));
        }
        Ok(figures)
    }

    /// Posts all runs on their schedule.
    async fn post(&self, session: &Session) -> Result<Vec<Posted>> {
        let target = session.target();
        let payloads = Arc::new(Payloads::new(&target, session.webhook_secret()?, 1, self.shape.size)?);
        let warmup = if self.events.is_some() { 0 } else { self.warmup * self.rate };
        let count = warmup + self.count();
        let connections = self.connections.min(count);
        let mut ready = Vec::new();
        for _ in 0..connections {
            ready.push(Client::connect(target.address).await?);
        }
        let start = Instant::now() + Duration::from_millis(20);
        let mut posters = JoinSet::new();
        for (turn, client) in ready.into_iter().enumerate() {
            let rate = self.rate as f64;
            let due = move |number: usize| start + Duration::from_secs_f64(number as f64 / rate);
            let turns = (turn..count).step_by(connections).map(move |number| (due(number), number >= warmup));
            posters.spawn(post_in_turn(client, payloads.clone(), turns.collect()));
        }
        let mut posted = Vec::with_capacity(count);
        while let Some(some) = posters.join_next().await {
            posted.extend(some??);
        }
        Ok(posted)
    }

    fn figures(&self, session: &Session, posted: &[Posted], arrivals: &[Arrival]) -> Result<Vec<Figure>> {
        let arrived: HashMap<u64, Instant> = arrivals.iter().filter_map(|a| Some((a.run?, a.at))).collect();
        let [mut from_due, mut from_answered, mut late] = [(); 3].map(|()| Histogram::new());
        let counted = || posted.iter().filter(|posted| posted.counts);
        let began = counted().map(|posted| posted.due).min().context("nothing was posted")?;
        let mut timeline = Timeline::since(began);
        let mut overtook = 0_usize;
        for Posted { run, due, sent, answered, .. } in counted() {
            let at = arrived[run];
            from_due.record(at - *due);
            // An event may well arrive before the answer: that counts as zero.
            from_answered.record(at.saturating_duration_since(*answered));
            overtook += usize::from(at < *answered);
            late.record(*sent - *due);
            timeline.count(at, 1);
        }
        session.meter.observe("from due to event", &from_due);
        session.meter.observe_over_time("events", timeline);
        let finished = counted().map(|posted| posted.answered).max().unwrap_or(began);
        let (count, rate) = (self.count() as f64, self.rate as f64);
        super::warn_if_missed(session, rate, count / (finished - began).as_secs_f64().max(count / rate));
        Ok(vec![
            figure("latency p50, ms", percentile(&from_due, 50)?),
            figure("latency p99, ms", percentile(&from_due, 99)?),
            aside("latency max, ms", percentile(&from_due, 100)?),
            aside("from 202 p99, ms", percentile(&from_answered, 99)?),
            aside("before their 202, %", overtook as f64 * 100.0 / count),
            aside("behind schedule p99, ms", percentile(&late, 99)?),
        ])
    }
}

/// Opens the stream. The server has subscribed before it answers.
async fn subscribe(session: &Session) -> Result<Events> {
    let request = http::get(&format!("/api/events/stream?channels={CHANNEL}"))
        .header("Accept", "text/event-stream")
        .bearer(&session.token(0, Some(OWNER)))
        .with("");
    let stream = http::open(session.address, request).await?;
    if stream.status() != 200 {
        let answer = Answer::read(stream).await?;
        bail!("the stream was refused: {} {}", answer.status, answer.excerpt());
    }
    Ok(Events::of(stream))
}

async fn read(mut events: Events, arrive: mpsc::UnboundedSender<Arrival>) -> Result<()> {
    while let Some(event) = events.next().await? {
        // What only says where the stream begins has no data.
        if event.data.is_some() && arrive.send(Arrival::read(event, Instant::now())?).is_err() {
            return Ok(());
        }
    }
    bail!("the server closed it")
}

impl Arrival {
    fn read(event: Sse, at: Instant) -> Result<Self> {
        let [id, event, data] = [event.id, event.event, event.data].map(Option::unwrap_or_default);
        ensure!(!event.starts_with("stream:"), "the server said {event}: {data}");
        let position = match Cursor::parse(&id).with_context(|| format!("{event} has the id {id:?}"))? {
            Cursor::One(position) => position,
            Cursor::Many(all) => {
                let of_channel = all.into_iter().find(|(channel, _)| channel.as_str() == CHANNEL);
                of_channel.with_context(|| format!("{id:?} is of another channel"))?.1
            }
        };
        let data: Value =
            serde_json::from_str(&data).with_context(|| format!("{event} is not JSON: {data:?}"))?;
        let run = data["data"]["runId"].as_u64().filter(|_| event.starts_with("workflow:"));
        Ok(Self { at, run, position })
    }
}

async fn post_in_turn(
    mut client: Client,
    payloads: Arc<Payloads>,
    turns: Vec<(Instant, bool)>,
) -> Result<Vec<Posted>> {
    let mut posted = Vec::with_capacity(turns.len());
    for (due, counts) in turns {
        let (delivery, request) = payloads.next_request();
        wait_until(due).await;
        let sent = Instant::now();
        let answer = client.send(request).await?;
        let answered = Instant::now();
        ensure!(answer.status == 202, "not 202: {} {}", answer.status, answer.excerpt());
        posted.push(Posted { run: delivery.run_id, due, sent, answered, counts });
    }
    Ok(posted)
}

/// A timer of a millisecond's precision would be late by as much as there is to measure.
async fn wait_until(due: Instant) {
    if let Some(early) = due.checked_sub(TIMER).filter(|early| *early > Instant::now()) {
        sleep_until(early.into()).await;
    }
    while Instant::now() < due {
        yield_now().await;
    }
}

fn verify(posted: &[Posted], arrivals: &[Arrival]) -> Result<()> {
    let by_run: HashMap<u64, &Posted> = posted.iter().map(|p| (p.run, p)).collect();
    let mut seen = HashMap::new();
    let mut before: Option<&Position> = None;
    let mut latest_sent: Option<&Posted> = None;
    for (index, arrival) in arrivals.iter().enumerate() {
        let position = &arrival.position;
        if let Some(before) = before {
            let follows = position.epoch == before.epoch && position.offset == before.offset + 1;
            ensure!(follows, "{position} came after {before}");
        }
        before = Some(position);
        let Some(run) = arrival.run else { continue };
        if let Some(first) = seen.insert(run, index) {
            bail!("run {run} came twice, at {} and at {position}", arrivals[first].position);
        }
        let Some(this) = by_run.get(&run) else { continue };
        if let Some(other) = latest_sent.filter(|other| this.answered < other.sent) {
            bail!("run {run} was answered before run {} was sent, but came after it", other.run);
        }
        if latest_sent.is_none_or(|other| other.sent < this.sent) {
            latest_sent = Some(this);
        }
    }
    let missing: Vec<u64> = posted.iter().map(|p| p.run).filter(|run| !seen.contains_key(run)).collect();
    ensure!(
        missing.is_empty(),
        "{} of {} never came, the first: run {}",
        missing.len(),
        posted.len(),
        missing[0]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use campanile::domain::position::Epoch;

    /// Runs sent one after the other, each answered before the next.
    fn posted(runs: &[u64]) -> Vec<Posted> {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let one = |(n, run): (usize, &u64)| {
            let n = n as u64;
            Posted { run: *run, due: at(n * 10), sent: at(n * 10), answered: at(n * 10 + 5), counts: true }
        };
        runs.iter().enumerate().map(one).collect()
    }

    fn arrivals(runs: &[(u64, u64)]) -> Vec<Arrival> {
        let epoch = Epoch::parse("e").unwrap();
        let one = |(offset, run): &(u64, u64)| Arrival {
            at: Instant::now(),
            run: Some(*run),
            position: Position::new(epoch.clone(), *offset),
        };
        runs.iter().map(one).collect()
    }

    fn verdict(sent: &[u64], came: &[(u64, u64)]) -> String {
        verify(&posted(sent), &arrivals(came)).map_or_else(|e| e.to_string(), |()| "kept".into())
    }

    #[test]
    fn the_promise_is_kept_or_the_run_fails() {
        assert_eq!(verdict(&[1, 2, 3], &[(7, 1), (8, 2), (9, 3)]), "kept");
        assert_eq!(verdict(&[1, 2], &[(7, 99), (8, 1), (9, 2)]), "kept", "others may use the channel too");
        assert_eq!(verdict(&[1, 2], &[(7, 1)]), "1 of 2 never came, the first: run 2");
        assert_eq!(verdict(&[1, 2], &[(7, 1), (9, 2)]), "e.9 came after e.7");
        assert_eq!(verdict(&[1, 2], &[(7, 1), (7, 2)]), "e.7 came after e.7");
        assert_eq!(verdict(&[1, 2], &[(7, 1), (8, 1), (9, 2)]), "run 1 came twice, at e.7 and at e.8");
        assert_eq!(
            verdict(&[1, 2], &[(7, 2), (8, 1)]),
            "run 1 was answered before run 2 was sent, but came after it"
        );
    }

    #[test]
    fn what_overlapped_may_come_in_either_order() {
        let mut both = posted(&[1, 2]);
        both[0].answered = both[1].answered;
        verify(&both, &arrivals(&[(7, 2), (8, 1)])).unwrap();
    }

    #[test]
    fn an_event_is_known_by_its_run_and_its_position() {
        let message = |id: &str, event: &str, data: &str| {
            Arrival::read(Sse::default().id(id).event(event).data(data), Instant::now())
        };
        let arrival = message("e.4", "workflow:completed", r#"{"data":{"runId":12}}"#).unwrap();
        assert_eq!((arrival.run, arrival.position.offset), (Some(12), 4));
        assert_eq!(message("e.5", "repo:added", "{}").unwrap().run, None);
        assert!(message("e.5", "stream:reset", "{}").is_err());
        assert!(message("", "workflow:completed", "{}").is_err());
    }
}
