//! One server of a comparison, started for one round, and what a measurement needs to know of it and
//! may tell beside its figures.

use std::net::SocketAddr;
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testkit::gateway::{Gateway, Launch, new_secret};
use testkit::postgres::Postgres;
use testkit::target::Target;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::meter::{Cost, Meter};
use super::peer::Peer;
use super::watch::Watch;
use super::{Options, Side};
use crate::cores::{self, Cores};
use crate::metrics::Metrics;
use crate::stats::{Histogram, Timeline};
use crate::ws::dialect::Dialect;
use crate::ws::door::Publishing;
use crate::ws::swarm::{Swarm, first_frame};
use crate::{process, token};

const NAMESPACE: &str = "bench";
/// Polls a minute and user: as many as there can be.
const POLLS: u32 = u32::MAX;
/// Files beside the connections: the program's own, and publishers.
const OTHER_FILES: u64 = 1100;

/// A server, kept until the round is over.
pub struct Host {
    /// How to use it.
    pub session: Session,
    process: Process,
}

enum Process {
    Floor(Child),
    /// With the database that it drains into.
    Gateway(Box<(Gateway, Option<Postgres>)>),
    Foreign,
}

/// How to use a server.
#[derive(Clone)]
pub struct Session {
    /// What it is.
    pub side: Side,
    /// Where it listens.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// Its process, if that is known.
    pub pid: Option<u32>,
    /// The PostgreSQL that was started for the run, to make more databases in.
    pub postgres: Option<String>,
    api_key: String,
    channel: String,
    tokens: Tokens,
    webhook_secret: Option<String>,
    meter: Arc<Meter>,
}

#[derive(Clone)]
enum Tokens {
    /// A user for every connection.
    Minted(String),
    /// The same for all.
    Same(String),
}

impl Host {
    /// Starts it, or finds it.
    pub async fn start(options: &Options, side: Side, cores: Option<Cores>) -> Result<Self> {
        match (side, &options.url) {
            (Side::Floor, _) => Self::floor(options, cores).await,
            (Side::Gateway, None) => Self::gateway(options, cores).await,
            (Side::Peer(_), _) => Self::peer(options, cores).await,
            (Side::Gateway, Some(url)) => Self::foreign(options, url, cores).await,
        }
    }

    /// Lets it end in good order.
    pub async fn finish(self) -> Result<()> {
        match self.process {
            Process::Gateway(mut gateway) => gateway.0.terminate().await.map(drop),
            Process::Floor(mut child) => Ok(child.kill().await?),
            Process::Foreign => Ok(()),
        }
    }

    async fn floor(options: &Options, cores: Option<Cores>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // It writes what it makes durable where the gateway does.
        command.arg("floor").current_dir(options.data_in.clone().unwrap_or_else(std::env::temp_dir));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child =
            cores::start_on(cores.map(|cores| cores.server), command).context("cannot start the floor")?;
        let mut line = String::new();
        let out = child.stdout.as_mut().context("the floor has no output")?;
        BufReader::new(out).read_line(&mut line).await?;
        let address: SocketAddr = line.trim().parse().context("the floor does not start")?;
        let session = Session {
            side: Side::Floor,
            address,
            host: address.to_string(),
            pid: child.id(),
            api_key: new_secret(),
            channel: format!("{NAMESPACE}:load"),
            tokens: Tokens::Minted(new_secret()),
            webhook_secret: Some(new_secret()),
            meter: Arc::new(Meter::new(child.id(), cores)),
            postgres: None,
        };
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
        let session = Session {
            side: Side::Gateway,
            address: spawned.address,
            host: spawned.address.to_string(),
            pid: spawned.id(),
            api_key,
            channel: format!("{NAMESPACE}:load"),
            tokens: Tokens::Minted(jwt_secret),
            webhook_secret: Some(webhook_secret),
            meter: Arc::new(Meter::new(spawned.id(), cores).beside(postgres.as_ref().and_then(Postgres::id))),
            postgres: postgres.as_ref().map(|postgres| postgres.url("postgres")),
        };
        Ok(Self { session, process: Process::Gateway(Box::new((spawned, postgres))) })
    }

    async fn foreign(options: &Options, url: &str, cores: Option<Cores>) -> Result<Self> {
        let Target { address, host } = Target::resolve(url).await?;
        let tokens = match (&options.token, &options.jwt_secret) {
            (Some(token), _) => Tokens::Same(token.clone()),
            (None, Some(secret)) => Tokens::Minted(secret.clone()),
            (None, None) => bail!("--url needs --jwt-secret or --token"),
        };
        let session = Session {
            side: Side::Gateway,
            address,
            host,
            pid: options.pid,
            api_key: options.api_key.clone().unwrap_or_default(),
            channel: options.channel.clone(),
            tokens,
            webhook_secret: options.webhook_secret(),
            meter: Arc::new(Meter::new(options.pid, cores)),
            postgres: None,
        };
        Ok(Self { session, process: Process::Foreign })
    }

    async fn peer(options: &Options, cores: Option<Cores>) -> Result<Self> {
        let Peer { dialect, target, pid, api_key, jwt_secret, channel } = options.peer.find().await?;
        let session = Session {
            side: Side::Peer(dialect),
            address: target.address,
            host: target.host,
            pid,
            api_key,
            channel,
            tokens: jwt_secret.map_or(Tokens::Same(String::new()), Tokens::Minted),
            webhook_secret: None,
            meter: Arc::new(Meter::new(pid, cores)),
            postgres: None,
        };
        Ok(Self { session, process: Process::Foreign })
    }
}

impl Session {
    fn dialect(&self) -> Dialect {
        match self.side {
            Side::Floor | Side::Gateway => Dialect::Centrifuge,
            Side::Peer(dialect) => dialect,
        }
    }

    /// Clients of this server, whatever it speaks; nobody yet.
    pub fn swarm(&self) -> Result<Swarm> {
        Swarm::speaking(self.dialect(), self.address, &self.host, &self.channel)
    }

    /// The first frames of these connections, spread over so many channels.
    pub fn first_frames(&self, connections: Range<usize>, channels: usize) -> Vec<Vec<u8>> {
        connections.map(|connection| self.first_frame(connection, connection % channels)).collect()
    }

    /// The first frame of a connection to a channel.
    pub fn first_frame(&self, connection: usize, channel: usize) -> Vec<u8> {
        if self.dialect() != Dialect::Centrifuge {
            return self.dialect().subscription(&self.channel(channel));
        }
        first_frame(&self.token(connection, None), &self.channel(channel))
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

    /// What signs webhooks.
    pub fn webhook_secret(&self) -> Result<&str> {
        self.webhook_secret.as_deref().context("--secret is missing: what signs webhooks there")
    }

    /// Where it is.
    pub fn target(&self) -> Target {
        Target { address: self.address, host: self.host.clone() }
    }

    /// How to publish data of `size` bytes.
    pub fn publishing(&self, size: usize) -> Publishing<'_> {
        let Self { address, host, api_key, channel, .. } = self;
        Publishing { address: *address, host, api_key, channel, size, dialect: self.dialect() }
    }

    /// What the server says of itself.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(self.address, &self.host)
    }

    /// The processor time that the server has used, if its process is known.
    pub fn cpu_time(&self) -> Option<Duration> {
        process::cpu_time(self.pid?)
    }

    /// Runs the measured part of a round, and says what it cost. What the machine did meanwhile is
    /// what the report warns of, so that a round that does not call this is judged as a whole.
    pub fn measure<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        self.meter.measure(work)
    }

    /// The measured part begins, for measurements that are told so; see [`Self::measure`].
    pub fn watch(&self) -> Watch {
        self.meter.watch()
    }

    /// The measured part is over.
    pub fn enough(&self, watch: Watch) -> Cost {
        self.meter.enough(watch)
    }

    /// Puts latencies into the report, as a histogram: from where to where, in its name. Rounds, and
    /// more under the same name, are taken together.
    pub fn observe(&self, name: &str, latencies: &Histogram) {
        self.meter.observe(name, latencies);
    }

    /// Puts how often something happened into the report, as a curve over time.
    pub fn observe_over_time(&self, name: &str, timeline: Timeline) {
        self.meter.observe_over_time(name, timeline);
    }

    /// Puts a reason to doubt the figures into the report: a code for programs, a text for people.
    pub fn warn(&self, code: &'static str, text: String) {
        self.meter.warn(code, text);
    }

    /// Says to whom watches that a stage begins, and how long it takes if that is known.
    pub fn stage(&self, name: &'static str, time: Option<Duration>) {
        self.meter.stage(name, time);
    }

    /// Says to whom watches how much has been done in this stage. Costs next to nothing.
    pub fn count(&self, count: u64) {
        self.meter.count(count);
    }

    /// The client spins, so that its processor time is no sign of saturation.
    pub fn spin(&self) {
        self.meter.spin();
    }

    /// What has been told so far.
    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The server's bytes in memory, if its process is known.
    pub fn resident(&self) -> Option<u64> {
        process::resident(self.pid?)
    }
}

/// Raises the limit of open files, or says that it is too low.
pub fn ensure_files(connections: usize) -> Result<()> {
    let most = most_connections()?;
    ensure!(
        connections as u64 <= most,
        "{connections} connections are more than the {most} for which files may be open: \
         raise the hard limit (ulimit -Hn) or ask for fewer"
    );
    Ok(())
}

/// How many connections there may be after the limit of open files was raised.
pub fn most_connections() -> Result<u64> {
    Ok(rlimit::increase_nofile_limit(u64::MAX)?.saturating_sub(OTHER_FILES))
}

fn config(history: bool) -> String {
    let history = match history {
        true => "history_size = 1000\nhistory_ttl = \"60s\"\nforce_recovery = true\n",
        false => "",
    };
    format!(
        "[server]\nworkers = 1\n\n[client]\nuser_connection_limit = 0\n\n[[channel.namespaces]]\n\
         name = \"{NAMESPACE}\"\n{history}presence = true\nallow_subscribe_for_client = true\n\
         allow_history_for_client = true\n\n[limits]\npolls_per_minute = {POLLS}\n"
    )
}
