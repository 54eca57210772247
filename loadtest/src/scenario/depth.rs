//! `depth`: does a commit cost more when the log is deep? Webhooks are posted to an empty log, the log
//! is filled with millions of events of other channels, and webhooks are posted again. Invariant: each
//! is answered 202, and its event comes to the subscriber once and in order.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use diesel::Connection as _;
use diesel::connection::SimpleConnection as _;
use diesel::sqlite::SqliteConnection;

use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::compare::{self};
use crate::ws::books::Seating;
use crate::ws::dashboards::Dashboards;

/// Events of each of the other channels: what retention keeps of one.
const EACH: u32 = 10_000;
/// Channels that are filled in one transaction, so that the gateway's own never wait long.
const TOGETHER: u32 = 10;
/// Repositories that webhooks are about.
const REPOS: usize = 5;
const SIZE: usize = 4096;

/// Compares webhooks a second with an empty log and with one of millions of events.
///
/// The events are written into the SQLite file of the gateway that was started for the run, in its own
/// format, as 10,000 of each of so many repositories: 10 million take some 3 GB in the temporary
/// folder, or below --data-in, and a minute. Webhooks go to other repositories, before and after.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Events to fill the log with, rounded up to 10,000.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    events: u32,
    /// Connections, each with one webhook at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Measured seconds, once with each log.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Seconds before them that are checked but not counted.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=60))]
    warmup: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { events, concurrency, seconds, warmup, servers } = options;
    let channels = events.div_ceil(EACH);
    let title = format!(
        "depth: {concurrency} connections post webhooks of {SIZE} bytes, with an empty log and with {} events",
        u64::from(channels) * u64::from(EACH)
    );
    let (concurrency, warmup, measured) =
        (usize::from(concurrency), Duration::from_secs(warmup), Duration::from_secs(seconds));
    let measure = move |session: &Session| {
        let seating = Seating { channels: REPOS, fan_out: 1, connections: 1 };
        let mut dashboards = Dashboards::open(session, seating, 1, concurrency, SIZE)?;
        let empty = post(session, &mut dashboards, warmup, measured)?;
        let began = Instant::now();
        fill(session, channels, &mut dashboards)?;
        let filled = began.elapsed().as_secs_f64();
        let deep = post(session, &mut dashboards, warmup, measured)?;
        Ok::<Vec<Figure>, anyhow::Error>(vec![
            figure("webhooks/s, empty log", empty.rate),
            figure("webhooks/s, deep log", deep.rate),
            aside("deep of empty", deep.rate / empty.rate),
            figure("mean commit, empty log, ms", empty.commit_ms),
            figure("mean commit, deep log, ms", deep.commit_ms),
            aside("deep of empty commit", deep.commit_ms / empty.commit_ms),
            figure("POST to 202 p99, empty log, ms", empty.p99),
            figure("POST to 202 p99, deep log, ms", deep.p99),
            aside("events in the log", f64::from(channels) * f64::from(EACH)),
            aside("filled in, s", filled),
        ])
    };
    servers.gateway_alone()?.run(&title, concurrency, measure).await
}

/// What posting came to.
struct Posted {
    rate: f64,
    commit_ms: f64,
    p99: f64,
}

fn post(
    session: &Session,
    dashboards: &mut Dashboards,
    warmup: Duration,
    measured: Duration,
) -> Result<Posted> {
    dashboards.saturate(warmup)?;
    dashboards.take_seen();
    let before = session.metrics()?;
    let began = Instant::now();
    dashboards.saturate(measured)?;
    let took = began.elapsed().as_secs_f64();
    let after = session.metrics()?;
    let answers = dashboards.take_seen().answers;
    dashboards.settle()?;
    let grown = |name| after.sum(name) - before.sum(name);
    let commits = grown("campanile_commit_seconds_count");
    ensure!(commits > 0.0 && answers.count() > 0, "nothing was committed within the measured time");
    Ok(Posted {
        rate: answers.count() as f64 / took,
        commit_ms: grown("campanile_commit_seconds_sum") * 1000.0 / commits,
        p99: answers.percentile(99).context("nothing was answered")?,
    })
}

/// Writes beside the gateway, a transaction at a time; between two of them its pings are answered.
fn fill(session: &Session, channels: u32, dashboards: &mut Dashboards) -> Result<()> {
    let file = database(session)?;
    let mut conn = SqliteConnection::establish(&file.to_string_lossy())
        .with_context(|| format!("cannot open {}", file.display()))?;
    conn.batch_execute("PRAGMA busy_timeout = 30000; PRAGMA synchronous = OFF;")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
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
        dashboards.turn(Duration::ZERO)?;
    }
    // Whoever writes next would pay for it: for what is still in the other file, and for what the
    // kernel has not written yet.
    conn.batch_execute("PRAGMA wal_checkpoint(TRUNCATE);").context("cannot finish the log")?;
    std::fs::File::open(&file)?.sync_all().context("cannot write the log to the disk")
}

/// The file of the gateway, which runs in a folder of its own.
fn database(session: &Session) -> Result<PathBuf> {
    let pid = session.pid.context("the gateway's process is not known")?;
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).context("the gateway is gone")?;
    let file = folder.join("data/campanile.db");
    ensure!(file.exists(), "no {}: this is for a gateway on SQLite that is started here", file.display());
    Ok(file)
}
