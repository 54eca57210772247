//! Waiting with a limit: as long as something changes a wait may go on, but not beyond that.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// If nothing at all changes for so long while something is expected, the run fails.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// The value that was seen last, and since when.
pub struct Progress<T> {
    seen: T,
    since: Instant,
}

impl<T: PartialEq> Progress<T> {
    pub fn new(seen: T) -> Self {
        Self { seen, since: Instant::now() }
    }

    /// Notes the current value, and fails with the description if it has not changed for too long.
    pub fn check(&mut self, now: T, describe: impl FnOnce(&T) -> String) -> Result<()> {
        if now != self.seen {
            *self = Self::new(now);
        }
        ensure!(self.since.elapsed() < TIMEOUT, describe(&self.seen));
        Ok(())
    }
}
