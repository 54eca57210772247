//! The core of a node: store, bus, publisher, cluster and tasks, without HTTP. It is opened first,
//! so that whoever serves clients can be made from its parts, and then started with what serves
//! them, or without clients at all. Everything here lives on the core runtime, because connections
//! belong to the runtime that opened them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::cluster::{open_bus, open_counters};
use super::metrics::Metrics;
use crate::auth::revocations::Revocations;
use crate::auth::{Fetching, KeyRing};
use crate::bus::{Bus, BusHandlers, ClusterBusLoop, EventHandler};
use crate::clients::ClientRegistry;
use crate::cluster::{self, Changed, Cluster, Identity, Peers, PostHandler};
use crate::config::{Config, JwksUrl, Secrets};
use crate::domain::options::SharedNamespaces;
use crate::hub::Hub;
use crate::jobs::JobsRuntime;
use crate::limits::shared::SharedCounters;
use crate::publish::Publisher;
use crate::sign_in::OpenSessions;
use crate::store::{self, Store};
use crate::supervision::critical;
use crate::tasks::leases::Lease;
use crate::tasks::revocations::Revoker;
use crate::tasks::{janitor, jwks, monitor};

/// For sending the remaining messages to other nodes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of a core that does not run yet.
pub struct OpenCore {
    pub store: Store,
    pub bus: Bus,
    pub peers: Peers,
    pub metrics: Arc<Metrics>,
    pub namespaces: SharedNamespaces,
    pub keys: KeyRing,
    pub revocations: Revocations,
    pub clients: ClientRegistry,
    pub counters: SharedCounters,
    runtime: Handle,
    bus_loop: Option<ClusterBusLoop>,
    tasks: Vec<JoinHandle<()>>,
}

/// What serves the clients of a node, as its core needs it.
pub struct ClientHandlers {
    pub hub: Option<Hub>,
    /// Counts the connections of a user on this node.
    pub count_connections: Box<dyn Fn(&str) -> u32 + Send + Sync>,
    pub post: PostHandler,
}

impl ClientHandlers {
    /// Those of a node that has no clients.
    pub fn none() -> Self {
        Self { hub: None, count_connections: Box::new(|_| 0), post: Box::new(|_, _| true) }
    }
}

/// A running core.
pub struct Core {
    pub store: Store,
    pub publisher: Publisher,
    pub cluster: Cluster,
    pub peers: Peers,
    pub metrics: Arc<Metrics>,
    pub revoker: Revoker,
    pub sessions: OpenSessions,
    pub keys: KeyRing,
    pub namespaces: SharedNamespaces,
    /// Where the key set is fetched from; one that is sent again is fetched again.
    pub key_set: watch::Sender<Option<JwksUrl>>,
    /// For work that may fail without harm to the node.
    pub jobs: JobsRuntime,
    runtime: Handle,
    pub(super) lease: Lease,
    publisher_task: JoinHandle<()>,
    bus_task: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Opens the store on `runtime`.
pub async fn open_store(config: &Config, metrics: &Metrics, runtime: &Handle) -> anyhow::Result<Store> {
    let options = store::Options { metrics: metrics.store.clone(), ..config.into() };
    let opening = runtime.spawn(async move { Store::open(&options).await });
    let store = opening.await.context("the store panicked while opening")??;
    metrics.store.up.set(1);
    Ok(store)
}

impl OpenCore {
    /// Makes the parts of a node that other nodes know by `address`, if its configuration has no name.
    pub fn new(
        config: &Config,
        secrets: &Secrets,
        store: Store,
        metrics: Arc<Metrics>,
        address: SocketAddr,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let uid = Uuid::new_v4();
        let (bus, bus_loop) = open_bus(config, secrets, uid, &store, &metrics)?;
        let (counters, counting) = open_counters(config, uid, &store, &metrics, runtime)?;
        let identity = Identity::new(uid, config.server.name.as_deref(), address);
        Ok(Self {
            peers: Peers::new(identity, bus.clone(), metrics.cluster.clone()),
            keys: KeyRing::from(config.token_keys(Some(&secrets.jwt))?),
            namespaces: config.namespaces().shared(),
            revocations: Revocations::default(),
            clients: ClientRegistry::default(),
            runtime: runtime.clone(),
            tasks: vec![runtime.spawn(critical(counting))],
            store,
            bus,
            metrics,
            counters,
            bus_loop,
        })
    }

    /// Starts the tasks; returns when the node knows what was revoked and which nodes there are.
    pub async fn start(self, config: &Config, handlers: ClientHandlers) -> anyhow::Result<Core> {
        let Self { store, bus, peers, metrics, namespaces, keys, revocations, clients, runtime, .. } = self;
        let revoker = Revoker::new(store.clone(), revocations, clients.clone(), {
            let peers = peers.clone();
            move || peers.announce(Changed::Revocations)
        });
        let sessions = OpenSessions::new(store.clone(), {
            let peers = peers.clone();
            move || peers.announce(Changed::Sessions)
        });
        let on_event: EventHandler =
            handlers.hub.as_ref().map_or_else(|| Arc::new(|_| ()) as EventHandler, Hub::event_handler);
        let (publisher, publishing) =
            Publisher::new(store.clone(), bus.clone(), on_event.clone(), Vec::new(), metrics.publish.clone());
        let publisher_task = store.writing_thread().unwrap_or(&runtime).spawn(critical(publishing));
        let cluster = Cluster::new(
            peers.clone(),
            cluster::Handlers {
                clients,
                hub: handlers.hub,
                count_connections: handlers.count_connections,
                post: handlers.post,
                on_change: Box::new({
                    let (revoker, sessions) = (revoker.clone(), sessions.clone());
                    move |what| match what {
                        Changed::Revocations => {
                            let revoker = revoker.clone();
                            tokio::spawn(critical(async move { revoker.sync_or_warn().await }));
                        }
                        Changed::Sessions => sessions.check_soon(),
                    }
                }),
            },
        );
        let bus_task = self.bus_loop.map(|bus_loop| {
            let receiver = cluster.clone();
            let on_message = Arc::new(move |from, text: &str| receiver.on_message(from, text));
            runtime.spawn(critical(bus_loop.run(BusHandlers { on_event, on_message })))
        });
        // Before the first client: what was revoked stays revoked.
        let syncing = revoker.clone();
        runtime
            .spawn(async move { syncing.sync().await })
            .await
            .context("reading the revocations panicked")?
            .context("the revocations could not be read")?;

        let key_set = watch::Sender::new(config.jwks_endpoint().cloned());
        if config.jwks_endpoint().is_some() {
            keys.set_fetching(Fetching::UnderWay);
        }
        let intervals = jwks::FetchIntervals::default();
        let fetching = jwks::run(keys.clone(), key_set.subscribe(), intervals, metrics.tasks.clone());
        let (lease, leasing) =
            Lease::acquire(store.clone(), "janitor", peers.identity().uid, metrics.tasks.clone());
        let sweeping = janitor::run(store.clone(), namespaces.clone(), metrics.tasks.clone(), lease.clone());
        let mut tasks = self.tasks;
        tasks.extend([
            runtime.spawn(critical(leasing)),
            runtime.spawn(critical(fetching)),
            runtime.spawn(critical(revoker.clone().run())),
            runtime.spawn(critical(sessions.clone().run())),
            runtime.spawn(critical(monitor::watch_store(store.clone(), metrics.store.clone()))),
            runtime.spawn(critical(peers.clone().run())),
            runtime.spawn(critical(sweeping)),
        ]);
        // From its first request on the node must know the others.
        let joining = peers.clone();
        runtime.spawn(async move { joining.wait_for_peers().await }).await.context("the cluster panicked")?;
        let jobs = JobsRuntime::start().context("cannot start threads")?;
        Ok(Core {
            store,
            publisher,
            cluster,
            peers,
            metrics,
            revoker,
            sessions,
            keys,
            namespaces,
            key_set,
            jobs,
            runtime,
            lease,
            publisher_task,
            bus_task,
            tasks,
        })
    }
}

impl Core {
    /// Runs `task` until the core stops. A panic in it ends the process.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(self.runtime.spawn(critical(task)));
    }

    /// Stops the tasks; what the publisher has accepted is committed and announced. Nobody else may
    /// have a handle on the publisher any more, or it is waited for as long as `timeout`.
    pub async fn stop(self, timeout: Duration) {
        self.lease.release();
        self.lease.released().await;
        self.tasks.iter().for_each(JoinHandle::abort);
        drop((self.jobs, self.publisher));
        if tokio::time::timeout(timeout, self.publisher_task).await.is_err() {
            tracing::error!("the publisher did not finish in time");
        }
        // Its clients are gone: no node needs to wait for its responses.
        self.peers.announce_leave();
        if tokio::time::timeout(FLUSH_TIMEOUT, self.peers.flush()).await.is_err() {
            tracing::warn!("other nodes may receive the last events late");
        }
        self.bus_task.inspect(JoinHandle::abort);
    }
}

/// A runtime for the core.
pub fn core_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("campanile-core")
        .worker_threads(cores().clamp(2, 4))
        .enable_all()
        .build()
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loader;
    use crate::domain::channel::ChannelName;
    use crate::domain::event::NewEvent;
    use crate::jobs::JobError;
    use crate::publish::{Committed, UnitOfWork};

    /// Starts a core on `folder` without a server, lets a job of it panic, commits one event and stops
    /// it. Returns the event's offset.
    fn run_once(folder: &str) -> u64 {
        let runtime = core_runtime().expect("threads");
        let offset = runtime.block_on(async {
            let config = Loader::new().environment([("CAMPANILE_SERVER__DATA_DIR", folder)]).load();
            let config = config.expect("the configuration is right");
            let secrets = config.resolve_secrets().expect("secrets are generated");
            let (metrics, address) = (Arc::new(Metrics::default()), SocketAddr::from(([127, 0, 0, 1], 0)));
            let store = open_store(&config, &metrics, runtime.handle()).await.expect("the store opens");
            let core = OpenCore::new(&config, &secrets, store, metrics, address, runtime.handle());
            let core = core.expect("the parts fit").start(&config, ClientHandlers::none()).await;
            let core = core.expect("the core starts");

            let panicked = core.jobs.run(async { panic!("a job of a stranger") }).await;
            assert!(matches!(panicked, Err::<(), _>(JobError::Panicked(_))));

            let channel = ChannelName::parse("repo:acme/api").expect("a channel");
            let event = NewEvent::new(channel, Uuid::now_v7(), "test", "{}".into());
            let committed = core.publisher.commit(UnitOfWork::of(vec![event])).await;
            core.stop(Duration::from_secs(5)).await;
            match committed {
                Ok(Committed::Done(positions)) => positions[0].offset,
                other => panic!("the event was not committed: {other:?}"),
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        offset
    }

    #[test]
    fn a_core_starts_and_stops_without_a_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("a path");
        assert_eq!(run_once(path), 1);
        assert_eq!(run_once(path), 2, "it has given its data back, and nothing is lost");
    }
}
