//! What goes wrong, when: each fault actions several times, spread over the run by the number of events
//! that are settled, with details from the seed. It leaves everything as it found it, and fails if
//! a gateway does not come back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::postgres::Shutdown;
use testkit::proxy::{Cut, Slow};
use testkit::random::Random;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::environment::Environment;
use crate::measure::findings::Findings;
use crate::plan::{Case, Fault};
use crate::publisher::{self, Progress};
use crate::{disk, measure, outage, reload, strangers};

/// How often it actions in a run, and how often if it is another one each time.
const ACTIONS: u64 = 3;
const MIXED: u64 = 6;
/// How long nothing is read from readers at most; who receives nothing for longer leaves by itself.
const STOPPED: Duration = Duration::from_secs(8);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One action, and what there is around it.
pub struct Action<'a> {
    /// How many have been before.
    pub number: u64,
    pub env: &'a mut Environment,
    pub progress: &'a mut watch::Receiver<Progress>,
    /// How many events are to be published at least.
    pub events: u64,
    pub random: &'a mut Random,
}

#[derive(Debug, Default)]
pub struct Acted {
    pub actions: u64,
    pub findings: Findings,
}

/// Acts until there is nothing left to do.
pub async fn run(
    (case, events): (Case, u64),
    env: &mut Environment,
    mut progress: watch::Receiver<Progress>,
    mut random: Random,
) -> Result<Acted> {
    if case.fault.is_measured() {
        publisher::until(&mut progress, |now| now.settled > events / 20).await?;
        let findings = measure::run(case.fault, env).await.with_context(|| case.fault.to_string())?;
        return Ok(Acted { actions: 1, findings });
    }
    let actions = match case.fault {
        Fault::None => 0,
        Fault::Failover => 1,
        Fault::Mixed => MIXED,
        _ => ACTIONS,
    };
    let mix = Fault::mixed(case.database);
    for number in 0..actions {
        // Somewhere in its part of the run, but never so late that nothing follows.
        let part = events * 8 / 10 / actions;
        let at = part * number + random.within(part / 4..part.max(4));
        publisher::until(&mut progress, |now| now.settled >= at).await?;
        sleep(random.millis(0..30)).await;
        let fault = if case.fault == Fault::Mixed { random.pick(&mix) } else { case.fault };
        let action = Action { number, env, progress: &mut progress, events, random: &mut random };
        once(fault, action).await.with_context(|| format!("{fault} after {at} events"))?;
    }
    Ok(Acted { actions, findings: Findings::default() })
}

async fn once(fault: Fault, action: Action<'_>) -> Result<()> {
    let Action { number, env, random, .. } = action;
    let node = random.within(0..env.nodes.len() as u64) as usize;
    // One of several may well be away for a while.
    let away = if env.nodes.len() > 1 && random.once_in(2) { random.millis(0..2500) } else { Duration::ZERO };
    match fault {
        Fault::None | Fault::Mixed => {}
        Fault::RedisDown | Fault::RedisHang | Fault::PostgresDown | Fault::NodeDeath => {}
        Fault::Kill => {
            env.nodes[node].kill().await?;
            sleep(away).await;
            env.nodes[node].start().await?;
        }
        Fault::Term => {
            env.nodes[node].terminate().await?;
            sleep(away).await;
            env.nodes[node].start().await?;
        }
        Fault::Rolling => {
            for node in &mut env.nodes {
                node.terminate().await?;
                node.start().await?;
            }
        }
        Fault::Stop => env.nodes[node].pause(random.millis(300..1500) + away).await?,
        Fault::PostgresRestart => {
            let how = [Shutdown::Fast, Shutdown::Immediate, Shutdown::Kill][number as usize % 3];
            let server = env.postgres.as_mut().context("there is no PostgreSQL")?;
            if random.once_in(2) {
                server.restart(how).await?;
            } else {
                server.down(how).await?;
                sleep(random.millis(200..1000)).await;
                server.up().await?;
            }
        }
        Fault::PostgresTerminate => {
            ensure!(env.terminate_sessions().await? > 0, "the gateway had no session");
        }
        Fault::Cut => {
            let how = [Cut::Reset, Cut::Close, Cut::Stall][number as usize % 3];
            env.proxy.iter().for_each(|proxy| proxy.cut(how));
        }
        Fault::Slow => be_slow(env, action.progress, action.events, random).await?,
        Fault::DiskFull => fill_the_disk(env, number, action.progress, action.events, random).await?,
        Fault::PostgresCut => outage::cut_postgres(env, node, random).await?,
        Fault::ClientsCut => outage::cut_clients(env, node, random).await?,
        Fault::Failover => outage::fail_over(env, random).await?,
        Fault::RedisRestart => outage::restart_redis(env, random).await?,
        Fault::RedisFreeze => outage::freeze_redis(env, random).await?,
        Fault::RedisCut => outage::cut_redis(env, node, random).await?,
        Fault::RedisDrop => outage::drop_messages(env, action.progress, random).await?,
        Fault::RedisForge => strangers::forge_messages(env).await?,
        Fault::Reload => reload::options(env, number).await?,
        Fault::Block => strangers::block_while_connecting(env, number, random).await?,
    }
    if !matches!(fault, Fault::Cut | Fault::Slow) {
        for node in &mut env.nodes {
            node.wait_until_ready().await?;
        }
    }
    Ok(())
}

/// All are slow for a while; from some nothing is read until the gateway has closed a few of them, and are let
/// go within the five seconds that it gives them to hear why. Where nobody fell so far behind, because
/// little was published, the table says it.
async fn be_slow(
    env: &Environment,
    progress: &watch::Receiver<Progress>,
    events: u64,
    random: &mut Random,
) -> Result<()> {
    let wanted = env.too_slow().await? + random.within(2..6);
    let set = |slow| env.proxy.iter().for_each(|proxy| proxy.slow(slow));
    set(Slow::All);
    sleep(random.millis(1500..3000)).await;
    set(Slow::Stopped);
    let began = Instant::now();
    while env.too_slow().await? < wanted && progress.borrow().settled < events && began.elapsed() < STOPPED {
        sleep(POLL_INTERVAL).await;
    }
    set(Slow::None);
    Ok(())
}

/// Until publishers have been put off by it, and a moment longer.
async fn fill_the_disk(
    env: &mut Environment,
    number: u64,
    progress: &mut watch::Receiver<Progress>,
    events: u64,
    random: &mut Random,
) -> Result<()> {
    let disk = env.disk.as_ref().context("there is no disk to fill")?;
    let before = progress.borrow().put_off;
    disk.fill()?;
    disk::expect_full(disk)?;
    // A database writes on for a while where it already has room.
    publisher::until(progress, |now| now.put_off > before + 3 || now.settled >= events).await?;
    let noticed = progress.borrow().put_off > before + 3;
    sleep(random.millis(100..600)).await;
    disk.free()?;
    // Later the files may have grown so far that the rest of the events finds room in them.
    ensure!(noticed || number > 0, "nobody noticed that the disk was full");
    // A PostgreSQL that cannot write its log gives up; its operator starts it again.
    if let Some(server) = &mut env.postgres {
        server.up().await?;
    }
    Ok(())
}
