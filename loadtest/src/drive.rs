//! The posters behind `webhooks` and `flood`: so many connections, each posting its next delivery
//! when the last one is answered, or when it is due. Counts only what is answered inside the measured
//! time; every answer is checked, also before and after it.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{interval_at, sleep, sleep_until};

use crate::http::Connection;
use crate::payload::{Delivery, OWNER, Payloads};
use crate::stats::{Latencies, Timeline};
use crate::target::Target;

/// A source whose delivery was not taken sends it again after this.
const PAUSE: Duration = Duration::from_millis(50);
/// How often somebody hears of progress.
const TICK: Duration = Duration::from_millis(250);
/// A timer is late by up to this; the rest of the way is waited for without sleeping.
const TIMER: Duration = Duration::from_millis(2);

/// What to do, for how long.
pub struct Load {
    /// The server.
    pub target: Target,
    /// What to post.
    pub payloads: Payloads,
    /// Connections.
    pub concurrency: usize,
    /// Time before the measured time.
    pub warmup: Duration,
    /// When the measured part is over.
    pub limit: Limit,
    /// Deliveries a second, due on a schedule; otherwise as fast as they are answered.
    pub rate: Option<f64>,
    /// What an answer means.
    pub judge: fn(u16) -> Verdict,
    /// After a lost connection, send the same delivery again; otherwise that connection is over.
    pub reconnect: bool,
    /// Gets a line for each accepted delivery, written before the next one is posted.
    pub acked: Option<Mutex<File>>,
}

/// When the measured part is over.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// After a time.
    Time(Duration),
    /// After so many deliveries.
    Deliveries(u64),
}

/// A moment of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The measured part begins.
    Start,
    /// So many have been accepted in all.
    Tick(u64),
    /// The measured part is over.
    End,
}

/// What the status of an answer means.
pub enum Verdict {
    /// The server has it.
    Accepted,
    /// Not now: the same delivery is sent again.
    Later,
    /// Against the promise: the connection is over, and the run has failed.
    Wrong,
}

/// What came of it.
pub struct Outcome {
    /// Accepted deliveries, of the whole run.
    pub accepted: u64,
    /// Of those within the measured time, from when they were posted, or due.
    pub latencies: Latencies,
    /// How long after they were due they were posted, if they were.
    pub late: Latencies,
    /// Accepted within the measured time.
    pub timeline: Timeline,
    /// Put off by the server.
    pub later: u64,
    /// Wrong answers, with status and body of the first.
    pub wrong: Troubles,
    /// Connections lost with an answer owing, or not made at all, with the first reason.
    pub lost: Troubles,
}

/// A count, and the first of them.
#[derive(Default)]
pub struct Troubles {
    /// How many.
    pub count: u64,
    /// What the first one was.
    pub first: String,
}

/// Runs it to the end, and tells `hear` of the moments on the way.
pub async fn run(load: Load, mut hear: impl FnMut(Moment)) -> Result<Outcome> {
    let start = Instant::now() + load.warmup;
    let progress = Arc::new(Progress::default());
    let mut total = Outcome::since(start);
    let limit = load.limit;
    let load = Arc::new(load);
    let mut workers = JoinSet::new();
    for _ in 0..load.concurrency {
        workers.spawn(Worker::new(load.clone(), start, progress.clone()).run());
    }

    let mut ticks = interval_at(Instant::now().into(), TICK);
    let (mut started, mut ended) = (false, false);
    while !workers.is_empty() || !ended {
        let edge = match limit {
            _ if !started => Some(start),
            Limit::Time(time) if !ended => Some(start + time),
            _ => None,
        };
        tokio::select! {
            Some(outcome) = workers.join_next(), if !workers.is_empty() => {
                total.merge(outcome.context("a worker panicked")?);
            }
            () = sleep_until(edge.unwrap_or(start).into()), if edge.is_some() => {
                hear(if started { Moment::End } else { Moment::Start });
                (started, ended) = (true, started);
            }
            _ = ticks.tick() => hear(Moment::Tick(progress.accepted.load(Ordering::Relaxed))),
        }
        // Workers that are gone early have failed, or done all there was to do.
        if workers.is_empty() && started && !ended && !matches!(limit, Limit::Time(_)) {
            hear(Moment::End);
            ended = true;
        }
    }
    Ok(total)
}

/// What all connections have in common while they run.
#[derive(Default)]
struct Progress {
    taken: AtomicU64,
    accepted: AtomicU64,
}

/// One connection's loop.
struct Worker {
    load: Arc<Load>,
    began: Instant,
    start: Instant,
    end: Option<Instant>,
    progress: Arc<Progress>,
    connection: Connection,
    request: Vec<u8>,
    body: Vec<u8>,
    outcome: Outcome,
}

impl Worker {
    fn new(load: Arc<Load>, start: Instant, progress: Arc<Progress>) -> Self {
        Self {
            began: Instant::now(),
            start,
            end: if let Limit::Time(time) = load.limit { Some(start + time) } else { None },
            progress,
            connection: Connection::to(&load.target),
            request: Vec::new(),
            body: Vec::new(),
            outcome: Outcome::since(start),
            load,
        }
    }

    async fn run(mut self) -> Outcome {
        while !self.is_over() {
            let number = self.progress.taken.fetch_add(1, Ordering::Relaxed);
            if matches!(self.load.limit, Limit::Deliveries(count) if number >= count) {
                break;
            }
            let due = self.load.rate.map(|rate| self.began + Duration::from_secs_f64(number as f64 / rate));
            if let Some(due) = due {
                if self.end.is_some_and(|end| due >= end) {
                    break;
                }
                wait_until(due).await;
            }
            let delivery = self.load.payloads.next(&mut self.request);
            if !self.deliver(delivery, due).await {
                break;
            }
        }
        self.outcome
    }

    fn is_over(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Posts until the delivery is accepted or time is up; false if this connection is over.
    async fn deliver(&mut self, delivery: Delivery, due: Option<Instant>) -> bool {
        loop {
            match self.post().await {
                Ok((status, began)) => match (self.load.judge)(status) {
                    Verdict::Accepted => {
                        self.accepted(delivery, began, due);
                        return true;
                    }
                    Verdict::Later => self.outcome.later += 1,
                    Verdict::Wrong => {
                        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]);
                        self.outcome.wrong.add(format!("{status} {body}"));
                        return false;
                    }
                },
                Err(error) => {
                    self.outcome.lost.add(format!("{error:#}"));
                    if !self.load.reconnect {
                        return false;
                    }
                }
            }
            if self.end.is_some_and(|end| Instant::now() + PAUSE >= end) {
                return false;
            }
            sleep(PAUSE).await;
        }
    }

    /// Connecting, when it is needed, does not count as latency of the answer.
    async fn post(&mut self) -> Result<(u16, Instant)> {
        self.connection.open().await?;
        let began = Instant::now();
        Ok((self.connection.exchange(&self.request, &mut self.body).await?, began))
    }

    fn accepted(&mut self, delivery: Delivery, began: Instant, due: Option<Instant>) {
        let now = Instant::now();
        self.outcome.accepted += 1;
        self.progress.accepted.fetch_add(1, Ordering::Relaxed);
        if now >= self.start && self.end.is_none_or(|end| now < end) {
            self.outcome.timeline.count(now, 1);
            self.outcome.latencies.record(now - due.unwrap_or(began));
            if let Some(due) = due {
                self.outcome.late.record(began.saturating_duration_since(due));
            }
        }
        if let Some(file) = &self.load.acked {
            let Delivery { id, repo, run_id } = delivery;
            let line = format!("{id}\t{OWNER}/r{repo}\t{run_id}\n");
            let mut file = file.lock().expect("nobody panics while writing a line");
            file.write_all(line.as_bytes()).expect("without its line an accepted delivery proves nothing");
        }
    }
}

/// A timer of a millisecond's precision would be late by as much as there is to measure.
pub async fn wait_until(due: Instant) {
    if let Some(early) = due.checked_sub(TIMER).filter(|early| *early > Instant::now()) {
        sleep_until(early.into()).await;
    }
    while Instant::now() < due {
        yield_now().await;
    }
}

impl Outcome {
    fn since(start: Instant) -> Self {
        Self {
            accepted: 0,
            latencies: Latencies::default(),
            late: Latencies::default(),
            timeline: Timeline::since(start),
            later: 0,
            wrong: Troubles::default(),
            lost: Troubles::default(),
        }
    }

    fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.timeline.merge(&other.timeline);
        self.latencies.merge(other.latencies);
        self.late.merge(other.late);
        self.later += other.later;
        self.wrong.merge(other.wrong);
        self.lost.merge(other.lost);
    }
}

impl Troubles {
    fn add(&mut self, what: String) {
        self.merge(Self { count: 1, first: what });
    }

    fn merge(&mut self, other: Self) {
        if self.count == 0 {
            self.first = other.first;
        }
        self.count += other.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each request by what `answer` makes of its number; `None` closes the connection.
    /// Gives the delivery ids as they came.
    async fn server(answer: fn(usize) -> Option<&'static str>) -> (Target, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::from(listener.local_addr().unwrap());
        let ids = Arc::new(Mutex::new(Vec::new()));
        let seen = ids.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = Vec::new();
                while socket.read_buf(&mut request).await.is_ok_and(|count| count > 0) {
                    // Only the end of the body looks like this.
                    if !request.ends_with(b"\"}}") {
                        continue;
                    }
                    let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
                    let id = text.split("X-GitHub-Delivery: ").nth(1).unwrap()[..36].to_owned();
                    let number = {
                        let mut ids = ids.lock().unwrap();
                        ids.push(id);
                        ids.len()
                    };
                    let Some(status) = answer(number) else { break };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        (target, seen)
    }

    fn load(target: &Target, reconnect: bool, judge: fn(u16) -> Verdict) -> Load {
        Load {
            target: target.clone(),
            payloads: Payloads::new(target, "s", 1, 0).unwrap(),
            concurrency: 1,
            warmup: Duration::ZERO,
            limit: Limit::Deliveries(3),
            rate: None,
            judge,
            reconnect,
            acked: None,
        }
    }

    #[tokio::test]
    async fn what_was_not_taken_is_sent_again_under_the_same_id() {
        let (target, ids) = server(|number| match number {
            2 => None,
            3 => Some("503 Service Unavailable"),
            _ => Some("202 Accepted"),
        })
        .await;
        let judge = |status| if status == 202 { Verdict::Accepted } else { Verdict::Later };
        let mut edges = Vec::new();
        let hear = |moment| match moment {
            Moment::Tick(_) => {}
            edge => edges.push(edge),
        };
        let outcome = run(load(&target, true, judge), hear).await.unwrap();
        let ids = ids.lock().unwrap();
        assert!(ids[0] != ids[1] && ids[1] == ids[2] && ids[2] == ids[3] && ids[3] != ids[4]);
        assert_eq!((outcome.lost.count, outcome.later, outcome.wrong.count), (1, 1, 0));
        assert_eq!((outcome.accepted, ids.len(), edges), (3, 5, vec![Moment::Start, Moment::End]));
    }

    #[tokio::test]
    async fn a_wrong_answer_ends_the_run_with_its_body() {
        let (target, ids) = server(|_| Some("401 Unauthorized")).await;
        let outcome = run(load(&target, true, |_| Verdict::Wrong), |_| ()).await.unwrap();
        assert_eq!((outcome.wrong.count, outcome.wrong.first.as_str()), (1, "401 {}"));
        assert_eq!((outcome.accepted, ids.lock().unwrap().len()), (0, 1));
    }

    #[tokio::test]
    async fn latency_counts_from_when_a_delivery_was_due() {
        let (target, _) = server(|_| Some("202 Accepted")).await;
        let judge = |_| Verdict::Accepted;
        // All are due at once, and one connection posts them one by one: the last waits for all.
        let outcome = run(Load { rate: Some(1e9), ..load(&target, true, judge) }, |_| ()).await.unwrap();
        let (whole, late) = (outcome.latencies.summary().unwrap(), outcome.late.summary().unwrap());
        assert_eq!((whole.count, late.count), (3, 3));
        assert!(whole.max > late.max && late.max > late.p50, "{whole:?} {late:?}");
    }
}
