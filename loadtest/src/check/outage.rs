//! What goes wrong between the nodes of a cluster and what they depend on: links that are cut, Redis
//! away, silent or forgetful, and a copy of PostgreSQL that takes over too early.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use tokio::time::sleep;

use super::backend::Passage;
use super::log::{Log, Past, Source};
use super::proxy::{Change, Proxy};
use super::publisher::{self, Progress};
use super::random::Random;
use super::world::World;
use crate::postgres::Shutdown;

/// How long it may take until something was lost.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Closes a way for a while: refused, or in silence, which ends with a reset or with all that waited.
async fn close(set: impl Fn(Passage), time: Duration, random: &mut Random) {
    match random.within(0..3) {
        0 => set(Passage::Refused),
        _ => set(Passage::Held),
    }
    sleep(time).await;
    if random.once_in(2) {
        set(Passage::Refused);
    }
    set(Passage::Open);
}

/// Between a node and its database; at times for longer than one call may take.
pub async fn cut_postgres(world: &World, node: usize, random: &mut Random) -> Result<()> {
    let link = &world.links.get(node).context("no way to PostgreSQL")?.postgres;
    let time = random.millis(300..7000);
    close(|passage| link.set(passage), time, random).await;
    Ok(())
}

/// Between a node and its clients.
pub async fn cut_clients(world: &World, node: usize, random: &mut Random) -> Result<()> {
    let proxy = world.proxy.as_ref().context("no way for clients")?;
    let time = random.millis(300..4000);
    close(|passage| proxy.backends.set(node, passage), time, random).await;
    Ok(())
}

/// Between a node and Redis.
pub async fn cut_redis(world: &World, node: usize, random: &mut Random) -> Result<()> {
    let link = world.links.get(node).and_then(|links| links.redis.as_ref()).context("no way to Redis")?;
    let time = random.millis(300..6000);
    close(|passage| link.set(passage), time, random).await;
    Ok(())
}

/// Redis goes and comes back empty.
pub async fn restart_redis(world: &mut World, random: &mut Random) -> Result<()> {
    let server = world.redis.as_mut().context("there is no Redis")?;
    server.down(random.once_in(2)).await?;
    if random.once_in(2) {
        sleep(random.millis(200..4000)).await;
    }
    server.up().await
}

/// Redis stands still.
pub async fn freeze_redis(world: &mut World, random: &mut Random) -> Result<()> {
    let server = world.redis.as_mut().context("there is no Redis")?;
    server.freeze()?;
    sleep(random.millis(300..5000)).await;
    server.thaw()
}

/// One to three announcements never come to the node that they would have come to next.
pub async fn drop_messages(
    world: &World,
    progress: &mut watch::Receiver<Progress>,
    random: &mut Random,
) -> Result<()> {
    let (before, began) = (world.losses.lost(), Instant::now());
    let wanted = random.within(1..4);
    world.losses.want(wanted);
    while world.losses.lost() < before + wanted {
        ensure!(began.elapsed() < PATIENCE, "there was nothing to lose: does Redis carry anything?");
        sleep(LOOK_AGAIN).await;
    }
    let settled = progress.borrow().settled;
    publisher::until(progress, |now| now.settled > settled).await
}

/// A copy falls behind, PostgreSQL is killed, and the copy takes its place. What the copy lacks is
/// read from the one that was killed: only that may be missing.
pub async fn fail_over(world: &mut World, random: &mut Random) -> Result<()> {
    let mut old = world.postgres.take().context("there is no PostgreSQL")?;
    let link = Proxy::to(old.address(), Change::None, random).await?;
    let copy = old.copy(link.address).await?;
    sleep(random.millis(100..500)).await;
    link.set(Passage::Refused);
    sleep(random.millis(100..500)).await;
    old.down(Shutdown::Kill).await?;
    world.links.iter().for_each(|links| links.postgres.set(Passage::Refused));
    copy.promote().await?;
    let source = Source::Postgres(copy.url(super::world::DATABASE));
    let common = Log::read(&source).await?;
    for way in world.links.iter().map(|links| &links.postgres) {
        way.backends.lead_to(0, copy.address());
        way.set(Passage::Open);
    }
    old.up().await?;
    let past = Past::new(Log::read(&world.source).await?, &common);
    old.down(Shutdown::Fast).await?;
    ensure!(past.lacks() > 0, "the copy lacked nothing");
    (world.past, world.source, world.postgres) = (Some(past), source, Some(copy));
    Ok(())
}
