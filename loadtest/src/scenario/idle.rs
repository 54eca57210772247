//! `idle`: what a client costs that is only connected. Invariant: every connection stays, its pings
//! answered. Memory is what the server has more after the clients connected than before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::{MEBI, count};
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};
use crate::ws::swarm::Swarm;

/// Connected before the first look, so that what a server allocates once does not count.
const FIRST: usize = 64;
/// Memory is settled when it has changed by less than this in a second.
const STILL: u64 = 256 * 1024;
const SETTLING: Duration = Duration::from_secs(20);

/// Connects and subscribes clients that then do nothing: memory of each, CPU of all.
///
/// Memory is the server's resident set (VmRSS); kernel buffers of sockets are not in it. While CPU is
/// measured the client never sleeps, if it has a core of its own: waking it would be the server's work,
/// as in fanout.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest idle
  loadtest idle --connections 20000 --channels 100 --against gateway
  loadtest idle --url http://127.0.0.1:8080 --pid 4242 --jwt-secret J")]
#[group(skip)]
pub struct Options {
    /// Connections.
    #[arg(long, default_value_t = 5000, value_parser = count(1..=60_000))]
    connections: usize,
    /// Spread over this many channels.
    #[arg(long, default_value_t = 1, value_parser = count(1..=60_000))]
    channels: usize,
    /// Seconds of idling, after memory has settled. Pings come every 25 seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

impl Scenario for Options {
    fn title(&self) -> String {
        let Self { connections, channels, seconds, .. } = self;
        format!("idle: {connections} connections, {channels} channel(s), {seconds} s a round")
    }

    fn connections(&self) -> usize {
        self.connections + FIRST
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let Self { connections, channels, .. } = *self;
        let (idle, spin) = (Duration::from_secs(self.seconds), session.meter.spin_on_own_core());
        let mut swarm = session.swarm()?;
        swarm.open(session.first_frames(0..FIRST, channels), super::WINDOW)?;
        let before = settled(&mut swarm, session)?;
        swarm.open(session.first_frames(FIRST..FIRST + connections, channels), super::WINDOW)?;
        let after = settled(&mut swarm, session)?;

        let ((), cost) = session.measure(|| swarm.listen(idle, spin))?;
        let cpu = cost.server_percent().context("the server's process is not known, or gone")?;
        let grown = after as f64 - before as f64;
        Ok(vec![
            figure("resident bytes per connection", grown / connections as f64),
            aside("resident in all, MiB", after as f64 / MEBI),
            aside("server CPU while idle, %", cpu),
        ])
    }
}

/// The server's memory when it has settled.
fn settled(swarm: &mut Swarm, session: &Session) -> Result<u64> {
    let began = Instant::now();
    let mut before = session.memory()?;
    loop {
        swarm.listen(Duration::from_secs(1), false)?;
        let now = session.memory()?;
        if now.abs_diff(before) < STILL || began.elapsed() > SETTLING {
            return Ok(now);
        }
        before = now;
    }
}
