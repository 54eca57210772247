//! What the integration tests, the fault checker and the load generator share: gateways, PostgreSQL,
//! Redis and TCP proxies that are started for one run and end with it, and clients for HTTP,
//! server-sent events and WebSocket. Everything listens on the loopback, nothing reaches a server that
//! runs already, and whatever was started ends even if this process is killed.

pub mod gateway;
pub mod http;
pub mod metrics;
pub mod payload;
pub mod pgbouncer;
pub mod port;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod random;
pub mod redis;
pub mod server;
pub mod sql;
pub mod sse;
pub mod target;
pub mod token;
pub mod tool;
pub mod websocket;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Does the work of a tool on so many threads, until it is done or somebody ends it.
pub fn run<T>(threads: usize, work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = work => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

/// A folder of one run, below `parent` or among temporary files; removed when it is dropped.
fn folder_in(parent: Option<&Path>, prefix: &str) -> Result<TempDir> {
    let parent = std::path::absolute(parent.map_or_else(std::env::temp_dir, Path::to_owned))?;
    std::fs::create_dir_all(&parent)?;
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(&parent);
    folder.with_context(|| format!("cannot create a folder in {}", parent.display()))
}
