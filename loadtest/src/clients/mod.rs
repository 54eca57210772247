//! The clients that scenarios are made of, each for one kind of work, on one thread and one epoll loop.
//! All of them check what they receive; anything missing, repeated or out of order fails the run.

pub mod broadcast;
pub mod channel_groups;
pub mod dashboards;
pub mod pollers;
pub mod resuming;
pub mod webhook_load;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::progress::Progress;
use crate::ws::swarm::{FirstFrame, Swarm, connect};

/// After the last expected message: repeats would show up in this time.
const QUIET: Duration = Duration::from_millis(200);

/// When a run is over.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    Time(Duration),
    /// After this many messages or requests, when all of them are answered and delivered.
    Count(u64),
}

impl Limit {
    /// How long it takes, if that is known.
    pub fn time(self) -> Option<Duration> {
        if let Self::Time(time) = self { Some(time) } else { None }
    }
}

pub trait Turns {
    fn swarm(&mut self) -> &mut Swarm;

    /// Sends what is due, and handles what arrives, at most for `timeout`.
    fn turn(&mut self, timeout: Duration) -> Result<()>;

    fn outstanding(&self) -> u64;

    fn run_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left)?;
        }
    }

    /// Works until nothing is outstanding, and a moment longer for what must not arrive.
    fn settle(&mut self) -> Result<()> {
        let mut progress = Progress::new(self.outstanding());
        while self.outstanding() > 0 {
            self.turn(Duration::from_secs(1))?;
            progress
                .check(self.outstanding(), |count| format!("{count} answers or deliveries never came"))?;
        }
        self.run_for(QUIET)
    }

    /// Opens connections at their places, `window` at a time, and works meanwhile. Gives the time from
    /// the first step to the last.
    fn connect(&mut self, frames: Vec<(usize, FirstFrame)>, window: usize) -> Result<Duration>
    where
        Self: Sized,
    {
        connect(self, frames, window, Self::swarm, |clients| clients.turn(Duration::from_secs(1)))
    }
}
