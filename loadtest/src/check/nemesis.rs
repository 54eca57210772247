//! What goes wrong, when: each fault acts several times, spread over the run by the number of events
//! that are settled, with details from the seed. It leaves everything as it found it, and fails if
//! a gateway does not come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use tokio::time::sleep;

use super::measure::Findings;
use super::plan::{Case, Fault};
use super::proxy::{Cut, Slow};
use super::publisher::{self, Progress};
use super::random::Random;
use super::world::World;
use super::{disk, measure, outage};
use crate::postgres::Shutdown;

/// How often it acts in a run, and how often if it is another one each time.
const ACTS: u64 = 3;
const MIXED: u64 = 6;
/// How long readers stand still at most; whoever hears nothing for longer leaves by himself.
const STANDING: Duration = Duration::from_secs(8);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// One act, and what there is around it.
pub struct Act<'a> {
    /// How many have been before.
    pub number: u64,
    /// What it acts on.
    pub world: &'a mut World,
    /// How far publishers are.
    pub progress: &'a mut watch::Receiver<Progress>,
    /// How many events are to be published at least.
    pub events: u64,
    /// Decides the details.
    pub random: &'a mut Random,
}

/// What it has done.
#[derive(Debug, Default)]
pub struct Acted {
    /// How often it acted.
    pub acts: u64,
    /// What was measured.
    pub findings: Findings,
}

/// Acts until there is nothing left to do.
pub async fn run(
    (case, events): (Case, u64),
    world: &mut World,
    mut progress: watch::Receiver<Progress>,
    mut random: Random,
) -> Result<Acted> {
    if case.fault.is_measured() {
        publisher::until(&mut progress, |now| now.settled > events / 20).await?;
        let findings = measure::run(case.fault, world).await.with_context(|| case.fault.to_string())?;
        return Ok(Acted { acts: 1, findings });
    }
    let acts = match case.fault {
        Fault::None => 0,
        Fault::Failover => 1,
        Fault::Mixed => MIXED,
        _ => ACTS,
    };
    let mix = Fault::mixed(case.database);
    for number in 0..acts {
        // Somewhere in its part of the run, but never so late that nothing follows.
        let part = events * 8 / 10 / acts;
        let at = part * number + random.within(part / 4..part.max(4));
        publisher::until(&mut progress, |now| now.settled >= at).await?;
        sleep(random.millis(0..30)).await;
        let fault = if case.fault == Fault::Mixed { random.pick(&mix) } else { case.fault };
        let act = Act { number, world, progress: &mut progress, events, random: &mut random };
        once(fault, act).await.with_context(|| format!("{fault} after {at} events"))?;
    }
    Ok(Acted { acts, findings: Findings::default() })
}

async fn once(fault: Fault, act: Act<'_>) -> Result<()> {
    let Act { number, world, random, .. } = act;
    let node = random.within(0..world.nodes.len() as u64) as usize;
    // One of several may well be away for a while.
    let away =
        if world.nodes.len() > 1 && random.once_in(2) { random.millis(0..2500) } else { Duration::ZERO };
    match fault {
        Fault::None | Fault::Mixed => {}
        Fault::RedisDown | Fault::RedisHang | Fault::PostgresDown | Fault::NodeDeath => {}
        Fault::Kill => {
            world.nodes[node].kill().await?;
            sleep(away).await;
            world.nodes[node].up().await?;
        }
        Fault::Term => {
            world.nodes[node].end().await?;
            sleep(away).await;
            world.nodes[node].up().await?;
        }
        Fault::Rolling => {
            for node in &mut world.nodes {
                node.end().await?;
                node.up().await?;
            }
        }
        Fault::Stop => world.nodes[node].stand_still(random.millis(300..1500) + away).await?,
        Fault::PostgresRestart => {
            let how = [Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill][number as usize % 3];
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
            let how = [Cut::Reset, Cut::Close, Cut::Silence][number as usize % 3];
            world.proxy.iter().for_each(|proxy| proxy.cut(how));
        }
        Fault::Slow => be_slow(world, act.progress, act.events, random).await?,
        Fault::DiskFull => fill_the_disk(world, number, act.progress, act.events, random).await?,
        Fault::PostgresCut => outage::cut_postgres(world, node, random).await?,
        Fault::ClientsCut => outage::cut_clients(world, node, random).await?,
        Fault::Failover => outage::fail_over(world, random).await?,
        Fault::RedisRestart => outage::restart_redis(world, random).await?,
        Fault::RedisFreeze => outage::freeze_redis(world, random).await?,
        Fault::RedisCut => outage::cut_redis(world, node, random).await?,
        Fault::RedisDrop => outage::drop_messages(world, act.progress, random).await?,
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
    let set = |slow| world.proxy.iter().for_each(|proxy| proxy.slow(slow));
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
