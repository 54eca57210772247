//! What a case runs against: a set of nodes with their database, and what lies between them and the
//! clients. Everything is the run's own and goes with it.

use std::path::PathBuf;

use anyhow::Result;
use tokio::task::spawn_blocking;

use super::disk::Disk;
use super::lie::Lie;
use super::log::Source;
use super::node::{Folder, Node, Setting};
use super::plan::{Case, Database, Fault, Scenario};
use super::proxy::{Forgetful, Proxy};
use super::random::Random;
use crate::metrics::Metrics;
use crate::postgres::{self, Postgres};
use crate::server::new_secret;
use crate::target::Target;

/// The namespace of publications.
pub const NAMESPACE: &str = "check";
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
    /// The gateway.
    pub nodes: Vec<Node>,
    /// Where its log is.
    pub source: Source,
    /// Its PostgreSQL, if it has one.
    pub postgres: Option<Postgres>,
    /// The proxy before each node, if clients go through one.
    pub proxies: Vec<Proxy>,
    /// The disk that can be filled.
    pub disk: Option<Disk>,
    /// Its secrets.
    pub secrets: Secrets,
    /// How many publications a channel retains, if few.
    pub kept: Option<u32>,
    forgetful: Vec<Forgetful>,
    _folder: Folder,
}

impl World {
    /// Starts everything, or says why this case cannot run here.
    pub async fn start(case: Case, lie: Option<Lie>, random: &Random) -> Result<Result<Self, String>> {
        let folder = Folder::new("run")?;
        let disk = match (case.fault, case.database) {
            (Fault::DiskFull, Database::Sqlite) => Some(Disk::mount(SMALL_DISK)?),
            (Fault::DiskFull, Database::Postgres) => Some(Disk::mount(LARGE_DISK)?),
            _ => None,
        };
        let disk = match disk.transpose() {
            Ok(disk) => disk,
            Err(reason) => return Ok(Err(reason)),
        };
        let room = disk.as_ref().map_or(folder.path(), Disk::path).to_owned();
        let (postgres, source) = match case.database {
            Database::Sqlite => (None, Source::Sqlite(room.join("data/campanile.db"))),
            Database::Postgres => {
                let server = match &disk {
                    Some(disk) => Postgres::start_in(Some(disk.path()), &[]).await?,
                    None => Postgres::start().await?,
                };
                let url = server.create_database("campanile").await?;
                (Some(server), Source::Postgres(url))
            }
        };
        let secrets = Secrets { webhook: new_secret(), jwt: new_secret(), api_key: new_secret() };
        let data = if postgres.is_some() { folder.path().join("data") } else { room.join("data") };
        let node = Node::start(setting(case, &secrets, &source, data, folder.path().join("node"))).await?;
        let nodes = vec![node];

        let (mut proxies, mut forgetful) = (Vec::new(), Vec::new());
        for node in &nodes {
            match lie {
                Some(Lie::Forget) => forgetful.push(Forgetful::start(node.address).await?),
                Some(_) => proxies.push(Proxy::start(node.address, false, lie, random).await?),
                None if case.fault.needs_proxy() => {
                    let small = case.fault == Fault::Slow;
                    proxies.push(Proxy::start(node.address, small, None, random).await?);
                }
                None => {}
            }
        }
        let kept = (case.scenario == Scenario::Signals).then_some(FEW);
        Ok(Ok(Self { nodes, source, postgres, proxies, disk, secrets, kept, forgetful, _folder: folder }))
    }

    /// Where subscribers connect.
    pub fn fronts(&self) -> Vec<Target> {
        if self.proxies.is_empty() {
            return self.nodes.iter().map(Node::target).collect();
        }
        self.proxies.iter().map(|proxy| Target::from(proxy.address)).collect()
    }

    /// Where publishers publish.
    pub fn doors(&self) -> Vec<Target> {
        if self.forgetful.is_empty() {
            return self.nodes.iter().map(Node::target).collect();
        }
        self.forgetful.iter().map(|door| Target::from(door.address)).collect()
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

fn setting(case: Case, secrets: &Secrets, source: &Source, data: PathBuf, folder: PathBuf) -> Setting {
    let mut environment = vec![
        ("GITHUB_WEBHOOK_SECRET", secrets.webhook.clone()),
        ("CAMPANILE_JWT_SECRET", secrets.jwt.clone()),
        ("CAMPANILE_API_KEY", secrets.api_key.clone()),
    ];
    if let Source::Postgres(url) = source {
        environment.push(("DATABASE_URL", url.clone()));
    }
    let (history, recovery) = match case.scenario {
        Scenario::Signals => (FEW, FEWER),
        Scenario::Stay | Scenario::Churn => (100_000, 10_000),
    };
    // Small enough to be slow within seconds.
    let queue = if case.fault == Fault::Slow { "160KiB" } else { "1MiB" };
    // Who stands still answers no ping, and is to be closed for the other reason.
    let (ping, pong) = if case.fault == Fault::Slow { (8, 7) } else { (4, 3) };
    let config = format!(
        "[server]\ndrain_timeout = \"2s\"\n\
         [client]\nuser_connection_limit = 0\nrecovery_max_publication_limit = {recovery}\n\
         queue_max_size = \"{queue}\"\nping_interval = \"{ping}s\"\npong_timeout = \"{pong}s\"\n\
         stale_close_delay = \"60s\"\n\
         [channel]\nmax_publication_size = \"128KiB\"\n\
         [[channel.namespaces]]\nname = \"{NAMESPACE}\"\nhistory_size = {history}\nhistory_ttl = \"1h\"\n\
         force_recovery = true\nallow_subscribe_for_client = true\nallow_history_for_client = true\n\
         [sse]\nping_interval = \"3s\"\n\
         [limits]\npolls_per_minute = 1000000\n"
    );
    Setting { config, environment, data, folder }
}
