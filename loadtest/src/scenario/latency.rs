//! `latency`: how long an event takes from the webhook to a subscriber, measured by one clock.
//! Invariant: each posted run arrives once, offsets have no hole, and what was answered before
//! another was sent also arrives before it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use campanile::domain::cursor::Cursor;
use campanile::domain::position::Position;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::Shape;
use crate::http::{Connection, Stream};
use crate::payload::Payloads;
use crate::server::{self, Server};
use crate::sse::{Message, Parser};
use crate::stats::Latencies;

const CHANNEL: &str = "repo:acme/r0";

/// Posts webhooks at a fixed rate and measures when their events reach an SSE subscriber.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    server: server::Options,
    /// Webhooks a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// For how long.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Connections that take turns in posting.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    connections: u16,
    /// Seconds to wait for the last events.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    grace: u64,
    #[command(flatten)]
    shape: Shape,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A run that was posted and accepted.
#[derive(Debug, Clone, Copy)]
struct Posted {
    run: u64,
    /// Just before its request was written.
    sent: Instant,
    /// Just after its 202 was read.
    answered: Instant,
    /// How far behind the schedule it was sent.
    late: Duration,
}

/// An event of the stream.
#[derive(Debug)]
struct Arrival {
    at: Instant,
    /// Of `workflow:…` events.
    run: Option<u64>,
    position: Position,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let server = options.server.server().await?;
    let stream = subscribe(&server).await?;
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let reader = tokio::spawn(read(stream, arrive));

    let posted = post(&options, &server).await?;
    let mut arrivals = Vec::with_capacity(posted.len());
    let runs = |arrivals: &[Arrival]| arrivals.iter().filter(|a| a.run.is_some()).count();
    while runs(&arrivals) < posted.len() {
        match timeout(Duration::from_secs(options.grace), arrived.recv()).await {
            Ok(Some(arrival)) => arrivals.push(arrival),
            Ok(None) => bail!("the stream ended: {:#}", reader.await?.err().context("without a reason")?),
            Err(_) => break,
        }
    }
    // What should not come would come about now.
    while let Ok(Some(arrival)) = timeout(Duration::from_millis(300), arrived.recv()).await {
        arrivals.push(arrival);
    }
    reader.abort();

    judge(&posted, &arrivals)?;
    report(&options, server, &posted, &arrivals).await
}

/// Opens the stream. The server has subscribed before it answers.
async fn subscribe(server: &Server) -> Result<Stream> {
    let request = format!(
        "GET /api/events/stream?channels={CHANNEL} HTTP/1.1\r\nHost: {}\r\n\
         Accept: text/event-stream\r\nAuthorization: Bearer {}\r\n\r\n",
        server.target.host,
        server.token()?
    );
    let (status, mut stream) = Connection::to(&server.target).stream(request.as_bytes()).await?;
    if status != 200 {
        let mut body = Vec::new();
        while body.len() < 500 && stream.next(&mut body).await? {}
        bail!("the stream was refused: {status} {}", String::from_utf8_lossy(&body));
    }
    Ok(stream)
}

async fn read(mut stream: Stream, arrive: mpsc::UnboundedSender<Arrival>) -> Result<()> {
    let (mut parser, mut input) = (Parser::default(), Vec::new());
    while stream.next(&mut input).await? {
        let at = Instant::now();
        for message in parser.take(&mut input) {
            if arrive.send(Arrival::read(&message, at)?).is_err() {
                return Ok(());
            }
        }
    }
    bail!("the server closed it")
}

impl Arrival {
    fn read(message: &Message, at: Instant) -> Result<Self> {
        let Message { id, event, data } = message;
        ensure!(!event.starts_with("stream:"), "the server said {event}: {data}");
        let position = match Cursor::parse(id).with_context(|| format!("{event} has the id {id:?}"))? {
            Cursor::One(position) => position,
            Cursor::Many(all) => {
                let of_channel = all.into_iter().find(|(channel, _)| channel.as_str() == CHANNEL);
                of_channel.with_context(|| format!("{id:?} is of another channel"))?.1
            }
        };
        let data: Value =
            serde_json::from_str(data).with_context(|| format!("{event} is not JSON: {data:?}"))?;
        let run = data["data"]["runId"].as_u64().filter(|_| event.starts_with("workflow:"));
        Ok(Self { at, run, position })
    }
}

/// Posts all runs on their schedule.
async fn post(options: &Options, server: &Server) -> Result<Vec<Posted>> {
    let payloads = Arc::new(Payloads::new(&server.target, &server.secret, 1, options.shape.size as usize)?);
    let count = u64::from(options.rate) * u64::from(options.seconds);
    let connections = u64::from(options.connections).min(count);
    let mut posters = JoinSet::new();
    let mut ready = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::to(&server.target);
        connection.open().await?;
        ready.push(connection);
    }
    let start = Instant::now() + Duration::from_millis(20);
    for (turn, connection) in ready.into_iter().enumerate() {
        let turns = (turn as u64..count).step_by(connections as usize);
        let due = turns.map({
            let rate = f64::from(options.rate);
            move |number| start + Duration::from_secs_f64(number as f64 / rate)
        });
        posters.spawn(post_in_turn(connection, payloads.clone(), due.collect()));
    }
    let mut posted = Vec::with_capacity(count as usize);
    while let Some(some) = posters.join_next().await {
        posted.extend(some??);
    }
    Ok(posted)
}

async fn post_in_turn(
    mut connection: Connection,
    payloads: Arc<Payloads>,
    due: Vec<Instant>,
) -> Result<Vec<Posted>> {
    let (mut request, mut body) = (Vec::new(), Vec::new());
    let mut posted = Vec::with_capacity(due.len());
    for due in due {
        let run = payloads.next(&mut request).run_id;
        sleep_until(due.into()).await;
        let sent = Instant::now();
        let status = connection.exchange(&request, &mut body).await?;
        let answered = Instant::now();
        ensure!(status == 202, "not 202: {status} {}", String::from_utf8_lossy(&body));
        posted.push(Posted { run, sent, answered, late: sent - due });
    }
    Ok(posted)
}

/// Checks the invariant.
fn judge(posted: &[Posted], arrivals: &[Arrival]) -> Result<()> {
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

async fn report(options: &Options, server: Server, posted: &[Posted], arrivals: &[Arrival]) -> Result<()> {
    let arrived: HashMap<u64, Instant> = arrivals.iter().filter_map(|a| Some((a.run?, a.at))).collect();
    let (mut from_sent, mut from_answered, mut late) =
        (Latencies::default(), Latencies::default(), Latencies::default());
    let mut overtook = 0_usize;
    for Posted { run, sent, answered, late: behind } in posted {
        let at = arrived[run];
        from_sent.record(at - *sent);
        // An event may well arrive before the answer: that counts as zero.
        from_answered.record(at.saturating_duration_since(*answered));
        overtook += usize::from(at < *answered);
        late.record(*behind);
    }
    let summaries = [from_sent, from_answered, late].map(Latencies::summary);
    let [Some(from_sent), Some(from_answered), Some(late)] = summaries else { bail!("nothing was measured") };

    println!(
        "latency    {} events at {} /s over {} connections",
        posted.len(),
        options.rate,
        options.connections
    );
    println!("from POST  {from_sent}");
    println!("from 202   {from_answered}  ({overtook} came before their 202)");
    println!("schedule   {late}");
    let server = server.finish().await?;
    let report = json!({
        "scenario": "latency", "rate": options.rate, "seconds": options.seconds, "events": posted.len(),
        "from_post_ms": from_sent.to_json(), "from_202_ms": from_answered.to_json(),
        "before_202": overtook, "behind_schedule_ms": late.to_json(), "server": server,
    });
    super::write_json(options.json.as_ref(), &report)
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
            Posted { run: *run, sent: at(n * 10), answered: at(n * 10 + 5), late: Duration::ZERO }
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
        judge(&posted(sent), &arrivals(came)).map_or_else(|e| e.to_string(), |()| "kept".into())
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
        judge(&both, &arrivals(&[(7, 2), (8, 1)])).unwrap();
    }

    #[test]
    fn an_event_is_known_by_its_run_and_its_position() {
        let message = |id: &str, event: &str, data: &str| {
            let message = Message { id: id.into(), event: event.into(), data: data.into() };
            Arrival::read(&message, Instant::now())
        };
        let arrival = message("e.4", "workflow:completed", r#"{"data":{"runId":12}}"#).unwrap();
        assert_eq!((arrival.run, arrival.position.offset), (Some(12), 4));
        assert_eq!(message("e.5", "repo:added", "{}").unwrap().run, None);
        assert!(message("e.5", "stream:reset", "{}").is_err());
        assert!(message("", "workflow:completed", "{}").is_err());
    }
}
