//! The closed loop behind `webhooks` and `flood`: so many connections, each posting its next
//! delivery when the last one is answered. Counts only what is answered inside the measured time;
//! every answer is checked, also before and after it.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::http::Connection;
use crate::payload::{Delivery, OWNER, Payloads};
use crate::stats::Latencies;
use crate::target::Target;

/// A source whose delivery was not taken sends it again after this.
const PAUSE: Duration = Duration::from_millis(50);

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
    /// The measured time, in whole seconds.
    pub measured: Duration,
    /// What an answer means.
    pub judge: fn(u16) -> Verdict,
    /// After a lost connection, send the same delivery again; otherwise that connection is over.
    pub reconnect: bool,
    /// Gets a line for each accepted delivery, written before the next one is posted.
    pub acked: Option<Mutex<File>>,
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
#[derive(Default)]
pub struct Outcome {
    /// Accepted deliveries, of the whole run.
    pub accepted: u64,
    /// Accepted within the measured time, by second.
    pub per_second: Vec<u64>,
    /// Of those within the measured time.
    pub latencies: Latencies,
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

/// Runs it to the end; prints a line each second on the way. `at_edges` is called at the start and
/// at the end of the measured time.
pub async fn run(load: Load, mut at_edges: impl FnMut()) -> Result<Outcome> {
    let seconds = usize::try_from(load.measured.as_secs()).context("too long")?;
    let start = Instant::now() + load.warmup;
    let progress = Arc::new(AtomicU64::new(0));
    let mut total = Outcome { per_second: vec![0; seconds], ..Outcome::default() };
    let load = Arc::new(load);
    let mut workers = JoinSet::new();
    for _ in 0..load.concurrency {
        workers.spawn(Worker::new(load.clone(), start, progress.clone()).run());
    }

    let (mut second, mut before) = (0, 0);
    loop {
        let tick = start + Duration::from_secs(second);
        // Workers that are gone early have failed; those gone in time may be faster than the tick.
        let ticking = second <= seconds as u64 && (!workers.is_empty() || Instant::now() >= tick);
        tokio::select! {
            Some(outcome) = workers.join_next(), if !workers.is_empty() => {
                total.merge(outcome.context("a worker panicked")?);
            }
            () = sleep_until(tick.into()), if ticking => {
                let now = progress.load(Ordering::Relaxed);
                match second {
                    0 => eprintln!("warmed up with {now}"),
                    _ => eprintln!("{second:>4} s  {:>7} /s", now - before),
                }
                if second == 0 || second == seconds as u64 {
                    at_edges();
                }
                (second, before) = (second + 1, now);
            }
            else => break,
        }
    }
    Ok(total)
}

/// One connection's loop.
struct Worker {
    load: Arc<Load>,
    start: Instant,
    end: Instant,
    progress: Arc<AtomicU64>,
    connection: Connection,
    request: Vec<u8>,
    body: Vec<u8>,
    outcome: Outcome,
}

impl Worker {
    fn new(load: Arc<Load>, start: Instant, progress: Arc<AtomicU64>) -> Self {
        let seconds = load.measured.as_secs() as usize;
        Self {
            start,
            end: start + load.measured,
            progress,
            connection: Connection::to(&load.target),
            request: Vec::new(),
            body: Vec::new(),
            outcome: Outcome { per_second: vec![0; seconds], ..Outcome::default() },
            load,
        }
    }

    async fn run(mut self) -> Outcome {
        while Instant::now() < self.end {
            let delivery = self.load.payloads.next(&mut self.request);
            if !self.deliver(delivery).await {
                break;
            }
        }
        self.outcome
    }

    /// Posts until the delivery is accepted or time is up; false if this connection is over.
    async fn deliver(&mut self, delivery: Delivery) -> bool {
        loop {
            match self.post().await {
                Ok((status, began)) => match (self.load.judge)(status) {
                    Verdict::Accepted => {
                        self.accepted(delivery, began);
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
            if Instant::now() + PAUSE >= self.end {
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

    fn accepted(&mut self, delivery: Delivery, began: Instant) {
        let now = Instant::now();
        self.outcome.accepted += 1;
        self.progress.fetch_add(1, Ordering::Relaxed);
        if (self.start..self.end).contains(&now) {
            self.outcome.per_second[(now - self.start).as_secs() as usize] += 1;
            self.outcome.latencies.record(now - began);
        }
        if let Some(file) = &self.load.acked {
            let Delivery { id, repo, run_id } = delivery;
            let line = format!("{id}\t{OWNER}/r{repo}\t{run_id}\n");
            let mut file = file.lock().expect("nobody panics while writing a line");
            file.write_all(line.as_bytes()).expect("without its line an accepted delivery proves nothing");
        }
    }
}

impl Outcome {
    /// Accepted within the measured time.
    pub fn measured(&self) -> u64 {
        self.per_second.iter().sum()
    }

    fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.per_second.iter_mut().zip(other.per_second).for_each(|(sum, count)| *sum += count);
        self.latencies.merge(other.latencies);
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
            measured: Duration::from_secs(1),
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
        let mut edges = 0;
        let outcome = run(load(&target, true, judge), || edges += 1).await.unwrap();
        let ids = ids.lock().unwrap();
        assert!(ids[0] != ids[1] && ids[1] == ids[2] && ids[2] == ids[3] && ids[3] != ids[4]);
        assert_eq!((outcome.lost.count, outcome.later, outcome.wrong.count, edges), (1, 1, 0, 2));
        assert_eq!(outcome.accepted, ids.len() as u64 - 2);
    }

    #[tokio::test]
    async fn a_wrong_answer_ends_the_run_with_its_body() {
        let (target, ids) = server(|_| Some("401 Unauthorized")).await;
        let outcome = run(load(&target, true, |_| Verdict::Wrong), || ()).await.unwrap();
        assert_eq!((outcome.wrong.count, outcome.wrong.first.as_str()), (1, "401 {}"));
        assert_eq!((outcome.measured(), ids.lock().unwrap().len()), (0, 1));
    }
}
