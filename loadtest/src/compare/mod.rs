//! Measures the gateway and the floor in turns, in one session and on the same cores, because a
//! figure of one alone says as much about the machine as about the gateway. Starts each anew for
//! every round, takes medians, and prints the ratio.

mod live;
pub mod meter;
mod peer;
pub mod session;
pub mod table;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Error, Result, ensure};
use clap::{Args, ValueEnum};
use tokio::sync::oneshot;

use crate::cores::{self, Cores, Wish};
use crate::report::{self, Latency, Section, Throughput, book, machine, text};
use crate::server::Database;
use crate::stats::Histogram;
use crate::ws::dialect::Dialect;
use live::Screen;
use meter::{Meter, Seen};
use session::{Host, Session};
use table::{Figure, Table, aside};
use watch::Sample;

/// Which servers to measure, in the options of every scenario that compares.
#[derive(Debug, Args)]
#[command(next_help_heading = "Servers")]
#[group(skip)]
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
    /// What the gateway keeps its log in.
    #[arg(long, value_enum, default_value = "sqlite", conflicts_with_all = ["url", "database_url"])]
    database: Database,
    /// The gateway's DATABASE_URL; what it holds stays.
    #[arg(long, conflicts_with = "url", value_name = "URL")]
    database_url: Option<String>,
    /// The gateway's REDIS_URL [default: none].
    #[arg(long, conflicts_with = "url", value_name = "URL")]
    redis_url: Option<String>,
    /// An option of the gateway, as its environment has it, such as CAMPANILE_SERVER__IO_URING=false; as
    /// often as needed. Its secrets and addresses are the tool's.
    #[arg(long = "set", conflicts_with = "url", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
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
    /// With --url: its webhook secret (of several, separated by commas, the first).
    #[arg(long, env = "GITHUB_WEBHOOK_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// With --url: its JWT secret, to make every connection a user of its own.
    #[arg(long, env = "CAMPANILE_JWT_SECRET", hide_env_values = true)]
    jwt_secret: Option<String>,
    /// Instead of --jwt-secret: one token for all connections.
    #[arg(long, requires = "url", hide_env_values = true)]
    token: Option<String>,
    /// A channel there that any signed-in client may subscribe to.
    #[arg(long, requires = "url", default_value = "bench:load")]
    channel: String,
    #[command(flatten)]
    peer: peer::Options,
    #[command(flatten)]
    report: report::Options,
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
    /// Another server that does the same work.
    Peer(Dialect),
}

impl Side {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Gateway => "gateway",
            Self::Peer(dialect) => dialect.name(),
        }
    }
}

fn setting(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').context("write NAME=VALUE")?;
    ensure!(name.starts_with("CAMPANILE_"), "the names of options begin with CAMPANILE_");
    Ok((name.to_owned(), value.to_owned()))
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

    /// Runs every round, prints the table and hands the section in. `connections` is how many one
    /// round opens at once; `measure` runs on a thread of its own, on the client's core.
    pub async fn run<M>(&self, title: &str, connections: usize, measure: M) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        ensure!(self.peer.dialect()?.is_none(), "this scenario is about more than a peer can do");
        self.run_with_peer(title, connections, measure).await
    }

    /// The same for work that another server can do too, which [`Session::swarm`] and
    /// [`Session::publishing`] know how to talk to.
    pub async fn run_with_peer<M>(&self, title: &str, connections: usize, measure: M) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        let mut sides = match self.against {
            Against::Gateway => vec![Side::Gateway],
            Against::Floor => vec![Side::Floor],
            Against::Both => vec![Side::Floor, Side::Gateway],
        };
        sides.extend(self.peer.dialect()?.map(Side::Peer));
        session::ensure_files(connections)?;
        let cores = self.cores.cores()?;
        let mut section = Section {
            title: title.to_owned(),
            command: book::command(),
            conditions: self.conditions(cores, &sides),
            sides: sides.iter().map(|side| side.name().to_owned()).collect(),
            ..Section::default()
        };
        watch::judge_setting(&mut section, cores.is_some(), self.binary.as_deref());
        self.peer.judge(&mut section, cores);
        let mut rounds = Rounds::of(section, &sides);
        let outcome = rounds.run(self, connections, cores, Arc::new(measure)).await;
        rounds.screen.clear();
        let section = rounds.close(cores.is_some(), outcome.as_ref().err());
        print!("{}", text::section(&section));
        book::hand_in(section, &self.report).and(outcome)
    }

    /// The first of the secrets of a gateway that runs already.
    fn webhook_secret(&self) -> Option<String> {
        let first = self.secret.as_deref()?.split(',').next()?.trim();
        (!first.is_empty()).then(|| first.to_owned())
    }

    fn conditions(&self, cores: Option<Cores>, sides: &[Side]) -> Vec<String> {
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
        let mut conditions = vec![format!("{rounds}; {cores}")];
        if sides.contains(&Side::Gateway) {
            conditions.push(match &self.url {
                Some(url) => format!("gateway: {url}, {}", self.channel),
                None => format!("gateway: {}, {}", self.features(), self.storage()),
            });
        }
        conditions.extend(self.peer.condition());
        conditions
    }

    fn features(&self) -> &'static str {
        match self.no_history {
            true => "tokens, presence and pings on, no history",
            false => "tokens, history, positions, presence and pings on",
        }
    }

    /// Where it keeps things, which decides what a commit costs.
    fn storage(&self) -> String {
        let folder = self.data_in.clone().unwrap_or_else(std::env::temp_dir);
        let what = match (&self.database_url, self.database) {
            (Some(_), _) => return "PostgreSQL".to_owned(),
            (None, Database::Sqlite) => "SQLite",
            (None, Database::Postgres) => "a PostgreSQL of its own",
        };
        machine::file_system(&folder).map_or(what.to_owned(), |kind| format!("{what} on {kind}"))
    }
}

/// What becomes a section.
struct Rounds {
    section: Section,
    table: Table,
    screen: Screen,
    /// By name and side.
    latencies: Vec<(String, Side, Histogram)>,
    /// By side, with whether the client spun.
    samples: Vec<(Side, Vec<Sample>, bool)>,
}

impl Rounds {
    fn of(section: Section, sides: &[Side]) -> Self {
        let (table, screen) = (Table::new(sides), Screen::new());
        Self { section, table, screen, latencies: Vec::new(), samples: Vec::new() }
    }

    async fn run<M>(
        &mut self,
        options: &Options,
        connections: usize,
        cores: Option<Cores>,
        measure: Arc<M>,
    ) -> Result<()>
    where
        M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
    {
        let sides = self.table.sides().to_vec();
        for round in 1..=options.repeats {
            for side in &sides {
                let place = format!("round {round} of {}, {}", options.repeats, side.name());
                self.screen.draw(&format!("{}\n{}{place}: starting", self.section.title, self.table));
                let host = Host::start(options, *side, cores).await.with_context(|| place.clone())?;
                let name = side.name();
                watch::judge_files(&mut self.section, name, host.session.pid, connections);
                let meter = host.session.meter().clone();
                let measuring = on_a_thread(host.session.clone(), cores, measure.clone());
                let mut figures =
                    self.watch(measuring, &meter, &place).await.with_context(|| place.clone())?;
                figures.extend(meter.database_percent().map(|share| aside("database CPU, %", share)));
                host.finish().await.with_context(|| place.clone())?;
                self.screen.note(&format!("{place}: {}", table::line(&figures)));
                self.table.add(*side, &figures);
                self.keep(*side, round, meter.seen(), meter.spins());
            }
        }
        Ok(())
    }

    /// Draws until it is done.
    async fn watch<T>(&mut self, measuring: impl Future<Output = T>, meter: &Meter, place: &str) -> T {
        let mut frames = tokio::time::interval(live::FRAME);
        let mut measuring = std::pin::pin!(measuring);
        loop {
            tokio::select! {
                outcome = &mut measuring => return outcome,
                _ = frames.tick() => {
                    let (title, progress) = (&self.section.title, meter.progress());
                    self.screen.draw(&format!("{title}\n{}{place}: {progress}", self.table));
                }
            }
        }
    }

    fn keep(&mut self, side: Side, round: u8, seen: Seen, spins: bool) {
        let name = side.name();
        for (what, latencies) in &seen.latencies {
            let known = self.latencies.iter_mut().find(|(known, of, _)| known == what && *of == side);
            match known {
                Some((.., all)) => all.merge(latencies),
                None => self.latencies.push((what.clone(), side, latencies.clone())),
            }
        }
        for (what, timeline) in &seen.timelines {
            self.section.throughput.push(Throughput::new(what, name, round, timeline));
        }
        for (code, text) in seen.warnings {
            self.section.warn(code, format!("{name}: {text}"));
        }
        match self.samples.iter_mut().find(|(known, ..)| *known == side) {
            Some((_, samples, _)) => samples.extend(seen.samples),
            None => self.samples.push((side, seen.samples, spins)),
        }
    }

    fn close(mut self, pinned: bool, error: Option<&Error>) -> Section {
        self.section.figures = self.table.rows();
        let latency = |(name, side, all): &(String, Side, Histogram)| Latency::new(name, side.name(), all);
        self.section.latencies = self.latencies.iter().map(latency).collect();
        self.section.failed = error.map(|error| format!("{error:#}"));
        for (side, samples, spins) in &self.samples {
            watch::judge_samples(&mut self.section, side.name(), samples, pinned, *spins);
        }
        watch::judge_figures(&mut self.section);
        self.section
    }
}

/// The runtime stays free to notice Ctrl-C, and then ends the servers.
async fn on_a_thread<M>(session: Session, cores: Option<Cores>, measure: Arc<M>) -> Result<Vec<Figure>>
where
    M: Fn(&Session) -> Result<Vec<Figure>> + Send + Sync + 'static,
{
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let work = || {
            cores.map_or(Ok(()), |cores| cores::stay_on(cores.client))?;
            let before = session.watch();
            let figures = measure(&session)?;
            session.meter().judge_whole(before);
            Ok(figures)
        };
        let measured = work();
        let _ = done.send(measured);
    });
    outcome.await.context("the measuring thread panicked")?
}
