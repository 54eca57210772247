//! The connections that post webhooks for `webhooks`, on one thread: each posts its next delivery when
//! the last one is answered, or when it is due. Every answer must be 202; any other one, or a
//! connection that is lost while an answer is outstanding, fails the run.

use std::time::{Duration, Instant};
use testkit::payload::{Delivery, Payloads};
use testkit::target::Target;

use anyhow::{Result, ensure};
use mio::{Events, Poll, Token};

use super::Limit;
use crate::pipeline::{BUFFER, Pipeline};
use crate::ws::message::excerpt;

/// A timer may be late by as much as this, so the rest of the way is waited for without sleeping.
const TIMER: Duration = Duration::from_millis(2);
/// An answer may take this long.
const TIMEOUT: Duration = Duration::from_secs(30);

pub struct WebhookLoad {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    payloads: Payloads,
    posters: Vec<Poster>,
}

/// A delivery that was answered 202.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    /// By the schedule, if there is one.
    pub due: Option<Instant>,
    /// Just before its request was written.
    pub sent: Instant,
    /// When its answer was read.
    pub at: Instant,
}

struct Poster {
    pipeline: Pipeline,
    /// The next delivery is signed before its time begins.
    next: Option<Delivery>,
    request: Vec<u8>,
    due: Option<Instant>,
    sent: Instant,
}

impl WebhookLoad {
    pub fn open(target: &Target, payloads: Payloads, connections: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let poster = |index| {
            let pipeline = Pipeline::open(target.address, poll.registry(), Token(index))?;
            Ok(Poster { pipeline, next: None, request: Vec::new(), due: None, sent: Instant::now() })
        };
        let posters = (0..connections).map(poster).collect::<Result<_>>()?;
        let (events, buffer) = (Events::with_capacity(1024), vec![0; BUFFER]);
        Ok(Self { poll, events, buffer, payloads, posters })
    }

    pub fn body_size(&self) -> usize {
        self.payloads.body_size()
    }

    /// Posts up to the limit: at `rate` deliveries a second if there is one, otherwise as fast as they
    /// are answered. Each answer is passed to `answered`.
    pub fn run(&mut self, limit: Limit, rate: Option<f64>, mut answered: impl FnMut(Answered)) -> Result<()> {
        let Self { poll, events, buffer, payloads, posters } = self;
        let began = Instant::now();
        let end = limit.time().map(|time| began + time);
        let (mut posted, mut outstanding, mut heard) = (0_u64, 0_usize, began);
        loop {
            let mut due = None;
            for poster in posters.iter_mut().filter(|poster| poster.pipeline.outstanding() == 0) {
                poster.next.get_or_insert_with(|| payloads.next(&mut poster.request));
                let now = Instant::now();
                due = rate.map(|rate| began + Duration::from_secs_f64(posted as f64 / rate));
                let over = match limit {
                    Limit::Time(_) => end.is_some_and(|end| due.unwrap_or(now).max(now) >= end),
                    Limit::Count(count) => posted >= count,
                };
                if over {
                    due = None;
                    break;
                }
                if due.is_some_and(|due| due > now) {
                    break;
                }
                (poster.next, poster.due, poster.sent) = (None, due, now);
                poster.pipeline.send(&poster.request, 1)?;
                (posted, outstanding, heard, due) = (posted + 1, outstanding + 1, now, None);
            }
            if outstanding == 0 && due.is_none() {
                return Ok(());
            }
            ensure!(outstanding == 0 || heard.elapsed() < TIMEOUT, "{outstanding} answers do not come");
            let wait = due.map_or(Duration::from_secs(1), |due| {
                due.saturating_duration_since(Instant::now()).saturating_sub(TIMER)
            });
            poll.poll(events, Some(wait))?;
            for event in events.iter() {
                let Poster { pipeline, due, sent, .. } = &mut posters[event.token().0];
                let before = pipeline.outstanding();
                pipeline.receive(buffer, |answer| {
                    let body = excerpt(answer.body);
                    ensure!(answer.status == 202, "a webhook was answered {} {body}", answer.status);
                    heard = Instant::now();
                    answered(Answered { due: *due, sent: *sent, at: heard });
                    Ok(())
                })?;
                outstanding -= before - pipeline.outstanding();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Histogram;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    /// A connection to a server that gives every request this answer.
    fn load(status: &'static str) -> WebhookLoad {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::from(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(read @ 1..) = socket.read(&mut buffer) {
                request.extend_from_slice(&buffer[..read]);
                // Only the end of the body looks like this.
                if request.ends_with(b"\"}}") {
                    request.clear();
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
                    socket.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        WebhookLoad::open(&target, Payloads::new(&target, "s", 1, 0).unwrap(), 1).unwrap()
    }

    #[test]
    fn a_wrong_answer_ends_the_run_with_its_body() {
        let mut accepted = 0;
        let outcome = load("401 Unauthorized").run(Limit::Count(3), None, |_| accepted += 1);
        assert_eq!(outcome.unwrap_err().to_string(), "a webhook was answered 401 {}");
        assert_eq!(accepted, 0);
    }

    #[test]
    fn latency_counts_from_when_a_delivery_was_due() {
        let (mut whole, mut late) = (Histogram::new(), Histogram::new());
        // All are due at once, and one connection posts them one by one: the last waits for all.
        let mut load = load("202 Accepted");
        load.run(Limit::Count(3), Some(1e9), |Answered { due, sent, at }| {
            whole.record(at - due.unwrap());
            late.record(sent - due.unwrap());
        })
        .unwrap();
        assert_eq!((whole.count(), late.count()), (3, 3));
        let at = |latencies: &Histogram, percent| latencies.percentile(percent).unwrap();
        let (last, last_sent) = (at(&whole, 100), at(&late, 100));
        assert!(last > last_sent && last_sent > at(&late, 50), "{last} {last_sent}");
    }
}
