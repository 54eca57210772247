//! Faults that are measured: how long something was away, what was answered meanwhile, when it was
//! heard elsewhere, and how soon all was as before. What takes longer than the project promises is a
//! violation like any other.

mod beat;
mod death;
mod knock;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::plan::Fault;
use super::world::World;
use crate::metrics::Metrics;
use crate::postgres::Shutdown;
use crate::target::Target;
use beat::{Book, Heart, Pulse};
use knock::{Door, Knock};

/// The namespace of what is measured; the verdict leaves it alone.
pub const NAMESPACE: &str = "probe";
const CHANNEL: &str = "beat";
/// Connections of a user where users are counted.
pub const LIMIT: usize = 3;
/// How long everything is watched before and after.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(6);
/// How long Redis is away, and PostgreSQL.
const REDIS_AWAY: Duration = Duration::from_secs(30);
const POSTGRES_AWAY: Duration = Duration::from_secs(12);
/// How soon events have to be at other nodes, whatever carries them.
const HEARD: Duration = Duration::from_secs(1);
/// How soon after something has come back all is as before.
const BACK: Duration = Duration::from_secs(2);
/// Nothing is waited for any longer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// By name.
    pub figures: Vec<(String, f64)>,
    /// What should not have been, in words.
    pub breaches: Vec<String>,
}

impl Findings {
    fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    /// A time, and how long it may be.
    fn within(&mut self, name: &str, time: Duration, bound: Duration) {
        self.figure(format!("{name}, ms"), millis(time));
        if time > bound {
            self.breaches.push(format!("{name}: {} ms instead of {} at most", millis(time), millis(bound)));
        }
    }

    /// What must never be.
    fn never(&mut self, name: &str, count: usize) {
        self.figure(name, count as f64);
        if count > 0 {
            self.breaches.push(format!("{name}: {count}"));
        }
    }
}

/// Makes it go wrong, and measures.
pub async fn run(fault: Fault, world: &mut World) -> Result<Findings> {
    match fault {
        Fault::RedisDown => redis_away(world, false).await,
        Fault::RedisHang => redis_away(world, true).await,
        Fault::PostgresDown => postgres_away(world).await,
        _ => death::run(world).await,
    }
}

/// Redis is gone, or does not answer.
async fn redis_away(world: &mut World, hangs: bool) -> Result<Findings> {
    let (mut found, heart) = (Findings::default(), Heart::start(world).await?);
    sleep(BEFORE).await;
    let gone = Instant::now();
    let server = world.redis.as_mut().context("there is no Redis")?;
    if hangs {
        server.freeze()?;
    } else {
        server.down(true).await?;
    }
    sleep(REDIS_AWAY).await;
    let deaf = bus_up(world).await?.iter().filter(|up| !**up).count();
    found.figure("nodes that said so", deaf as f64);
    if deaf < world.nodes.len() {
        found.breaches.push("Redis was away, and a node did not say so in campanile_bus_up".into());
    }
    let server = world.redis.as_mut().context("there is no Redis")?;
    if hangs {
        server.thaw()?;
    } else {
        server.up().await?;
    }
    let back = Instant::now();
    while bus_up(world).await?.contains(&false) && back.elapsed() < PATIENCE {
        sleep(LOOK_AGAIN).await;
    }
    found.within("the bus is back after", back.elapsed(), BACK);
    sleep(AFTER).await;

    // What was published at the very end is not waited for.
    let end = Instant::now() - HEARD;
    let book = heart.book();
    judge_pulses(&mut found, &book, ["before", "while it is away", "afterwards"], gone, back, end);
    found.never("clients cut off", book.cuts.len());
    Ok(found)
}

/// PostgreSQL is gone.
async fn postgres_away(world: &mut World) -> Result<Findings> {
    let (mut found, heart) = (Findings::default(), Heart::start(world).await?);
    let door = Door::start(world);
    sleep(BEFORE).await;
    let server = world.postgres.as_mut().context("there is no PostgreSQL")?;
    server.down(Shutdown::Kill).await?;
    let gone = Instant::now();
    sleep(POSTGRES_AWAY).await;
    let almost = Instant::now();
    let server = world.postgres.as_mut().context("there is no PostgreSQL")?;
    server.up().await?;
    let back = Instant::now();
    sleep(BACK + AFTER).await;

    let end = Instant::now() - HEARD;
    let knocks = door.knocks();
    let during = knocks.iter().filter(|knock| knock.sent >= gone && knock.answered < almost);
    let (put_off, others): (Vec<_>, Vec<_>) =
        during.partition(|knock| knock.status == Some(503) && knock.retry_after);
    found.figure("webhooks answered 503 with Retry-After", put_off.len() as f64);
    found.never("webhooks answered otherwise", others.len());
    if let Some(other) = others.first() {
        found.breaches.push(format!("a webhook was answered {:?} while PostgreSQL was away", other.status));
    }
    if put_off.is_empty() {
        found.breaches.push("no webhook was answered while PostgreSQL was away".into());
    }
    let mut longest = Duration::ZERO;
    for node in 0..world.nodes.len() {
        let taken = |knock: &&Knock| knock.node == node && matches!(knock.status, Some(200..=299));
        let first = knocks.iter().filter(taken).find(|knock| knock.answered > back);
        longest = longest.max(first.map_or(PATIENCE, |knock| knock.answered - back));
    }
    found.within("webhooks are taken again after", longest, BACK);
    let late =
        knocks.iter().filter(|knock| knock.sent > back + BACK && !matches!(knock.status, Some(200..=299)));
    found.never("webhooks refused afterwards", late.count());
    let book = heart.book();
    judge_pulses(&mut found, &book, ["before", "", "afterwards"], gone, back, end);
    found.never("clients cut off", book.cuts.len());
    Ok(found)
}

/// Events in three parts of the run, and how long after their 2xx they were heard; with an empty name
/// a part is left out.
fn judge_pulses(
    found: &mut Findings,
    book: &Book,
    names: [&str; 3],
    gone: Instant,
    back: Instant,
    end: Instant,
) {
    let of = |pulse: &&Pulse| match pulse.sent {
        sent if sent + HEARD < gone => 0,
        sent if sent >= gone && sent < back => 1,
        sent if sent >= back + BACK && sent < end => 2,
        // What was under way when it went, and while everything finds its way back.
        _ => 3,
    };
    for (part, name) in names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let pulses: Vec<&Pulse> = book.pulses.iter().filter(|pulse| of(pulse) == part).collect();
        let refused = pulses.iter().filter(|pulse| pulse.taken.is_none()).count();
        found.figure(format!("published {name}"), pulses.len() as f64);
        found.never(&format!("refused {name}"), refused);
        let (mut here, mut elsewhere, mut never) = (Vec::new(), Vec::new(), 0);
        for (pulse, taken) in pulses.iter().filter_map(|pulse| Some((pulse, pulse.taken?))) {
            for (node, heard) in pulse.heard.iter().enumerate() {
                let times = if node == pulse.node { &mut here } else { &mut elsewhere };
                match heard {
                    // Behind the answer; how long the commit took does not count.
                    Some(heard) => times.push(heard.saturating_duration_since(taken)),
                    None => never += 1,
                }
            }
        }
        found.never(&format!("never heard {name}"), never);
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
        found.within(&format!("other nodes {name} at most"), most, HEARD);
    }
}

/// What each node says of the bus.
async fn bus_up(world: &World) -> Result<Vec<bool>> {
    let mut up = Vec::new();
    for node in &world.nodes {
        let Target { address, host } = node.target();
        let metrics = spawn_blocking(move || Metrics::scrape(address, &host)).await??;
        up.push(metrics.sum("campanile_bus_up") > 0.0);
    }
    Ok(up)
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
