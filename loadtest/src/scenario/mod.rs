//! The scenarios, one file each: its options, its invariant, its figures.

mod attack;
pub mod channel_scaling;
pub mod cluster;
pub mod connect;
pub mod fanout;
pub mod hostile;
pub mod idle;
pub mod latency;
mod log_depth;
pub mod mixed;
pub mod originals;
pub mod poll;
pub mod reconnect;
pub mod resume;
pub mod slow;
pub mod soak;
pub mod start;
pub mod suite;
pub mod webhooks;

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::compare::session::Session;
use crate::stats::Histogram;

/// Connections that are being opened at once.
const WINDOW: usize = 64;
const MEBI: f64 = 1024.0 * 1024.0;
/// Below this share of the requested rate the latencies are those of a queue that grows.
const RATE_KEPT: f64 = 0.98;

/// A count within these bounds, as an option.
fn count(bounds: RangeInclusive<u64>) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(bounds)
}

/// How long a round measures.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Period {
    /// Measured seconds of a round.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub warmup: u64,
}

/// What a webhook looks like.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Shape {
    /// Bytes of a webhook's body; the minimum is about 2,300.
    #[arg(long, default_value_t = 4096, value_parser = count(0..=1_048_576))]
    pub size: usize,
}

impl Period {
    fn warmup(&self) -> Duration {
        Duration::from_secs(self.warmup)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// This many percent took at most this many milliseconds; an error if nothing was measured.
fn percentile(latencies: &Histogram, percent: u64) -> Result<f64> {
    latencies.percentile(percent).context("nothing was measured")
}

/// Warns that a schedule was not kept.
fn warn_if_missed(session: &Session, requested: f64, reached: f64) {
    if reached < requested * RATE_KEPT {
        session.meter.warn("rate_missed", format!("{reached:.0} of {requested} a second were reached"));
    }
}
