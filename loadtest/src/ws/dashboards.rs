//! Dashboards that follow repositories, and the signed webhooks that move them: posted in bursts over
//! kept-alive connections, received as events, entered in the books. Latency counts from the moment a
//! burst is due to each receipt, whatever the posting waits for. Any answer but 202 fails the run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use mio::Token;

use super::books::{Books, Seating};
use super::line;
use super::swarm::{FOREIGN, First, News, PATIENCE, Swarm, expect_nothing};
use crate::compare::session::Session;
use crate::http::caller::{self, Caller};
use crate::payload::{OWNER, Payloads};
use crate::stats::Histogram;
use crate::target::Target;

/// What stands before the run's id in an event of a workflow.
const RUN: &[u8] = b"\"runId\":";
/// What repeats would show up in, after the last event.
const QUIET: Duration = Duration::from_millis(200);

/// All of it.
pub struct Dashboards {
    swarm: Swarm,
    doors: Vec<Door>,
    payloads: Payloads,
    /// The run of the first delivery.
    first_run: u64,
    books: Books,
    /// When those that are not posted yet were due.
    waiting: VecDeque<Instant>,
    buffer: Vec<u8>,
    seen: Seen,
}

/// What has been measured.
pub struct Seen {
    /// From due to each receipt.
    pub receipts: Histogram,
    /// From due to each 202.
    pub answers: Histogram,
    /// When the last of either came.
    pub last: Instant,
}

struct Door {
    caller: Caller,
    request: Vec<u8>,
    /// When what is under way was due.
    due: Instant,
}

impl Dashboards {
    /// Connects dashboards to the repositories `acme/r0` and so on, and posts over `doors`
    /// connections webhooks of `size` bytes.
    pub fn open(
        session: &Session,
        seating: Seating,
        window: usize,
        doors: usize,
        size: usize,
    ) -> Result<Self> {
        let target = Target { address: session.address, host: session.host.clone() };
        let payloads = Payloads::new(&target, session.webhook_secret()?, seating.channels, size)?;
        let mut swarm = Swarm::new(session.address, &session.host)?;
        let names: Vec<String> = (0..seating.channels).map(|repo| format!("repo:{OWNER}/r{repo}")).collect();
        let mut wanted = vec![Vec::new(); seating.connections];
        seating.seats().for_each(|(repo, dashboard)| wanted[dashboard].push(&*names[repo]));
        let first = |(dashboard, repos): (usize, Vec<&str>)| {
            First::subscribing(&session.token(dashboard, Some(OWNER)), repos)
        };
        swarm.open(wanted.into_iter().enumerate().map(first).collect::<Vec<_>>(), window)?;
        let now = Instant::now();
        let door = |index| {
            let caller = Caller::open(session.address, swarm.registry(), Token(FOREIGN + index))?;
            Ok(Door { caller, request: Vec::new(), due: now })
        };
        let mut dashboards = Self {
            doors: (0..doors).map(door).collect::<Result<_>>()?,
            first_run: payloads.first_run(),
            payloads,
            swarm,
            books: Books::new(seating, doors)?,
            waiting: VecDeque::new(),
            buffer: vec![0; caller::BUFFER],
            seen: Seen::new(),
        };
        // The first delivery about a repository also makes it known.
        dashboards.burst(seating.channels, Instant::now());
        dashboards.settle()?;
        Ok(dashboards)
    }

    /// So many webhooks are due at once.
    pub fn burst(&mut self, count: usize, due: Instant) {
        self.waiting.extend(std::iter::repeat_n(due, count));
    }

    /// What has been measured since the last call.
    pub fn take_seen(&mut self) -> Seen {
        std::mem::replace(&mut self.seen, Seen::new())
    }

    /// How many webhooks have been posted.
    pub fn posted(&self) -> usize {
        self.books.published()
    }

    /// Posts what is due, and handles what comes, at most for `patience`.
    pub fn turn(&mut self, patience: Duration) -> Result<()> {
        let Self { swarm, doors, payloads, first_run, books, waiting, buffer, seen } = self;
        for (index, door) in doors.iter_mut().enumerate() {
            if door.caller.owing() > 0 {
                continue;
            }
            let Some(due) = waiting.pop_front() else { break };
            let delivery = payloads.next(&mut door.request);
            let number = books.publish(delivery.repo, index, due);
            ensure!(delivery.run_id - *first_run == u64::from(number), "runs are not counted one by one");
            door.due = due;
            door.caller.ask(&door.request, 1)?;
        }
        let mut hear = |dashboard: usize, news: News<'_>, at: Instant| {
            let News::Push(push) = news else { return expect_nothing(dashboard, news, at) };
            // An event that a webhook causes beside its run, such as that a repository is new.
            let Some(run) = run_of(push)? else { return Ok(()) };
            let number = run.checked_sub(*first_run).and_then(|number| u32::try_from(number).ok());
            let number = number.with_context(|| format!("run {run} was never posted"))?;
            seen.receipts.record(books.receive(dashboard, number, at)?.latency);
            seen.last = at;
            Ok(())
        };
        let mut said = Vec::new();
        swarm.follow(patience, &mut hear, &mut said)?;
        for Token(token) in said {
            let Door { caller, due, .. } = &mut doors[token - FOREIGN];
            caller.hear(buffer, |answer| {
                let body = line::shown(answer.body);
                ensure!(answer.status == 202, "a webhook was answered {} {body}", answer.status);
                seen.last = Instant::now();
                seen.answers.record(seen.last - *due);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Posts one webhook after the other over each connection, for a while. Every one is due when its
    /// connection is free.
    pub fn saturate(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            let free = self.doors.iter().filter(|door| door.caller.owing() == 0).count();
            self.burst(free, now);
            self.turn(end - now)?;
        }
    }

    /// Goes on until every webhook is answered and received, and a moment longer for what must not
    /// come.
    pub fn settle(&mut self) -> Result<()> {
        let mut progress = (self.left(), Instant::now());
        while self.left() > 0 {
            self.turn(Duration::from_secs(1))?;
            if self.left() != progress.0 {
                progress = (self.left(), Instant::now());
            }
            ensure!(progress.1.elapsed() < PATIENCE, "{} answers and receipts never came", self.left());
        }
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            self.turn(QUIET / 4)?;
        }
        Ok(())
    }

    /// What is to be posted, answered and received.
    fn left(&self) -> usize {
        let answers: usize = self.doors.iter().map(|door| door.caller.owing()).sum();
        self.waiting.len() + answers + self.books.owing() as usize
    }
}

impl Seen {
    fn new() -> Self {
        Self { receipts: Histogram::new(), answers: Histogram::new(), last: Instant::now() }
    }
}

/// The run that an event is about, if it is about one.
fn run_of(push: &[u8]) -> Result<Option<u64>> {
    let Some(at) = memmem::find(push, RUN) else { return Ok(None) };
    let digits = push[at + RUN.len()..].split(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
    let run = std::str::from_utf8(digits)?.parse();
    Ok(Some(run.with_context(|| format!("no run in {}", line::shown(push)))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_known_by_its_run() {
        assert_eq!(run_of(br#"{"push":{"pub":{"data":{"data":{"runId":17,"a":1}}}}}"#).unwrap(), Some(17));
        assert_eq!(run_of(br#"{"push":{"pub":{"data":{"type":"repo:added"}}}}"#).unwrap(), None);
        assert!(run_of(br#"{"runId":"x"}"#).is_err());
    }
}
