//! What goes wrong, when: each fault acts several times, spread over the run by the number of events
//! that are settled, with details from the seed. It leaves everything as it found it, and fails if
//! the gateway does not come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use tokio::time::sleep;

use super::disk;
use super::plan::Fault;
use super::proxy::{Cut, Slow};
use super::publisher::{self, Progress};
use super::random::Random;
use super::world::World;
use crate::postgres::Shutdown;

/// How often it acts in a run.
const ACTS: u64 = 3;
/// How long readers stand still at most; whoever hears nothing for longer leaves by himself.
const STANDING: Duration = Duration::from_secs(8);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Acts until there is nothing left to do; says how often it did.
pub async fn run(
    fault: Fault,
    world: &mut World,
    mut progress: watch::Receiver<Progress>,
    events: u64,
    mut random: Random,
) -> Result<u64> {
    if fault == Fault::None {
        return Ok(0);
    }
    for act in 0..ACTS {
        // Somewhere in its part of the run, but never so late that nothing follows.
        let part = events * 8 / 10 / ACTS;
        let at = part * act + random.within(part / 4..part.max(4));
        publisher::until(&mut progress, |now| now.settled >= at).await?;
        sleep(random.millis(0..30)).await;
        let what = act_once(fault, act, world, &mut progress, events, &mut random);
        what.await.with_context(|| format!("{fault} after {at} events"))?;
    }
    Ok(ACTS)
}

async fn act_once(
    fault: Fault,
    act: u64,
    world: &mut World,
    progress: &mut watch::Receiver<Progress>,
    events: u64,
    random: &mut Random,
) -> Result<()> {
    let node = random.within(0..world.nodes.len() as u64) as usize;
    match fault {
        Fault::None => {}
        Fault::Kill => {
            world.nodes[node].kill().await?;
            world.nodes[node].up().await?;
        }
        Fault::Term => {
            world.nodes[node].end().await?;
            world.nodes[node].up().await?;
        }
        Fault::Stop => world.nodes[node].stand_still(random.millis(300..1500)).await?,
        Fault::PostgresRestart => {
            let how = [Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill][act as usize % 3];
            let server = world.postgres.as_mut().context("there is no PostgreSQL")?;
            if random.once_in(2) {
                server.restart(how).await?;
            } else {
                server.down(how).await?;
                sleep(random.millis(200..1000)).await;
                server.up().await?;
            }
        }
        Fault::PostgresTerminate => {
            ensure!(world.terminate_sessions().await? > 0, "the gateway had no session");
        }
        Fault::Cut => {
            let how = [Cut::Reset, Cut::Close, Cut::Silence][act as usize % 3];
            world.proxies.iter().for_each(|proxy| proxy.cut(how));
        }
        Fault::Slow => be_slow(world, progress, events, random).await?,
        Fault::DiskFull => fill_the_disk(world, act, progress, events, random).await?,
    }
    if !matches!(fault, Fault::Cut | Fault::Slow) {
        for node in &mut world.nodes {
            node.wait_until_ready().await?;
        }
    }
    Ok(())
}

/// All are slow for a while; some stand still until the gateway has closed a few of them, and are let
/// go within the five seconds that it gives them to hear why. Where nobody fell so far behind, because
/// little was published, the table says it.
async fn be_slow(
    world: &World,
    progress: &watch::Receiver<Progress>,
    events: u64,
    random: &mut Random,
) -> Result<()> {
    let wanted = world.too_slow().await? + random.within(2..6);
    let set = |slow| world.proxies.iter().for_each(|proxy| proxy.slow(slow));
    set(Slow::All);
    sleep(random.millis(1500..3000)).await;
    set(Slow::Still);
    let began = Instant::now();
    while world.too_slow().await? < wanted && progress.borrow().settled < events && began.elapsed() < STANDING
    {
        sleep(LOOK_AGAIN).await;
    }
    set(Slow::No);
    Ok(())
}

/// Until publishers have been put off by it, and a moment longer.
async fn fill_the_disk(
    world: &mut World,
    act: u64,
    progress: &mut watch::Receiver<Progress>,
    events: u64,
    random: &mut Random,
) -> Result<()> {
    let disk = world.disk.as_ref().context("there is no disk to fill")?;
    let before = progress.borrow().put_off;
    disk.fill()?;
    disk::expect_full(disk)?;
    // A database writes on for a while where it already has room.
    publisher::until(progress, |now| now.put_off > before + 3 || now.settled >= events).await?;
    let noticed = progress.borrow().put_off > before + 3;
    sleep(random.millis(100..600)).await;
    disk.free()?;
    // Later the files may have grown so far that the rest of the events finds room in them.
    ensure!(noticed || act > 0, "nobody noticed that the disk was full");
    // A PostgreSQL that cannot write its log gives up; its operator starts it again.
    if let Some(server) = &mut world.postgres {
        server.up().await?;
    }
    Ok(())
}
