//! Measures the gateway and the floor in turns, in one session and on the same cores, because a
//! figure of one alone says as much about the machine as about the gateway. Starts each anew for
//! every round, takes medians, and prints the ratio.

pub mod session;
pub mod table;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::sync::oneshot;

use crate::cores::{self, Cores, Wish};
use session::{Host, Session};
use table::{Figure, Table};

/// Which servers to measure, in the options of every scenario that compares.
#[derive(Debug, Args)]
#[command(next_help_heading = "Servers")]
pub struct Options {
    /// What to measure; `both` takes turns and prints the ratio.
    #[arg(long, value_enum, default_value_t = Against::Both)]
    against: Against,
    /// Rounds, each with servers started anew; the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=25))]
    repeats: u8,
    /// The processor cores: `SERVER,CLIENT`, `off`, or `auto` for the first two there are.
    #[arg(long, default_value = "auto")]
    cores: Wish,
    /// Start the gateway for this run, which is what happens without --url.
    #[arg(long, conflicts_with = "url")]
    spawn: bool,
    /// The gateway's binary [default: the campanile next to this tool].
    #[arg(long, conflicts_with = "url", value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Make the gateway's folder in here, to measure a certain disk [default: the temporary folder,
    /// which may be in memory].
    #[arg(long, conflicts_with = "url", value_name = "DIR")]
    data_in: Option<PathBuf>,
    /// A namespace without history, so without positions; presence stays on.
    #[arg(long, conflicts_with = "url")]
    no_history: bool,
    /// A gateway that runs already; only addresses of this machine are accepted.
    #[arg(long)]
    url: Option<String>,
    /// Its process id, to know what it costs.
    #[arg(long, requires = "url")]
    pid: Option<u32>,
    /// With --url: its API key, to publish.
    #[arg(long, env = "CAMPANILE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// With --url: its JWT secret, to make every connection a user of its own.
    #[arg(long, env = "CAMPANILE_JWT_SECRET", hide_env_values = true)]
    jwt_secret: Option<String>,
    /// Instead of --jwt-secret: one token for all connections.
    #[arg(long, requires = "url", hide_env_values = true)]
    token: Option<String>,
    /// A channel there that any signed-in client may subscribe to.
    #[arg(long, requires = "url", default_value = "bench:load")]
    channel: String,
    /// Write the figures of every round to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The sides of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// Campanile.
    Gateway,
    /// The bare server.
    Floor,
    /// One after the other, round by round.
    Both,
}

/// One server of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The bare server.
    Floor,
    /// Campanile.
    Gateway,
}

impl Side {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Gateway => "gateway",
        }
    }
}

impl Options {
    /// For work that a bare server cannot do.
    pub fn gateway_alone(mut self) -> Result<Self> {
        ensure!(self.against != Against::Floor, "only the gateway can do this work");
        self.against = Against::Gateway;
        Ok(self)
    }

    /// Whether server and client have a core each.
    pub fn has_cores(&self) -> Result<bool> {
        Ok(self.cores.cores()?.is_some())
    }

    /// Runs every round and prints the table. `connections` is how many one round opens at once;
    /// `measure` runs on a thread of its own, on the client's core.
    pub async fn run<M>(&self, title: &str, connections: usize, measure: M) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        let sides: &[Side] = match self.against {
            Against::Gateway => &[Side::Gateway],
            Against::Floor => &[Side::Floor],
            Against::Both => &[Side::Floor, Side::Gateway],
        };
        session::ensure_files(connections)?;
        let cores = self.cores.cores()?;
        let measure = Arc::new(measure);
        let mut table = Table::new(sides);
        for round in 1..=self.repeats {
            for side in sides {
                let host = Host::start(self, *side, cores).await?;
                let figures = on_a_thread(host.session.clone(), cores, measure.clone()).await;
                let figures = figures.with_context(|| format!("round {round}, {}", side.name()))?;
                host.finish().await?;
                eprintln!("round {round} {:<8} {}", side.name(), table::line(&figures));
                table.add(*side, &figures);
            }
        }
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        let command = format!("loadtest {}", without_secrets(&command));
        println!("{title}");
        println!("{}", self.conditions(cores, sides.contains(&Side::Gateway)));
        print!("{table}");
        let report = json!({
            "command": command, "title": title, "rounds": self.repeats,
            "cores": cores.map(|cores| [cores.server, cores.client]), "figures": table.to_json(),
        });
        println!("command: {command}");
        crate::scenario::write_json(self.json.as_ref(), &report)
    }

    fn conditions(&self, cores: Option<Cores>, gateway: bool) -> String {
        let rounds = match self.repeats {
            1 => "one round".to_owned(),
            many => format!("medians of {many} rounds (lowest to highest)"),
        };
        let cores = match (cores, &self.url) {
            (Some(Cores { server, client }), None) => {
                format!("server on core {server}, client on core {client}")
            }
            (Some(Cores { client, .. }), Some(_)) => format!("client on core {client}"),
            (None, _) => "cores left to the kernel".to_owned(),
        };
        let features = match (gateway, &self.url) {
            (false, _) => String::new(),
            (true, Some(url)) => format!("\ngateway: {url}, {}", self.channel),
            (true, None) if self.no_history => {
                "\ngateway: tokens, presence and pings on, no history".to_owned()
            }
            (true, None) => "\ngateway: tokens, history, positions, presence and pings on".to_owned(),
        };
        format!("{rounds}; {cores}{features}")
    }
}

/// The runtime stays free to notice Ctrl-C, and then ends the servers.
async fn on_a_thread<M>(session: Session, cores: Option<Cores>, measure: Arc<M>) -> Result<Vec<Figure>>
where
    M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
{
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let measured =
            cores.map_or(Ok(()), |cores| cores::stay_on(cores.client)).and_then(|()| measure(&session));
        let _ = done.send(measured);
    });
    outcome.await.context("the measuring thread panicked")?
}

/// The command as it may be shown around.
fn without_secrets(command: &str) -> String {
    let mut hide = false;
    let words = command.split(' ').map(|word| {
        let secret =
            ["--token", "--jwt-secret", "--api-key"].into_iter().find(|option| word.starts_with(option));
        match secret {
            Some(option) if word.contains('=') => format!("{option}=…"),
            _ if std::mem::replace(&mut hide, secret.is_some()) => "…".to_owned(),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_its_secrets() {
        let shown = without_secrets("fanout --url http://x --api-key k1 --token=k2 --pid 7 --jwt-secret k3");
        assert_eq!(shown, "fanout --url http://x --api-key … --token=… --pid 7 --jwt-secret …");
    }
}
