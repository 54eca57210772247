//! What a case runs against: one node or several with their database and their Redis, and the proxies
//! between all of these and the clients. Everything is started for the case and ends with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use testkit::gateway::{Gateway, Launch, new_secret};
use testkit::metrics::Metrics;
use testkit::pgbouncer::{self, PgBouncer};
use testkit::postgres::{self, Postgres};
use testkit::proxy::{NewFilter, Options, Proxy};
use testkit::random::Random;
use testkit::redis::{self, Redis};
use testkit::sql::Source;
use tokio::task::JoinSet;

use crate::disk::Disk;
use crate::faulty_proxy::{Defect, FaultyProxy};
use crate::log::LostHistory;
use crate::message_loss::{Losses, MessageFilter};
use crate::plan::{Case, Database, Fault, Scenario};
use crate::reload::LATE_OFF;

/// The namespace of publications.
pub const NAMESPACE: &str = "check";
/// The namespace of what is measured; it is not verified.
pub const PROBE_NAMESPACE: &str = "probe";
/// The namespace that has a history at times; what is in it is checked where it is published.
pub const LATE_NAMESPACE: &str = "late";
/// Connections of a user where users are counted.
pub const CONNECTION_LIMIT: usize = 3;
pub const DATABASE: &str = "campanile";
/// MiB of a disk that is filled: SQLite's files, or a whole PostgreSQL.
const SMALL_DISK: u32 = 48;
const LARGE_DISK: u32 = 256;
/// What a channel retains, where subscribers are to come too late.
const SHORT_HISTORY: u32 = 60;
/// Sessions that a pooler has for all that a node does at once.
const POOLED_SESSIONS: usize = 4;
/// How many publications can be recovered there.
const SHORT_RECOVERY: u32 = 15;

pub struct Secrets {
    pub webhook: String,
    pub jwt: String,
    pub api_key: String,
}

pub struct Environment {
    pub nodes: Vec<Gateway>,
    /// Their `campanile.toml`.
    pub config: String,
    /// Where the log is.
    pub source: Source,
    pub postgres: Option<Postgres>,
    pooler: Option<PgBouncer>,
    pub redis: Option<Redis>,
    /// The links of each node of a cluster to what it depends on.
    pub links: Vec<Links>,
    /// What clients come through, if anything; in a cluster also what shares them out.
    pub proxy: Option<Proxy>,
    /// Messages of Redis that are lost.
    pub losses: Arc<Losses>,
    pub disk: Option<Disk>,
    pub secrets: Secrets,
    /// How many publications a channel retains, if few.
    pub retained: Option<u32>,
    /// The log as it was before a copy took over that lacked the end of it.
    pub lost: Option<LostHistory>,
    faulty: Option<(Defect, FaultyProxy)>,
}

pub struct Links {
    pub postgres: Proxy,
    pub redis: Option<Proxy>,
}

impl Environment {
    /// Starts everything, or says why this case cannot run here.
    pub async fn start(
        case: Case,
        defect: Option<Defect>,
        nodes: usize,
        random: &Random,
    ) -> Result<Result<Self, String>> {
        let disk = match (case.fault, case.database) {
            (Fault::DiskFull, Database::Sqlite) => Some(Disk::mount(SMALL_DISK)?),
            (Fault::DiskFull, _) => Some(Disk::mount(LARGE_DISK)?),
            _ => None,
        };
        let disk = match disk.transpose() {
            Ok(disk) => disk,
            Err(reason) => return Ok(Err(reason)),
        };
        if case.database.has_redis() && redis::program().is_none() {
            return Ok(Err("there is no redis-server".into()));
        }
        if case.database == Database::Pgbouncer && !pgbouncer::is_installed() {
            return Ok(Err("there is no pgbouncer".into()));
        }
        let secrets = Secrets { webhook: new_secret(), jwt: new_secret(), api_key: new_secret() };
        let losses = Arc::new(Losses::default());
        losses.want(if defect == Some(Defect::NoBus) { u64::MAX } else { 0 });
        let mut env = Self {
            nodes: Vec::new(),
            config: config(case, defect),
            source: Source::Sqlite(PathBuf::new()),
            postgres: None,
            pooler: None,
            redis: None,
            links: Vec::new(),
            proxy: None,
            losses,
            disk,
            secrets,
            retained: (case.scenario == Scenario::Signals).then_some(SHORT_HISTORY),
            lost: None,
            faulty: None,
        };
        env.start_servers(case).await?;
        env.start_nodes(case, env.config.clone(), nodes, random).await?;
        env.start_proxies(case, defect, random).await?;
        Ok(Ok(env))
    }

    async fn start_servers(&mut self, case: Case) -> Result<()> {
        if case.database.has_postgres() {
            let server = Postgres::start_in(self.disk.as_ref().map(Disk::path), &[], None).await?;
            self.source = Source::Postgres(server.create_database(DATABASE).await?);
            if case.database == Database::Pgbouncer {
                self.pooler = Some(PgBouncer::start(server.address(), POOLED_SESSIONS).await?);
            }
            self.postgres = Some(server);
        }
        if case.database.has_redis() {
            self.redis = Some(Redis::start().await?);
        }
        Ok(())
    }

    /// Starts the nodes: the first alone, because it prepares the database.
    async fn start_nodes(&mut self, case: Case, config: String, count: usize, random: &Random) -> Result<()> {
        if !case.database.is_cluster() {
            let mut launch = self.launch(config);
            match &self.source {
                Source::Postgres(url) => {
                    if let Some(pooler) = &self.pooler {
                        let pooled = Postgres::url_through(pooler.address(), DATABASE);
                        launch.environment.push(("DATABASE_URL", pooled));
                        launch.environment.push(("DATABASE_URL_DIRECT", url.clone()));
                    } else {
                        launch.environment.push(("DATABASE_URL", url.clone()));
                    }
                }
                Source::Sqlite(_) => launch.data = self.disk.as_ref().map(|disk| disk.path().join("data")),
            }
            let node = launch.start().await?;
            if self.postgres.is_none() {
                self.source = Source::Sqlite(node.data().join("campanile.db"));
            }
            self.nodes.push(node);
            return Ok(());
        }
        let database = self.postgres.as_ref().context("a cluster without a database")?.address();
        let losses = self.losses.clone();
        let filter: NewFilter = Arc::new(move || Box::new(MessageFilter::new(losses.clone())));
        let mut others = JoinSet::new();
        for number in 0..count {
            let random = random.derive("links", number);
            let options = Options { random, ..Options::default() };
            let postgres = Proxy::start(&[database], options.clone()).await?;
            let mut launch = self.launch(config.clone());
            launch.environment.push(("DATABASE_URL", Postgres::url_through(postgres.address, DATABASE)));
            let mut link = None;
            if let Some(server) = &self.redis {
                let options = Options { filter: Some(filter.clone()), ..options };
                let proxy = Proxy::start(&[server.address], options).await?;
                launch.environment.push(("REDIS_URL", format!("redis://{}", proxy.address)));
                link = Some(proxy);
            }
            self.links.push(Links { postgres, redis: link });
            if number == 0 {
                self.nodes.push(launch.start().await?);
            } else {
                others.spawn(async move { (number, launch.start().await) });
            }
        }
        let mut others = others.join_all().await;
        others.sort_by_key(|(number, _)| *number);
        for (_, node) in others {
            self.nodes.push(node?);
        }
        Ok(())
    }

    fn launch(&self, config: String) -> Launch {
        let environment = vec![
            ("GITHUB_WEBHOOK_SECRET", self.secrets.webhook.clone()),
            ("CAMPANILE_JWT_SECRET", self.secrets.jwt.clone()),
            ("CAMPANILE_API_KEY", self.secrets.api_key.clone()),
        ];
        Launch { config: Some(config), environment, ..Launch::default() }
    }

    /// Puts between nodes and clients what belongs there.
    async fn start_proxies(&mut self, case: Case, defect: Option<Defect>, random: &Random) -> Result<()> {
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        if let Some(defect) = defect.filter(|defect| *defect != Defect::NoBus) {
            self.faulty = Some((defect, FaultyProxy::start(addresses[0], defect).await?));
        } else if case.database.is_cluster() || case.fault.needs_proxy() {
            let random = random.derive("proxy", 0);
            let options = Options { small_buffers: case.fault == Fault::Slow, filter: None, random };
            let mut proxy = Proxy::start(&addresses, options).await?;
            if case.database.is_cluster() {
                proxy.check_health();
            }
            self.proxy = Some(proxy);
        }
        Ok(())
    }

    pub fn subscriber_address(&self) -> SocketAddr {
        match (&self.proxy, &self.faulty) {
            (Some(proxy), _) => proxy.address,
            (None, Some((defect, proxy))) if *defect != Defect::AckWithoutCommit => proxy.address,
            _ => self.nodes[0].address,
        }
    }

    /// Where publishers publish: past what throttles and distorts, but not past what shares them out.
    pub fn publisher_address(&self) -> SocketAddr {
        match &self.faulty {
            Some((Defect::AckWithoutCommit, proxy)) => proxy.address,
            _ if self.links.is_empty() => self.nodes[0].address,
            _ => self.subscriber_address(),
        }
    }

    /// How many readers the gateways have closed because they were too slow.
    pub async fn too_slow(&self) -> Result<u64> {
        let mut closed = 0;
        for node in &self.nodes {
            let metrics = Metrics::scrape(node.address).await?;
            closed += metrics.sum("campanile_slow_disconnects_total") as u64;
        }
        Ok(closed)
    }

    /// Ends all sessions of the database but its own; says how many there were.
    pub async fn terminate_sessions(&self) -> Result<u64> {
        let Source::Postgres(url) = &self.source else { return Ok(0) };
        let session = postgres::session(url).await?;
        let ended = session
            .query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
                &[],
            )
            .await?;
        Ok(ended.len() as u64)
    }
}

fn config(case: Case, defect: Option<Defect>) -> String {
    let (history, recovery) = match case.scenario {
        Scenario::Signals => (SHORT_HISTORY, SHORT_RECOVERY),
        Scenario::Stay | Scenario::Churn => (100_000, 10_000),
    };
    // Small enough to be slow within seconds.
    let queue = if case.fault == Fault::Slow { "160KiB" } else { "1MiB" };
    // A client from which nothing is read answers no ping, and is to be closed for the other reason.
    let (ping, pong) = if case.fault == Fault::Slow { (8, 7) } else { (4, 3) };
    // What the bus loses on a channel that then falls silent is found by this alone.
    let quick = case.database.is_cluster() && !case.fault.is_measured();
    let check = match quick {
        _ if defect == Some(Defect::NoBus) => "24h",
        true => "2s",
        false => "10s",
    };
    let limit = if case.fault == Fault::NodeDeath { CONNECTION_LIMIT } else { 0 };
    format!(
        "[server]\ndrain_timeout = \"2s\"\n\
         [client]\nuser_connection_limit = {limit}\nrecovery_max_publication_limit = {recovery}\n\
         queue_max_size = \"{queue}\"\nping_interval = \"{ping}s\"\npong_timeout = \"{pong}s\"\n\
         stale_close_delay = \"60s\"\n\
         [channel]\nmax_publication_size = \"128KiB\"\nposition_check_interval = \"{check}\"\n\
         [[channel.namespaces]]\nname = \"{NAMESPACE}\"\nhistory_size = {history}\nhistory_ttl = \"1h\"\n\
         force_recovery = true\nallow_subscribe_for_client = true\nallow_history_for_client = true\n\
         presence = false\n\
         [[channel.namespaces]]\nname = \"{PROBE_NAMESPACE}\"\nhistory_size = 1000\nhistory_ttl = \"1h\"\n\
         force_recovery = true\nallow_subscribe_for_client = true\npresence = true\n\
         [[channel.namespaces]]\nname = \"{LATE_NAMESPACE}\"\n{LATE_OFF}\n\
         allow_subscribe_for_client = true\n\
         [sse]\nping_interval = \"3s\"\n\
         [limits]\npolls_per_minute = 1000000\n"
    )
}
