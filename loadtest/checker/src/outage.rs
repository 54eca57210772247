//! What goes wrong between the nodes of a cluster and what they depend on: links that are cut, Redis
//! away, stalled or losing messages, and a copy of PostgreSQL that takes over too early.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::postgres::Shutdown;
use testkit::proxy::{Link, Proxy};
use testkit::random::Random;
use testkit::sql::Source;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::environment::{DATABASE, Environment};
use crate::log::{Log, LostHistory};
use crate::publisher::{self, Progress};

/// How long it may take until something was lost.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Closes a link for a while: refused, or stalled, which ends with a reset or with all that waited.
async fn close(set: impl Fn(Link), time: Duration, random: &mut Random) {
    match random.within(0..3) {
        0 => set(Link::Refused),
        _ => set(Link::Stalled),
    }
    sleep(time).await;
    if random.once_in(2) {
        set(Link::Refused);
    }
    set(Link::Open);
}

/// Between a node and its database; at times for longer than one call may take.
pub async fn cut_postgres(env: &Environment, node: usize, random: &mut Random) -> Result<()> {
    let proxy = &env.links.get(node).context("no link to PostgreSQL")?.postgres;
    let time = random.millis(300..7000);
    close(|link| proxy.set(link), time, random).await;
    Ok(())
}

/// Between a node and its clients.
pub async fn cut_clients(env: &Environment, node: usize, random: &mut Random) -> Result<()> {
    let proxy = env.proxy.as_ref().context("no proxy for clients")?;
    let time = random.millis(300..4000);
    close(|link| proxy.set_server(node, link), time, random).await;
    Ok(())
}

/// Between a node and Redis.
pub async fn cut_redis(env: &Environment, node: usize, random: &mut Random) -> Result<()> {
    let proxy = env.links.get(node).and_then(|links| links.redis.as_ref()).context("no link to Redis")?;
    let time = random.millis(300..6000);
    close(|link| proxy.set(link), time, random).await;
    Ok(())
}

/// Redis goes and comes back empty.
pub async fn restart_redis(env: &mut Environment, random: &mut Random) -> Result<()> {
    let server = env.redis.as_mut().context("there is no Redis")?;
    server.down(random.once_in(2)).await?;
    if random.once_in(2) {
        sleep(random.millis(200..4000)).await;
    }
    server.up().await
}

pub async fn freeze_redis(env: &mut Environment, random: &mut Random) -> Result<()> {
    let server = env.redis.as_mut().context("there is no Redis")?;
    server.freeze()?;
    sleep(random.millis(300..5000)).await;
    server.thaw()
}

/// One to three announcements never come to the node that they would have come to next.
pub async fn drop_messages(
    env: &Environment,
    progress: &mut watch::Receiver<Progress>,
    random: &mut Random,
) -> Result<()> {
    let (before, began) = (env.losses.lost(), Instant::now());
    let wanted = random.within(1..4);
    env.losses.want(wanted);
    while env.losses.lost() < before + wanted {
        ensure!(began.elapsed() < PATIENCE, "there was nothing to lose: does Redis carry anything?");
        sleep(POLL_INTERVAL).await;
    }
    let settled = progress.borrow().settled;
    publisher::until(progress, |now| now.settled > settled).await
}

/// A copy falls behind, PostgreSQL is killed, and the copy takes its place. What the copy lacks is
/// read from the one that was killed: only that may be missing.
pub async fn fail_over(env: &mut Environment, random: &mut Random) -> Result<()> {
    let mut old = env.postgres.take().context("there is no PostgreSQL")?;
    let link = Proxy::to(old.address()).await?;
    let copy = old.copy(link.address).await?;
    sleep(random.millis(100..500)).await;
    link.set(Link::Refused);
    sleep(random.millis(100..500)).await;
    old.down(Shutdown::Kill).await?;
    env.links.iter().for_each(|links| links.postgres.set(Link::Refused));
    copy.promote().await?;
    let source = Source::Postgres(copy.url(DATABASE));
    let common = Log::read(&source).await?;
    for proxy in env.links.iter().map(|links| &links.postgres) {
        proxy.lead_to(copy.address());
        proxy.set(Link::Open);
    }
    old.up().await?;
    let lost = LostHistory::new(Log::read(&env.source).await?, &common);
    old.down(Shutdown::Fast).await?;
    ensure!(lost.lacks() > 0, "the copy lacked nothing");
    (env.lost, env.source, env.postgres) = (Some(lost), source, Some(copy));
    Ok(())
}
