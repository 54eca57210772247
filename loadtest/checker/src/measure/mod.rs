//! Faults that are measured: how long something was away, what was answered meanwhile, when it
//! arrived elsewhere, and how soon all was as before. What takes longer than the project promises is a
//! violation like any other.

pub mod findings;
mod node_crash;
mod publish_probe;
mod webhook_probe;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use testkit::metrics::Metrics;
use testkit::postgres::Shutdown;
use tokio::time::sleep;

use crate::environment::Environment;
use crate::plan::Fault;
use findings::{Findings, millis};
use publish_probe::{Log, Probe, Prober};
use webhook_probe::{Attempt, Prober as WebhookProber};

/// How long everything is watched before and after.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(6);
/// How long Redis is away, and PostgreSQL.
const REDIS_AWAY: Duration = Duration::from_secs(30);
const POSTGRES_AWAY: Duration = Duration::from_secs(20);
/// How soon events have to be at other nodes, whatever carries them.
const DELIVERED: Duration = Duration::from_secs(1);
/// How soon after something has come back all is as before.
const BACK: Duration = Duration::from_secs(2);
/// Nothing is waited for any longer.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Makes it go wrong, and measures.
pub async fn run(fault: Fault, env: &mut Environment) -> Result<Findings> {
    match fault {
        Fault::RedisDown => redis_away(env, false).await,
        Fault::RedisHang => redis_away(env, true).await,
        Fault::PostgresDown => postgres_away(env).await,
        _ => node_crash::run(env).await,
    }
}

async fn redis_away(env: &mut Environment, hangs: bool) -> Result<Findings> {
    let (mut found, prober) = (Findings::default(), Prober::start(env).await?);
    sleep(BEFORE).await;
    let gone = Instant::now();
    let server = env.redis.as_mut().context("there is no Redis")?;
    if hangs {
        server.freeze()?;
    } else {
        server.down(true).await?;
    }
    sleep(REDIS_AWAY).await;
    let down = bus_up(env).await?.iter().filter(|up| !**up).count();
    found.figure("nodes that reported it", down as f64);
    if down < env.nodes.len() {
        found.breaches.push("Redis was away, and a node did not report it in campanile_bus_up".into());
    }
    let server = env.redis.as_mut().context("there is no Redis")?;
    if hangs {
        server.thaw()?;
    } else {
        server.up().await?;
    }
    let back = Instant::now();
    while bus_up(env).await?.contains(&false) && back.elapsed() < PATIENCE {
        sleep(POLL_INTERVAL).await;
    }
    found.within("the bus is back after", back.elapsed(), BACK);
    sleep(AFTER).await;

    // What was published at the very end is not waited for.
    let end = Instant::now() - DELIVERED;
    let log = prober.log();
    judge_probes(&mut found, &log, ["before", "while it is away", "afterwards"], gone, back, end);
    found.never("clients cut off", log.disconnects.len());
    Ok(found)
}

async fn postgres_away(env: &mut Environment) -> Result<Findings> {
    let (mut found, prober) = (Findings::default(), Prober::start(env).await?);
    let webhooks = WebhookProber::start(env);
    sleep(BEFORE).await;
    let server = env.postgres.as_mut().context("there is no PostgreSQL")?;
    server.down(Shutdown::Kill).await?;
    let gone = Instant::now();
    sleep(POSTGRES_AWAY).await;
    let almost = Instant::now();
    let server = env.postgres.as_mut().context("there is no PostgreSQL")?;
    server.up().await?;
    let back = Instant::now();
    sleep(BACK + AFTER).await;

    let end = Instant::now() - DELIVERED;
    let attempts = webhooks.attempts();
    let during = attempts.iter().filter(|attempt| attempt.sent >= gone && attempt.answered < almost);
    let (put_off, others): (Vec<_>, Vec<_>) =
        during.partition(|attempt| attempt.status == Some(503) && attempt.retry_after);
    found.figure("webhooks answered 503 with Retry-After", put_off.len() as f64);
    let slowest = put_off.iter().map(|attempt| attempt.answered - attempt.sent).max().unwrap_or_default();
    found.figure("the slowest of these answers, ms", millis(slowest));
    found.never("webhooks answered otherwise", others.len());
    if let Some(other) = others.first() {
        found.breaches.push(format!("a webhook was answered {:?} while PostgreSQL was away", other.status));
    }
    if put_off.is_empty() {
        found.breaches.push("no webhook was answered while PostgreSQL was away".into());
    }
    let mut longest = Duration::ZERO;
    for node in 0..env.nodes.len() {
        let accepted = |attempt: &&Attempt| attempt.node == node && matches!(attempt.status, Some(200..=299));
        let first = attempts.iter().filter(accepted).find(|attempt| attempt.answered > back);
        longest = longest.max(first.map_or(PATIENCE, |attempt| attempt.answered - back));
    }
    found.within("webhooks are taken again after", longest, BACK);
    let late = attempts
        .iter()
        .filter(|attempt| attempt.sent > back + BACK && !matches!(attempt.status, Some(200..=299)));
    found.never("webhooks refused afterwards", late.count());
    let log = prober.log();
    judge_probes(&mut found, &log, ["before", "", "afterwards"], gone, back, end);
    found.never("clients cut off", log.disconnects.len());
    Ok(found)
}

/// Events in three parts of the run, and how long after their 2xx they arrived; with an empty name
/// a part is left out.
fn judge_probes(
    found: &mut Findings,
    log: &Log,
    names: [&str; 3],
    gone: Instant,
    back: Instant,
    end: Instant,
) {
    let of = |probe: &&Probe| match probe.sent {
        sent if sent + DELIVERED < gone => 0,
        sent if sent >= gone && sent < back => 1,
        sent if sent >= back + BACK && sent < end => 2,
        // What was under way when it went, and while everything finds its way back.
        _ => 3,
    };
    for (part, name) in names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let probes: Vec<&Probe> = log.probes.iter().filter(|probe| of(probe) == part).collect();
        let refused = probes.iter().filter(|probe| probe.accepted.is_none()).count();
        found.figure(format!("published {name}"), probes.len() as f64);
        found.never(&format!("refused {name}"), refused);
        let (mut here, mut elsewhere, mut never) = (Vec::new(), Vec::new(), 0);
        for (probe, accepted) in probes.iter().filter_map(|probe| Some((probe, probe.accepted?))) {
            for (node, received) in probe.received.iter().enumerate() {
                let times = if node == probe.node { &mut here } else { &mut elsewhere };
                match received {
                    // Behind the answer; how long the commit took does not count.
                    Some(received) => times.push(received.saturating_duration_since(accepted)),
                    None => never += 1,
                }
            }
        }
        found.never(&format!("never received {name}"), never);
        for (place, times) in [("same node", &mut here), ("other nodes", &mut elsewhere)] {
            times.sort_unstable();
            let at =
                |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
            for (label, percent) in [("p50", 50), ("p99", 99)] {
                let time = at(percent).copied().unwrap_or_default();
                found.figure(format!("{place} {name} {label}, ms"), millis(time));
            }
        }
        let most = elsewhere.last().copied().unwrap_or_default();
        found.within(&format!("other nodes {name} at most"), most, DELIVERED);
    }
}

async fn bus_up(env: &Environment) -> Result<Vec<bool>> {
    let mut up = Vec::new();
    for node in &env.nodes {
        let metrics = Metrics::scrape(node.address).await?;
        up.push(metrics.sum("campanile_bus_up") > 0.0);
    }
    Ok(up)
}
