//! `connect`: how many clients a second can come, and what one costs. A connection is TCP, the
//! upgrade, and one frame with connect and subscribe, answered. Invariant: every one gets both
//! replies, and all stay connected to the end.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::compare;
use crate::compare::session::Session;
use crate::compare::table::{Figure, aside, figure};

/// Connected before the clock starts, so that the first steps of a fresh process do not count.
const FIRST: usize = 200;

/// Connects, authenticates and subscribes clients as fast as they are answered.
///
/// Every client has a token of its own, signed before the clock starts.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Connections, all held open until the last one is there.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    window: u16,
    /// Spread over so many channels.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    channels: u32,
    #[command(flatten)]
    servers: compare::Options,
}

/// Runs it.
pub async fn run(options: Options) -> Result<()> {
    let Options { connections, window, channels, servers } = options;
    let title = format!("connect: {connections} connections, {window} under way, {channels} channel(s)");
    let (connections, window, channels) = (connections as usize, window.into(), channels as usize);
    let measure = move |session: &Session| measure(session, connections, window, channels);
    servers.run_with_peer(&title, connections + FIRST, measure).await
}

fn measure(session: &Session, connections: usize, window: usize, channels: usize) -> Result<Vec<Figure>> {
    let mut swarm = session.swarm()?;
    swarm.open(session.first_frames(0..FIRST, channels), window)?;
    let firsts = session.first_frames(FIRST..FIRST + connections, channels);
    session.stage("connecting", None);
    let (took, cost) = session.measure(|| swarm.open(firsts, window))?;
    session.stage("staying", None);
    swarm.listen(Duration::from_millis(200))?;

    let (connections, took) = (connections as f64, took.as_secs_f64());
    let mut figures = vec![figure("connects/s", connections / took)];
    if let Some(used) = cost.server {
        figures.push(figure("server CPU per connect, µs", used * 1e6 / connections));
        figures.push(aside("server CPU, %", used * 100.0 / took));
    }
    figures.push(aside("client CPU, %", cost.client_percent()));
    Ok(figures)
}
