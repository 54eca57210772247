//! `resume`: many clients come back at once, each having missed events. Invariant: each gets exactly
//! what it missed, in order, with its subscribe reply, and every position is recovered.

use anyhow::{Result, ensure};
use clap::Args;

use super::{MEBI, count, percentile};
use crate::clients::Turns;
use crate::clients::resuming::ResumingClients;
use crate::compare::Scenario;
use crate::compare::session::Session;
use crate::report::table::{Figure, aside, figure};

/// Lets clients resume with their position after events they missed: how long until all are live.
///
/// All are connected and receive some events. Then all are disconnected, every channel gets the events
/// to be missed, and all come back as fast as they are answered, --window at a time. The time counts from the first
/// step to the last receipt; 10,000 clients with 100 missed events each should need 2 s at most.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  loadtest resume
  loadtest resume --channels 100 --missed 300
  loadtest resume --database postgres")]
#[group(skip)]
pub struct Options {
    /// Clients; rounded down to fill all channels evenly.
    #[arg(long, default_value_t = 10_000, value_parser = count(1..=60_000))]
    connections: usize,
    /// Spread over this many channels.
    #[arg(long, default_value_t = 1, value_parser = count(1..=10_000))]
    channels: usize,
    /// Events that each client has missed. A gateway recovers up to
    /// client.recovery_max_publication_limit, 300 by default.
    #[arg(long, default_value_t = 100, value_parser = count(1..=300))]
    missed: usize,
    /// Bytes of an event's data.
    #[arg(long, default_value_t = 128, value_parser = count(0..=60_000))]
    size: usize,
    /// Connections under way at once.
    #[arg(long, default_value_t = super::WINDOW, value_parser = count(1..=1024))]
    window: usize,
}

/// Events that all receive before they are disconnected.
const BEFORE: usize = 10;

impl Scenario for Options {
    const GATEWAY_ALONE: bool = true;

    fn title(&self) -> String {
        let Self { channels, missed, size, window, .. } = self;
        format!(
            "resume: {} clients come back to {channels} channel(s) after {missed} events of {size} bytes, \
             {window} under way",
            self.connections()
        )
    }

    fn connections(&self) -> usize {
        self.connections - self.connections % self.channels
    }

    fn check(&self) -> Result<()> {
        ensure!(self.connections >= self.channels, "every channel needs a client");
        Ok(())
    }

    fn measure(&self, session: &Session) -> Result<Vec<Figure>> {
        let Self { channels, missed, size, window, .. } = *self;
        let connections = self.connections();
        let mut clients = ResumingClients::open(session, connections, channels, window, size)?;
        clients.publish(BEFORE * channels)?;
        clients.settle()?;
        clients.disconnect(0..connections)?;
        clients.publish(missed * channels)?;
        // Signing their tokens is not what is measured.
        let frames = clients.resume_frames(0..connections)?;
        let resident = session.resident();
        let (took, cost) = session.measure(|| clients.resume(frames, window))?;
        let resident = resident.zip(session.resident());
        clients.settle()?;
        let live = clients.live();
        ensure!(live == connections, "{live} of {connections} are still there");

        let (took, clients_back) = (took.as_secs_f64(), connections as f64);
        let latencies = clients.take_latencies();
        session.meter.observe("one client back", &latencies);
        let mut figures = vec![
            figure("all live after, s", took),
            figure("clients back/s", clients_back / took),
            aside("missed events/s", clients_back * missed as f64 / took),
            figure("one client p50, ms", percentile(&latencies, 50)?),
            figure("one client p99, ms", percentile(&latencies, 99)?),
        ];
        figures.extend(session.cost_figures(&cost, "server CPU per client, µs", clients_back));
        if let Some((before, after)) = resident {
            figures.push(aside("resident grown, MiB", (after as f64 - before as f64) / MEBI));
        }
        Ok(figures)
    }
}
