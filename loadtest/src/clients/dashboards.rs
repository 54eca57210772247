//! Dashboards that follow repositories, and the signed webhooks that move them: posted in bursts over
//! kept-alive connections, received as events, entered in the log. Latency counts from the moment a
//! burst is due to each receipt, whatever the posting waits for. Any answer but 202 fails the run.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use testkit::payload::{OWNER, Payloads};

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use mio::Token;

use super::Turns;
use crate::compare::session::Session;
use crate::pipeline::{self, Pipeline};
use crate::stats::Histogram;
use crate::ws::delivery_log::{DeliveryLog, Layout};
use crate::ws::message::excerpt;
use crate::ws::swarm::{FirstFrame, OTHER_TOKENS, Received, Swarm, expect_nothing};

/// What stands before the run's id in an event of a workflow.
const RUN: &[u8] = b"\"runId\":";

pub struct Dashboards {
    swarm: Swarm,
    posters: Vec<Poster>,
    payloads: Payloads,
    log: DeliveryLog,
    /// When those that are not posted yet were due.
    waiting: VecDeque<Instant>,
    buffer: Vec<u8>,
    measured: Measured,
}

/// What was measured since it was last taken.
pub struct Measured {
    /// From due to each receipt.
    pub receipts: Histogram,
    /// From due to each 202.
    pub answers: Histogram,
    /// When the last of either came.
    pub last: Instant,
}

struct Poster {
    pipeline: Pipeline,
    request: Vec<u8>,
    /// When what is under way was due.
    due: Instant,
}

impl Dashboards {
    /// Connects dashboards to the repositories `acme/r0` and so on, and posts webhooks of `size` bytes
    /// over this many connections.
    pub fn open(
        session: &Session,
        layout: Layout,
        window: usize,
        posters: usize,
        size: usize,
    ) -> Result<Self> {
        let payloads = Payloads::new(&session.target(), session.webhook_secret()?, layout.channels, size)?;
        let mut swarm = session.swarm()?;
        let names: Vec<String> = (0..layout.channels).map(|repo| format!("repo:{OWNER}/r{repo}")).collect();
        let mut wanted = vec![Vec::new(); layout.connections];
        layout.subscriptions().for_each(|(repo, dashboard)| wanted[dashboard].push(&*names[repo]));
        let first = |(dashboard, repos): (usize, Vec<&str>)| {
            FirstFrame::subscribing(&session.token(dashboard, Some(OWNER)), repos)
        };
        swarm.open(wanted.into_iter().enumerate().map(first).collect(), window)?;
        let poster = |index| {
            let token = Token(OTHER_TOKENS + index);
            let pipeline = Pipeline::open(session.address, swarm.registry(), token)?;
            Ok(Poster { pipeline, request: Vec::new(), due: Instant::now() })
        };
        let mut dashboards = Self {
            posters: (0..posters).map(poster).collect::<Result<_>>()?,
            payloads,
            swarm,
            log: DeliveryLog::new(layout, posters)?,
            waiting: VecDeque::new(),
            buffer: vec![0; pipeline::BUFFER],
            measured: Measured::new(),
        };
        // The first delivery about a repository also makes it known.
        dashboards.burst(layout.channels, Instant::now());
        dashboards.settle()?;
        dashboards.take();
        Ok(dashboards)
    }

    /// This many webhooks are due at once.
    pub fn burst(&mut self, count: usize, due: Instant) {
        self.waiting.extend(std::iter::repeat_n(due, count));
    }

    /// What was measured since the last call.
    pub fn take(&mut self) -> Measured {
        std::mem::replace(&mut self.measured, Measured::new())
    }

    pub fn posted(&self) -> usize {
        self.log.published()
    }
}

impl Turns for Dashboards {
    fn swarm(&mut self) -> &mut Swarm {
        &mut self.swarm
    }

    fn turn(&mut self, timeout: Duration) -> Result<()> {
        let Self { swarm, posters, payloads, log, waiting, buffer, measured } = self;
        let first_run = payloads.first_run();
        for (index, poster) in posters.iter_mut().enumerate() {
            if poster.pipeline.outstanding() > 0 {
                continue;
            }
            let Some(due) = waiting.pop_front() else { break };
            let delivery = payloads.next(&mut poster.request);
            let number = log.publish(delivery.repo, index, due);
            ensure!(delivery.run_id - first_run == u64::from(number), "runs are not counted one by one");
            poster.due = due;
            poster.pipeline.send(&poster.request, 1)?;
        }
        let mut on_received = |dashboard: usize, received: Received<'_>, at: Instant| {
            let Received::Push(push) = received else { return expect_nothing(dashboard, received, at) };
            // Some events are not about a run, such as that a repository is new.
            let Some(run) = run_of(push)? else { return Ok(()) };
            let number = run.checked_sub(first_run).and_then(|number| u32::try_from(number).ok());
            let number = number.with_context(|| format!("run {run} was never posted"))?;
            measured.receipts.record(log.receive(dashboard, number, at)?.latency);
            measured.last = at;
            Ok(())
        };
        let mut ready = Vec::new();
        swarm.poll(timeout, &mut on_received, &mut ready)?;
        for Token(token) in ready {
            let Poster { pipeline, due, .. } = &mut posters[token - OTHER_TOKENS];
            pipeline.receive(buffer, |answer| {
                let body = excerpt(answer.body);
                ensure!(answer.status == 202, "a webhook was answered {} {body}", answer.status);
                measured.last = Instant::now();
                measured.answers.record(measured.last - *due);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What is to be posted, answered and received.
    fn outstanding(&self) -> u64 {
        let answers: usize = self.posters.iter().map(|poster| poster.pipeline.outstanding()).sum();
        (self.waiting.len() + answers) as u64 + self.log.outstanding()
    }
}

impl Measured {
    fn new() -> Self {
        Self { receipts: Histogram::new(), answers: Histogram::new(), last: Instant::now() }
    }
}

/// The run that an event is about, if it is about one.
fn run_of(push: &[u8]) -> Result<Option<u64>> {
    let Some(at) = memmem::find(push, RUN) else { return Ok(None) };
    let digits = push[at + RUN.len()..].split(|byte| !byte.is_ascii_digit()).next().unwrap_or_default();
    let run = std::str::from_utf8(digits)?.parse();
    Ok(Some(run.with_context(|| format!("no run in {}", excerpt(push)))?))
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
