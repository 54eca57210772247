//! What a case runs against: one node or several with their database and their Redis, and what lies
//! between all of these and the clients. Everything is the run's own and goes with it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::task::{JoinSet, spawn_blocking};

use super::backend::{Backends, Watchman};
use super::disk::Disk;
use super::forgetful::Forgetful;
use super::lie::Lie;
use super::log::{Past, Source};
use super::measure;
use super::node::{Folder, Node, Setting};
use super::plan::{Case, Database, Fault, Scenario};
use super::proxy::{Change, Proxy};
use super::random::Random;
use super::resp::Losses;
use crate::metrics::Metrics;
use crate::postgres::{self, Postgres};
use crate::redis::{self, Redis};
use crate::server::new_secret;
use crate::target::Target;

/// The namespace of publications.
pub const NAMESPACE: &str = "check";
/// The name of the database.
pub const DATABASE: &str = "campanile";
/// MiB of a disk that is filled: SQLite's files, or a whole PostgreSQL.
const SMALL_DISK: u32 = 48;
const LARGE_DISK: u32 = 256;
/// What a channel retains, where subscribers are to come too late.
const FEW: u32 = 60;
/// How many publications can be recovered there.
const FEWER: u32 = 15;

/// Secrets of a run.
pub struct Secrets {
    /// Signs webhooks.
    pub webhook: String,
    /// Signs tokens.
    pub jwt: String,
    /// Opens the server API.
    pub api_key: String,
}

/// Nodes, database, network and disk.
pub struct World {
    /// The gateway, or several.
    pub nodes: Vec<Node>,
    /// Where the log is.
    pub source: Source,
    /// Its PostgreSQL, if it has one.
    pub postgres: Option<Postgres>,
    /// What the nodes talk over, if they do.
    pub redis: Option<Redis>,
    /// The ways of each node of a cluster to what it depends on.
    pub links: Vec<Links>,
    /// What clients come through, if anything; in a cluster also what shares them out.
    pub proxy: Option<Proxy>,
    /// Messages of Redis that are lost.
    pub losses: Arc<Losses>,
    /// The disk that can be filled.
    pub disk: Option<Disk>,
    /// Its secrets.
    pub secrets: Secrets,
    /// How many publications a channel retains, if few.
    pub kept: Option<u32>,
    /// The log as it was before a copy took over that lacked the end of it.
    pub past: Option<Past>,
    forgetful: Option<Forgetful>,
    /// While it lives, nodes that are not ready get no clients.
    _watchman: Option<Watchman>,
    folder: Folder,
}

/// The ways of one node.
pub struct Links {
    /// To the database.
    pub postgres: Proxy,
    /// To Redis, if there is one.
    pub redis: Option<Proxy>,
}

impl World {
    /// Starts everything, or says why this case cannot run here.
    pub async fn start(
        case: Case,
        lie: Option<Lie>,
        nodes: usize,
        random: &Random,
    ) -> Result<Result<Self, String>> {
        let folder = Folder::new("run")?;
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
        let room = disk.as_ref().map_or(folder.path(), Disk::path).to_owned();
        let (postgres, source) = if case.database.has_postgres() {
            let server = match &disk {
                Some(disk) => Postgres::start_in(Some(disk.path()), &[]).await?,
                None => Postgres::start().await?,
            };
            let url = server.create_database(DATABASE).await?;
            (Some(server), Source::Postgres(url))
        } else {
            (None, Source::Sqlite(room.join("data/campanile.db")))
        };
        let redis = if case.database.has_redis() { Some(Redis::start().await?) } else { None };
        let secrets = Secrets { webhook: new_secret(), jwt: new_secret(), api_key: new_secret() };
        let kept = (case.scenario == Scenario::Signals).then_some(FEW);
        let mut world = Self {
            nodes: Vec::new(),
            source,
            postgres,
            redis,
            links: Vec::new(),
            proxy: None,
            losses: Arc::default(),
            disk,
            secrets,
            kept,
            past: None,
            forgetful: None,
            _watchman: None,
            folder,
        };
        let deaf = lie == Some(Lie::Deaf);
        world.losses.want(if deaf { u64::MAX } else { 0 });
        world.populate(case, deaf, room, nodes, random).await?;
        world.shield(case, lie, random).await?;
        Ok(Ok(world))
    }

    /// Starts the nodes: the first alone, because it prepares the database.
    async fn populate(
        &mut self,
        case: Case,
        deaf: bool,
        room: PathBuf,
        nodes: usize,
        random: &Random,
    ) -> Result<()> {
        let folder = self.folder.path().to_owned();
        if !case.database.is_cluster() {
            let data = if self.postgres.is_some() { folder.join("data") } else { room.join("data") };
            let address = match &self.source {
                Source::Postgres(url) => vec![("DATABASE_URL", url.clone())],
                Source::Sqlite(_) => Vec::new(),
            };
            let setting = setting(case, deaf, &self.secrets, address, data, folder.join("node"));
            self.nodes.push(Node::start(setting).await?);
            return Ok(());
        }
        let database = self.postgres.as_ref().context("a cluster without a database")?.address();
        let mut others = JoinSet::new();
        for number in 0..nodes {
            let luck = random.of("links", number);
            let postgres = Proxy::to(database, Change::None, &luck).await?;
            let mut addresses = vec![("DATABASE_URL", Postgres::url_through(postgres.address, DATABASE))];
            let mut link = None;
            if let Some(server) = &self.redis {
                let change = Change::Lose(self.losses.clone());
                let proxy = Proxy::to(server.address, change, &luck).await?;
                addresses.push(("REDIS_URL", format!("redis://{}", proxy.address)));
                link = Some(proxy);
            }
            self.links.push(Links { postgres, redis: link });
            let (data, place) = (folder.join(format!("data{number}")), folder.join(format!("node{number}")));
            let start = Node::start(setting(case, deaf, &self.secrets, addresses, data, place));
            if number == 0 {
                self.nodes.push(start.await?);
            } else {
                others.spawn(async move { (number, start.await) });
            }
        }
        let mut others = others.join_all().await;
        others.sort_by_key(|(number, _)| *number);
        for (_, node) in others {
            self.nodes.push(node?);
        }
        Ok(())
    }

    /// Puts between nodes and clients what belongs there.
    async fn shield(&mut self, case: Case, lie: Option<Lie>, random: &Random) -> Result<()> {
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        let cluster = case.database.is_cluster();
        if lie == Some(Lie::Forget) {
            self.forgetful = Some(Forgetful::start(addresses[0]).await?);
        } else if cluster || lie.is_some() || case.fault.needs_proxy() {
            let (backends, change) = (
                Backends::new(&addresses),
                lie.filter(|lie| *lie != Lie::Deaf).map_or(Change::None, Change::Lie),
            );
            self._watchman = cluster.then(|| backends.watch());
            let small = case.fault == Fault::Slow;
            self.proxy = Some(Proxy::start(backends, small, change, random).await?);
        }
        Ok(())
    }

    /// Where subscribers connect.
    pub fn front(&self) -> Target {
        self.proxy.as_ref().map_or_else(|| self.nodes[0].target(), |proxy| Target::from(proxy.address))
    }

    /// Where publishers publish: past what throttles and lies, but not past what shares them out.
    pub fn door(&self) -> Target {
        match &self.forgetful {
            Some(door) => Target::from(door.address),
            None if self.links.is_empty() => self.nodes[0].target(),
            None => self.front(),
        }
    }

    /// How many readers the gateways have closed because they were too slow.
    pub async fn too_slow(&self) -> Result<u64> {
        let mut closed = 0;
        for node in &self.nodes {
            let Target { address, host } = node.target();
            let metrics = spawn_blocking(move || Metrics::scrape(address, &host)).await??;
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

fn setting(
    case: Case,
    deaf: bool,
    secrets: &Secrets,
    addresses: Vec<(&'static str, String)>,
    data: PathBuf,
    folder: PathBuf,
) -> Setting {
    let mut environment = vec![
        ("GITHUB_WEBHOOK_SECRET", secrets.webhook.clone()),
        ("CAMPANILE_JWT_SECRET", secrets.jwt.clone()),
        ("CAMPANILE_API_KEY", secrets.api_key.clone()),
    ];
    environment.extend(addresses);
    let (history, recovery) = match case.scenario {
        Scenario::Signals => (FEW, FEWER),
        Scenario::Stay | Scenario::Churn => (100_000, 10_000),
    };
    // Small enough to be slow within seconds.
    let queue = if case.fault == Fault::Slow { "160KiB" } else { "1MiB" };
    // Who stands still answers no ping, and is to be closed for the other reason.
    let (ping, pong) = if case.fault == Fault::Slow { (8, 7) } else { (4, 3) };
    // What the bus loses on a channel that then falls silent is found by this alone.
    let quick = case.database.is_cluster() && !case.fault.is_measured();
    let look = match quick {
        _ if deaf => "24h",
        true => "2s",
        false => "10s",
    };
    let limit = if case.fault == Fault::NodeDeath { measure::LIMIT } else { 0 };
    let config = format!(
        "[server]\ndrain_timeout = \"2s\"\n\
         [client]\nuser_connection_limit = {limit}\nrecovery_max_publication_limit = {recovery}\n\
         queue_max_size = \"{queue}\"\nping_interval = \"{ping}s\"\npong_timeout = \"{pong}s\"\n\
         stale_close_delay = \"60s\"\n\
         [channel]\nmax_publication_size = \"128KiB\"\nposition_check_interval = \"{look}\"\n\
         [[channel.namespaces]]\nname = \"{NAMESPACE}\"\nhistory_size = {history}\nhistory_ttl = \"1h\"\n\
         force_recovery = true\nallow_subscribe_for_client = true\nallow_history_for_client = true\n\
         [[channel.namespaces]]\nname = \"{}\"\nhistory_size = 1000\nhistory_ttl = \"1h\"\n\
         force_recovery = true\nallow_subscribe_for_client = true\npresence = true\n\
         [sse]\nping_interval = \"3s\"\n\
         [limits]\npolls_per_minute = 1000000\n",
        measure::NAMESPACE
    );
    Setting { config, environment, data, folder }
}
