//! One server of a comparison, started for one round, and what a measurement needs to know of it.

use std::net::SocketAddr;
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testkit::gateway::{Gateway, Launch, new_secret};
use testkit::metrics::Metrics;
use testkit::postgres::Postgres;
use testkit::target::Target;
use testkit::{process, token};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::runtime::Handle;

use super::meter::Meter;
use super::options::Options;
use super::sample::Cost;
use crate::cores::Cores;
use crate::metrics::PerEvent;
use crate::report::table::{Figure, Side, aside, figure};
use crate::ws::publisher;
use crate::ws::swarm::{FirstFrame, Swarm};

const NAMESPACE: &str = "bench";
/// Polls a minute and user: as many as there can be.
const POLLS: u32 = u32::MAX;
/// Files beside the connections: the program's own, and publishers.
const OTHER_FILES: u64 = 1100;

/// A server, kept until the round is over.
pub struct RunningServer {
    pub session: Session,
    process: Process,
}

enum Process {
    Floor(Child),
    /// With the database that it drains into.
    Gateway(Box<(Gateway, Option<Postgres>)>),
    Existing,
}

/// How to use a running server.
#[derive(Clone)]
pub struct Session {
    pub side: Side,
    pub address: SocketAddr,
    pub host: String,
    pub pid: Option<u32>,
    /// The PostgreSQL that was started for the run, to make more databases in.
    pub postgres: Option<String>,
    /// For what is asked outside the measured time.
    pub runtime: Handle,
    api_key: String,
    channel: String,
    tokens: Tokens,
    webhook_secret: Option<String>,
    /// What is recorded beside the figures.
    pub meter: Arc<Meter>,
}

#[derive(Clone)]
enum Tokens {
    /// A user for every connection.
    Minted(String),
    /// The same for all.
    Same(String),
}

impl RunningServer {
    pub async fn start(options: &Options, side: Side, cores: Option<Cores>) -> Result<Self> {
        match (side, &options.url) {
            (Side::Floor, _) => Self::floor(options, cores).await,
            (Side::Gateway, None) => Self::gateway(options, cores).await,
            (Side::Gateway, Some(url)) => Self::existing(options, url, cores).await,
        }
    }

    /// Lets it end in good order.
    pub async fn finish(self) -> Result<()> {
        match self.process {
            Process::Gateway(mut gateway) => gateway.0.terminate().await.map(drop),
            Process::Floor(mut child) => Ok(child.kill().await?),
            Process::Existing => Ok(()),
        }
    }

    async fn floor(options: &Options, cores: Option<Cores>) -> Result<Self> {
        let core = cores.map(|cores| cores.server);
        let mut command = process::command(&std::env::current_exe()?, "KILL", core, &[]);
        // It writes what it makes durable where the gateway does.
        command.arg("floor").current_dir(options.data_in.clone().unwrap_or_else(std::env::temp_dir));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the floor")?;
        let mut line = String::new();
        let out = child.stdout.as_mut().context("the floor has no output")?;
        BufReader::new(out).read_line(&mut line).await?;
        let address: SocketAddr = line.trim().parse().context("the floor does not start")?;
        let session = Session::of(Side::Floor, address, child.id(), cores);
        Ok(Self { session, process: Process::Floor(child) })
    }

    async fn gateway(options: &Options, cores: Option<Cores>) -> Result<Self> {
        let [jwt_secret, api_key, webhook_secret] = [(); 3].map(|()| new_secret());
        let config = config(!options.no_history);
        let mut environment = vec![
            ("GITHUB_WEBHOOK_SECRET", webhook_secret.clone()),
            ("CAMPANILE_JWT_SECRET", jwt_secret.clone()),
            ("CAMPANILE_API_KEY", api_key.clone()),
        ];
        let core = cores.map(|cores| cores.server);
        let (postgres, url) = options.database.start(options.data_in.as_deref(), core).await?.unzip();
        environment.extend(url.or_else(|| options.database_url.clone()).map(|url| ("DATABASE_URL", url)));
        environment.extend(options.redis_url.iter().map(|url| ("REDIS_URL", url.clone())));
        let launch = Launch {
            binary: options.binary.clone(),
            parent: options.data_in.clone(),
            config: Some(config),
            environment,
            settings: options.settings.clone(),
            core,
            ..Launch::default()
        };
        let spawned = launch.start().await?;
        let session = Session::of(Side::Gateway, spawned.address, spawned.id(), cores);
        let session = Session {
            api_key,
            tokens: Tokens::Minted(jwt_secret),
            webhook_secret: Some(webhook_secret),
            meter: Arc::new(Meter::new(spawned.id(), cores).beside(postgres.as_ref().and_then(Postgres::id))),
            postgres: postgres.as_ref().map(|postgres| postgres.url("postgres")),
            ..session
        };
        Ok(Self { session, process: Process::Gateway(Box::new((spawned, postgres))) })
    }

    async fn existing(options: &Options, url: &str, cores: Option<Cores>) -> Result<Self> {
        let Target { address, host } = Target::resolve(url).await?;
        let tokens = match (&options.token, &options.jwt_secret) {
            (Some(token), _) => Tokens::Same(token.clone()),
            (None, Some(secret)) => Tokens::Minted(secret.clone()),
            (None, None) => bail!("--url needs --jwt-secret or --token"),
        };
        let session = Session {
            host,
            api_key: options.api_key.clone().unwrap_or_default(),
            channel: options.channel.clone(),
            tokens,
            webhook_secret: options.webhook_secret(),
            ..Session::of(Side::Gateway, address, options.pid, cores)
        };
        Ok(Self { session, process: Process::Existing })
    }
}

impl Session {
    /// One with secrets of its own.
    fn of(side: Side, address: SocketAddr, pid: Option<u32>, cores: Option<Cores>) -> Self {
        Self {
            side,
            address,
            host: address.to_string(),
            pid,
            postgres: None,
            runtime: Handle::current(),
            api_key: new_secret(),
            channel: format!("{NAMESPACE}:load"),
            tokens: Tokens::Minted(new_secret()),
            webhook_secret: Some(new_secret()),
            meter: Arc::new(Meter::new(pid, cores)),
        }
    }

    /// Clients of this server; no connections yet.
    pub fn swarm(&self) -> Result<Swarm> {
        Swarm::new(self.address, &self.host)
    }

    /// The first frames of these connections, spread over this many channels.
    pub fn first_frames(&self, connections: Range<usize>, channels: usize) -> Vec<FirstFrame> {
        connections.map(|connection| self.first_frame(connection, connection % channels)).collect()
    }

    pub fn first_frame(&self, connection: usize, channel: usize) -> FirstFrame {
        FirstFrame::subscribing(&self.token(connection, None), [&*self.channel(channel)])
    }

    /// The name of a channel of this run, by its number.
    pub fn channel(&self, number: usize) -> String {
        match number {
            0 => self.channel.clone(),
            other => format!("{}-{other}", self.channel),
        }
    }

    /// The token of a connection, a user of its own where tokens can be made; it may read the
    /// repositories of `org`.
    pub fn token(&self, connection: usize, org: Option<&str>) -> String {
        let user = format!("load-{connection}");
        match &self.tokens {
            Tokens::Minted(secret) => token::mint_for(secret, &user, org),
            Tokens::Same(token) => token.clone(),
        }
    }

    /// A token with any claims, where tokens can be made.
    pub fn signed(&self, claims: &serde_json::Value) -> Option<String> {
        match &self.tokens {
            Tokens::Minted(secret) => Some(token::sign(secret, claims)),
            Tokens::Same(_) => None,
        }
    }

    pub fn webhook_secret(&self) -> Result<&str> {
        self.webhook_secret.as_deref().context("--secret is missing: what signs webhooks there")
    }

    pub fn target(&self) -> Target {
        Target { address: self.address, host: self.host.clone() }
    }

    /// How to publish data of `size` bytes.
    pub fn publishing(&self, size: usize) -> publisher::Options<'_> {
        let Self { address, host, api_key, channel, .. } = self;
        publisher::Options { address: *address, host, api_key, channel, size }
    }

    pub fn metrics(&self) -> Result<Metrics> {
        self.runtime.block_on(Metrics::scrape(self.address))
    }

    /// The processor time that the server has used, if its process is known.
    pub fn cpu_time(&self) -> Option<Duration> {
        process::cpu_time(self.pid?)
    }

    /// Runs the measured part of a round, and gives what it cost. Warnings are about what the machine did
    /// in that time; a round that does not call this is judged as a whole.
    pub fn measure<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        self.meter.measure(work)
    }

    /// The same, with what each event cost the database, if the server is a gateway.
    pub fn measure_stored<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost, Option<PerEvent>)> {
        let before = self.metrics().ok();
        let (outcome, cost) = self.measure(work)?;
        let stored = before.zip(self.metrics().ok());
        Ok((outcome, cost, stored.and_then(|(before, after)| PerEvent::between(&before, &after))))
    }

    /// The server's processor time for each of `count`, named by `each`, and both sides' shares of a core.
    pub fn cost_figures(&self, cost: &Cost, each: &'static str, count: f64) -> Vec<Figure> {
        let mut figures = Vec::new();
        if let Some((used, percent)) = cost.server.zip(cost.server_percent()) {
            figures.push(figure(each, used * 1e6 / count));
            figures.push(aside("server CPU, %", percent));
        }
        if !self.meter.spins() {
            figures.push(aside("client CPU, %", cost.client * 100.0 / cost.took));
        }
        figures
    }

    /// The server's bytes in memory, if its process is known.
    pub fn resident(&self) -> Option<u64> {
        process::resident(self.pid?)
    }

    /// The same; an error if it is not known.
    pub fn memory(&self) -> Result<u64> {
        self.resident().context("the server's memory is not known: give its --pid")
    }
}

/// Raises the limit of open files; an error if it is too low.
pub fn ensure_files(connections: usize) -> Result<()> {
    let most = most_connections();
    ensure!(
        connections <= most,
        "{connections} connections are more than the {most} for which files may be open: \
         raise the hard limit (ulimit -Hn) or ask for fewer"
    );
    Ok(())
}

/// How many connections there may be after the limit of open files was raised.
pub fn most_connections() -> usize {
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or_default();
    // The gateway keeps an eighth for second handles on streams.
    (files - files / 8).saturating_sub(OTHER_FILES) as usize
}

fn config(history: bool) -> String {
    let history = match history {
        true => "history_size = 1000\nhistory_ttl = \"60s\"\nforce_recovery = true\n",
        false => "",
    };
    // All of the load comes from one address, like that of a proxy.
    format!(
        "[server]\nworkers = 1\ntrusted_proxies = [\"127.0.0.0/8\"]\n\n[client]\nuser_connection_limit = 0\n\n[[channel.namespaces]]\n\
         name = \"{NAMESPACE}\"\n{history}presence = true\nallow_subscribe_for_client = true\n\
         allow_history_for_client = true\n\n[limits]\npolls_per_minute = {POLLS}\n"
    )
}
