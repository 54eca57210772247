//! Fills the log of a gateway on SQLite with events of other channels, written in the gateway's own
//! format straight into its file, so that a scenario can run behind millions of them.

use std::fs::File;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use diesel::sqlite::SqliteConnection;

use crate::compare::session::Session;

/// Events of each channel: what retention keeps of one.
const EACH: u32 = 10_000;
/// Channels that are filled in one transaction, so that the gateway's own never wait long.
const TOGETHER: u32 = 10;

/// Adds this many events, rounded up to whole channels, and gives how many there are.
pub fn fill(session: &Session, events: u32) -> Result<u64> {
    let file = database(session)?;
    let mut conn = SqliteConnection::establish(&file.to_string_lossy())
        .with_context(|| format!("cannot open {}", file.display()))?;
    conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = OFF;")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let channels = events.div_ceil(EACH);
    for first in (0..channels).step_by(TOGETHER as usize) {
        let last = (first + TOGETHER).min(channels) - 1;
        conn.batch_execute(&format!(
            "BEGIN IMMEDIATE;
             WITH RECURSIVE c(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM c WHERE i < {last})
             INSERT INTO channels (name, head, updated_at) SELECT 'repo:acme/old-' || i, {EACH}, {now} FROM c;
             WITH RECURSIVE c(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM c WHERE i < {last}),
                            e(j) AS (SELECT 1 UNION ALL SELECT j + 1 FROM e WHERE j < {EACH})
             INSERT INTO events (channel, \"offset\", event_id, kind, data, created_at)
             SELECT 'repo:acme/old-' || i, j, randomblob(16), 'workflow:completed',
                    '{{\"type\":\"workflow:completed\",\"repo\":\"acme/old-' || i || '\",\"data\":{{\"runId\":' || j ||
                    ',\"workflowName\":\"CI\",\"status\":\"completed\",\"conclusion\":\"success\",\"branch\":\"main\"}}}}',
                    {now}
             FROM c CROSS JOIN e;
             COMMIT;"
        ))
        .context("cannot fill the log")?;
    }
    // Otherwise the next writer would pay for it: for what is still in the write-ahead log, and for
    // what the kernel has not written yet.
    conn.batch_execute("PRAGMA wal_checkpoint(TRUNCATE);").context("cannot finish the log")?;
    File::open(&file)?.sync_all().context("cannot write the log to the disk")?;
    Ok(u64::from(channels) * u64::from(EACH))
}

/// The file of the gateway, which runs in a folder of its own.
fn database(session: &Session) -> Result<PathBuf> {
    let pid = session.pid.context("the gateway's process is not known")?;
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).context("the gateway is gone")?;
    let file = folder.join("data/campanile.db");
    ensure!(file.exists(), "no {}: this needs a gateway on SQLite that was started here", file.display());
    Ok(file)
}
