//! The scenarios, one file each: its options, its invariant, its report.

pub mod cluster;
pub mod connect;
pub mod crowd;
pub mod depth;
pub mod fanout;
pub mod flood;
pub mod hostile;
pub mod idle;
pub mod latency;
pub mod mixed;
pub mod originals;
pub mod poll;
pub mod resume;
pub mod set;
pub mod slow;
pub mod soak;
pub mod spread;
pub mod start;
pub mod storm;
pub mod webhooks;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use crate::compare::session::Session;
use crate::stats::Histogram;

/// Connections that are being opened at once.
const WINDOW: usize = 64;

/// So many percent took at most this many milliseconds; an error if there was nothing at all.
fn percentile(latencies: &Histogram, percent: u64) -> Result<f64> {
    latencies.percentile(percent).context("nothing was measured")
}

/// What `webhooks` and `flood` have in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
#[group(skip)]
pub struct Volume {
    /// Connections, each with one delivery at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: u16,
    /// Measured seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub warmup: u64,
    #[command(flatten)]
    pub shape: Shape,
}

/// What a delivery looks like.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
#[group(skip)]
pub struct Shape {
    /// Bytes of a body; there is a minimum of some 2,300.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub size: u32,
}

impl Volume {
    fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Less of an asked rate than this, and the latencies are those of a queue that grows.
const RATE_KEPT: f64 = 0.98;

/// Warns that a schedule was not kept.
fn warn_if_missed(session: &Session, asked: f64, reached: f64) {
    if reached < asked * RATE_KEPT {
        session.warn("rate_missed", format!("{reached:.0} of {asked} a second were reached"));
    }
}

/// Writes what came of it, if a file was named.
pub fn write_json(file: Option<&PathBuf>, outcome: &Value) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, format!("{outcome:#}\n")).with_context(|| format!("cannot write {}", file.display()))
}
