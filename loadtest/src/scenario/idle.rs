//! `idle`: what a client costs that is only there. Invariant: every connection stays, its pings
//! answered. Memory is what the server has more after the connections came than before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::compare;
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};
use crate::ws::swarm::Swarm;

/// Connected before the first look, so that what a server allocates once does not count.
const FIRST: usize = 64;
/// Memory is settled when it has changed by less than this in a second.
const STILL: u64 = 256 * 1024;
const SETTLING: Duration = Duration::from_secs(20);

/// Connects and subscribes clients that then do nothing: memory of each, CPU of all.
///
/// Memory is the server's resident set (VmRSS); kernel buffers of sockets are not in it. While CPU is
/// measured the client never sleeps, if it has a core of its own: to wake it would be the server's work,
/// as in fanout.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest idle
  loadtest idle --connections 20000 --channels 100 --against gateway
  loadtest idle --url http://127.0.0.1:8080 --pid 4242 --jwt-secret J

Exit codes:
  0  measured, and every connection stayed
  1  one was closed, the run ended early, or --strict and a warning")]
#[group(skip)]
pub struct Options {
    /// Connections.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Spread over so many channels.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    /// Seconds of idling, after memory has settled. Pings come every 25 seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { connections, channels, seconds, servers } = options;
    let title = format!("idle: {connections} connections, {channels} channel(s), {seconds} s a round");
    let (connections, channels) = (connections as usize, channels as usize);
    let (idle, spin) = (Duration::from_secs(seconds), servers.has_cores()?);
    let measure = move |session: &Session| measure(session, connections, channels, idle, spin);
    servers.run_with_peer(&title, connections + FIRST, measure).await
}

fn measure(
    session: &Session,
    connections: usize,
    channels: usize,
    idle: Duration,
    spin: bool,
) -> Result<Vec<Figure>> {
    if spin {
        session.spin();
    }
    let resident = || session.resident().context("the server's memory is not known: give its --pid");
    session.stage("connecting, and waiting until memory has settled", None);
    let mut swarm = session.swarm()?;
    swarm.open(session.first_frames(0..FIRST, channels), super::WINDOW)?;
    settle(&mut swarm, resident)?;
    let before = resident()?;
    swarm.open(session.first_frames(FIRST..FIRST + connections, channels), super::WINDOW)?;
    settle(&mut swarm, resident)?;
    let after = resident()?;

    session.cpu_time().context("the server's process is not known, or gone")?;
    session.stage("idling", Some(idle));
    let (_, cost) = session.measure(|| if spin { swarm.spin(idle) } else { swarm.listen(idle) })?;
    let cpu = cost.server_percent().context("the server is gone")?;
    let grown = after as f64 - before as f64;
    Ok(vec![
        figure("resident bytes per connection", grown / connections as f64),
        aside("resident in all, MiB", after as f64 / (1024.0 * 1024.0)),
        aside("server CPU while idle, %", cpu),
    ])
}

fn settle(swarm: &mut Swarm, resident: impl Fn() -> Result<u64>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < SETTLING {
        let before = resident()?;
        swarm.listen(Duration::from_secs(1))?;
        if resident()?.abs_diff(before) < STILL {
            break;
        }
    }
    Ok(())
}
