//! The scenarios, one file each: its options, its invariant, its report.

pub mod connect;
pub mod fanout;
pub mod flood;
pub mod hostile;
pub mod idle;
pub mod latency;
pub mod webhooks;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

/// Connections that are being opened at once.
const WINDOW: usize = 64;

/// What `webhooks` and `flood` have in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
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

/// Writes the figures, if a file was named.
pub fn write_json(file: Option<&PathBuf>, report: &Value) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, format!("{report:#}\n")).with_context(|| format!("cannot write {}", file.display()))
}
