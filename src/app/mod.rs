//! Builds the parts, starts them in order and stops them in reverse: store, hub, bus, publisher,
//! tasks, HTTP. The store, the publisher and the tasks live on a runtime of their own, because
//! connections belong to the runtime that opened them; HTTP and the streams live on actix's
//! workers.

mod cluster;
pub mod demo;
pub mod metrics;
mod reload;
mod serve;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix_rt::Arbiter;
use actix_server::ServerHandle;
use actix_web::web;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::auth::revocations::Revocations;
use crate::auth::{Fetching, KeyRing};
use crate::clients::ClientRegistry;
use crate::cluster::{Cluster, Identity};
use crate::config::{Backend, Config, Origin, PersonalChannelConfig, RepoConfig, Secret, Secrets};
use crate::dashboard::Summaries;
use crate::domain::options::SharedNamespaces;
use crate::http::access::{Access, Origins};
use crate::http::auth::{SignInEndpoint, Signing};
use crate::http::builds::BuildEndpoint;
use crate::http::client_streams::{ClientStreamEndpoints, Endpoint};
use crate::http::event_stream::StreamEndpoint;
use crate::http::health::HealthEndpoint;
use crate::http::poll::PollEndpoint;
use crate::http::server_api::ServerApiEndpoint;
use crate::http::webhooks::WebhookEndpoint;
use crate::http::websocket::WebSocketEndpoint;
use crate::hub::metrics::Transport;
use crate::hub::{Hub, HubOptions};
use crate::limits::budget::Budget;
use crate::limits::gcra::Rate;
use crate::limits::persistence::{self, PersistentRates};
use crate::limits::rate_limit::RateLimit;
use crate::limits::shared::SharedCounters;
use crate::limits::user_connections::UserConnections;
use crate::protocol::form::Form;
use crate::publish::Publisher;
use crate::recovery::RecoveryLimit;
use crate::session::{ConnectionOptions, Personal, SessionContext};
use crate::sign_in;
use crate::sources::github::signature::WebhookSecrets;
use crate::sources::github::{RepoMap, RepoMapEntry};
use crate::store::{self, Location, Store};
use crate::supervision;
use crate::tasks::leases::Lease;
use crate::tasks::revocations::Revoker;
use crate::tasks::{janitor, jwks, monitor};
use crate::telemetry::metrics::Label as _;
use crate::transport::emulation::{LocalPostOutcome, Sessions};
use crate::transport::event_stream::SseOptions;
use crate::transport::worker::WebsocketOptions;

use cluster::{count_users, open_bus, open_counters};
use metrics::Metrics;
use reload::Reloadable;
pub use serve::serve;

/// Streams closed in a second while draining, unless the time is too short for that.
const CLOSES_PER_SECOND: f64 = 500.0;
/// How long the accepting thread may take to pause; it does not report when it has.
const PAUSE_DELAY: Duration = Duration::from_millis(20);

/// For sending the remaining messages to other nodes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A running node.
pub struct Node {
    address: SocketAddr,
    store: Store,
    hub: Hub,
    cluster: Cluster,
    sign_in: web::Data<SignInEndpoint>,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<Option<Duration>>,
    drain_timeout: Duration,
    in_flight: Arc<AtomicUsize>,
    server: ServerHandle,
    listener: TcpListener,
    server_task: JoinHandle<std::io::Result<()>>,
    publisher_task: JoinHandle<()>,
    bus_task: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    lease: Lease,
    rates: Arc<PersistentRates>,
    hub_thread: Arbiter,
    /// As it was at the start.
    config: Config,
    reloadable: Reloadable,
}

impl Node {
    /// Opens the store, starts everything and listens. Must be called inside an actix system;
    /// `core` is the runtime of the store.
    pub async fn start(config: &Config, secrets: &Secrets, core: &Handle) -> anyhow::Result<Self> {
        let keys = KeyRing::from(config.token_keys(Some(&secrets.jwt))?);
        let metrics = Arc::new(Metrics::default());
        let options = store::Options { metrics: metrics.store.clone(), ..store_options(config) };
        let opening = core.spawn(async move { Store::open(&options).await });
        let store = opening.await.context("the store panicked while opening")??;
        let listener = worker::bind(config.server.listen).with_context(|| {
            format!(
                "cannot listen on {}: is another server listening there? (--listen)",
                config.server.listen
            )
        })?;
        let address = listener.local_addr()?;
        metrics.store.up.set(1);

        let namespaces = config.channel.declared().shared();
        let uid = Uuid::new_v4();
        let (bus, bus_task) = open_bus(config, uid, &store, &metrics)?;
        let hub_thread = Arbiter::new();
        hub_thread.spawn_fn(supervision::mark_thread_critical);
        let hub_options = HubOptions {
            namespaces: namespaces.clone(),
            linger: config.channel.linger.0,
            io_uring: config.server.io_uring,
            ..HubOptions::default()
        };
        let hub = Hub::new(store.clone(), bus.clone(), hub_options, metrics.hub.clone(), hub_thread.handle());
        bus.set_event_handler(hub.event_handler());
        let (publisher, publisher_task) =
            Publisher::new(store.clone(), bus.clone(), Vec::new(), metrics.publish.clone());
        let publisher_task =
            store.writing_thread().unwrap_or(core).spawn(supervision::critical(publisher_task));
        let interval = config.channel.position_check_interval.0;
        let (client_registry, revocations) = (ClientRegistry::default(), Revocations::default());
        let identity = Identity { uid, name: name_of(config, address), started_at: Instant::now() };
        let cluster = Cluster::new(
            identity,
            bus.clone(),
            hub.clone(),
            client_registry.clone(),
            metrics.cluster.clone(),
        );
        let revoker = Revoker::new(store.clone(), revocations.clone(), client_registry.clone(), {
            let cluster = cluster.weak();
            move || _ = cluster.upgrade().inspect(Cluster::announce_revocation)
        });
        cluster.set_revocation_handler({
            let revoker = revoker.clone();
            move || {
                let revoker = revoker.clone();
                tokio::spawn(async move {
                    if let Err(error) = revoker.sync().await {
                        tracing::warn!(%error, "the revocations could not be read");
                    }
                });
            }
        });
        // Before the first client: what was revoked stays revoked.
        core.spawn({
            let revoker = revoker.clone();
            async move { revoker.sync().await }
        })
        .await
        .context("reading the revocations panicked")?
        .context("the revocations could not be read")?;
        let reloadable = Reloadable {
            keys: keys.clone(),
            namespaces: namespaces.clone(),
            key_set: watch::Sender::new(config.jwks_endpoint().cloned()),
        };
        if config.jwks_endpoint().is_some() {
            keys.set_fetching(Fetching::UnderWay);
        }
        let jwks_task = jwks::run(
            keys.clone(),
            reloadable.key_set.subscribe(),
            jwks::FetchIntervals::default(),
            metrics.tasks.clone(),
        );
        let (counters, counters_task) = open_counters(config, uid, &store, &metrics, core)?;
        let (lease, lease_task) = Lease::acquire(store.clone(), "janitor", uid, metrics.tasks.clone());
        let bus_task = core.spawn(bus_task);
        let mut tasks = vec![
            core.spawn(lease_task),
            core.spawn(counters_task),
            core.spawn(jwks_task),
            core.spawn(revoker.clone().run()),
            core.spawn(monitor::watch_store(store.clone(), metrics.store.clone())),
            core.spawn(monitor::check_positions(store.clone(), hub.clone(), bus.live(), interval)),
            core.spawn(cluster.clone().run()),
            core.spawn(janitor::run(store.clone(), namespaces.clone(), metrics.tasks.clone(), lease.clone())),
        ];

        let stopping = watch::Sender::new(None);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let (users, users_task) = count_users(config, &counters, &cluster);
        tasks.push(core.spawn(users_task));
        let session_context =
            Arc::new(session_context(config, keys, namespaces, revocations, users, &metrics));
        let endpoints = Endpoints::new(
            config,
            secrets,
            &cluster,
            address,
            &counters,
            &session_context,
            &stopping,
            &metrics,
        )?;
        let sign_in = endpoints.sign_in.clone();
        let rates = Arc::new(endpoints.rates());
        if let Err(error) = persistence::restore(&store, &rates).await {
            tracing::warn!(%error, "the saved rates cannot be read: they start empty");
        }
        tasks.push(core.spawn(persistence::run(store.clone(), rates.clone())));
        let joining = cluster.clone();
        let parts = worker::WorkerParts {
            store: store.clone(),
            hub: hub.clone(),
            publisher,
            metrics: metrics.clone(),
            cluster: cluster.clone(),
            client_registry,
            revoker,
            in_flight: in_flight.clone(),
            session_context,
            websocket: websocket_options(config),
            stopping: stopping.subscribe(),
        };
        // From its first request on the node must know the others.
        core.spawn(async move { joining.wait_for_peers().await }).await.context("the cluster panicked")?;
        let server = worker::start(config, listener.try_clone()?, endpoints, parts)?;
        let handle = server.handle();
        let server_task = tokio::task::spawn_local(server);
        tracing::info!(%address, store = store.backend_name(), "listening");
        Ok(Self {
            address,
            store,
            hub,
            cluster,
            sign_in,
            metrics,
            stopping,
            drain_timeout: config.server.drain_timeout.0,
            in_flight,
            server: handle,
            listener,
            server_task,
            publisher_task,
            bus_task,
            tasks,
            lease,
            rates,
            hub_thread,
            config: config.clone(),
            reloadable,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A link that signs one browser in.
    pub async fn sign_in_link(&self) -> store::Result<String> {
        Ok(sign_in::new_link(&self.store, &self.sign_in.base).await?.0)
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Drains and stops: not ready, no new connections, streams told and ended, requests finished,
    /// what was accepted committed.
    pub async fn stop(self) {
        let open = Transport::USUAL
            .iter()
            .map(|transport| self.metrics.transport.connections.with(*transport))
            .collect::<Vec<_>>();
        let connections = || open.iter().map(|level| level.get().max(0)).sum::<i64>();
        let window = Duration::from_secs_f64(connections() as f64 / CLOSES_PER_SECOND);
        let spread = window.min(self.drain_timeout.mul_f64(0.8));
        tracing::info!(connections = connections(), spread_ms = spread.as_millis() as u64, "draining");
        self.stopping.send_replace(Some(spread));
        self.lease.release();
        self.server.pause().await;
        // A paused listener still lets clients in and leaves them waiting; refused, they go to
        // another node at once.
        tokio::time::sleep(PAUSE_DELAY).await;
        if let Err(error) = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, "the listener cannot be shut down");
        }
        let under_way = || connections() > 0 || self.in_flight.load(Ordering::SeqCst) > 0;
        let drained = async {
            while under_way() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
            tracing::warn!(
                connections = connections(),
                "the drain timeout has passed; the remaining connections are closed"
            );
        }
        self.server.stop(true).await;
        let _ = self.server_task.await;
        self.lease.released().await;
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Err(error) = persistence::write(&self.store, &self.rates).await {
            tracing::warn!(%error, "the rates of the last second cannot be saved");
        }
        // The last handle on the publisher went with the HTTP workers: it finishes its queue.
        if tokio::time::timeout(self.drain_timeout, self.publisher_task).await.is_err() {
            tracing::error!("the publisher did not finish in time");
        }
        // Its clients are gone: no node needs to wait for its responses.
        self.cluster.announce_leave();
        if tokio::time::timeout(FLUSH_TIMEOUT, self.cluster.flush()).await.is_err() {
            tracing::warn!("other nodes may receive the last events late");
        }
        self.bus_task.abort();
        self.hub_thread.stop();
        tracing::info!("stopped");
    }
}

/// What each endpoint needs.
#[derive(Clone)]
struct Endpoints {
    access: web::Data<Access>,
    webhooks: web::Data<WebhookEndpoint>,
    polls: web::Data<PollEndpoint>,
    builds: web::Data<BuildEndpoint>,
    streams: web::Data<StreamEndpoint>,
    transports: web::Data<ClientStreamEndpoints>,
    sign_in: web::Data<SignInEndpoint>,
    summaries: web::Data<Summaries>,
    sockets: WebSocketEndpoint,
    health: web::Data<HealthEndpoint>,
    api: web::Data<ServerApiEndpoint>,
}

impl Endpoints {
    fn new(
        config: &Config,
        secrets: &Secrets,
        cluster: &Cluster,
        address: SocketAddr,
        counters: &SharedCounters,
        session_context: &SessionContext,
        stopping: &watch::Sender<Option<Duration>>,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let limits = &config.limits;
        let rate = |name, limit: u32| RateLimit::new(name, Rate::per_minute(limit.into()), counters.clone());
        let repos =
            config.github.repos.iter().map(|(name, repo)| (name.as_str().to_owned(), map_entry(repo)));
        let (webhook_bytes, build_bytes) =
            (Budget::new(limits.webhook_in_flight.0), Budget::new(limits.build_events_in_flight.0));
        let streams = Budget::new(limits.sse_connections.into());
        let posts = Budget::new(limits.client_bodies_in_flight.0);
        let open_sockets = match config.client.connection_limit {
            0 => None,
            limit => Some(Budget::new(limit.into())),
        };
        let mut node_limits = vec![
            ("webhook_bytes", webhook_bytes.clone()),
            ("build_bytes", build_bytes.clone()),
            ("client_bytes", posts.clone()),
            ("streams", streams.clone()),
        ];
        node_limits.extend(open_sockets.clone().map(|sockets| ("sockets", sockets)));
        let sessions = Sessions::new(cluster.identity().uid, limit_of(config.emulation.queue_max_size.0));
        cluster.set_post_handler({
            let sessions = sessions.clone();
            move |session, frame| sessions.deliver_local(session, frame.into()) == LocalPostOutcome::Accepted
        });
        Ok(Self {
            access: web::Data::new(Access {
                keys: session_context.keys.clone(),
                revocations: session_context.revocations.clone(),
                api_key: secrets.api_key.clone(),
                namespaces: session_context.namespaces.clone(),
                trusted_proxies: config.server.trusted_proxies.clone(),
                origins: Origins {
                    own: own_origins(config, address),
                    foreign: config.client.allowed_origins.clone(),
                },
            }),
            webhooks: web::Data::new(WebhookEndpoint {
                secrets: WebhookSecrets::new(secrets.github.iter().map(|secret| secret.expose())),
                repos: RepoMap::new(repos).context("github.repos")?,
                allowed_addresses: config.github.allowed_addresses.clone(),
                max_body: limits.webhook_body.0,
                body_timeout: limits.webhook_body_timeout.0,
                in_flight: webhook_bytes,
                invalid_signatures: rate("invalid_signatures", limits.invalid_signatures_per_minute),
            }),
            polls: web::Data::new(PollEndpoint { rate: rate("polls", limits.polls_per_minute) }),
            builds: web::Data::new(BuildEndpoint {
                max_publication: limit_of(config.channel.max_publication_size.0),
                body_timeout: limits.webhook_body_timeout.0,
                in_flight: build_bytes,
                rate: rate("build_events", limits.build_events_per_minute),
            }),
            transports: web::Data::new(ClientStreamEndpoints {
                endpoints: Form::ALL.map(|form| endpoint_of(config, form)),
                largest_post: config.emulation.max_request_body_size.0,
                body_timeout: config.client.stale_close_delay.0,
                in_flight: posts,
                open: open_sockets.clone(),
                streams: streams.clone(),
                sessions,
                stopping: stopping.subscribe(),
            }),
            streams: web::Data::new(StreamEndpoint {
                options: SseOptions {
                    ping_interval: config.sse.ping_interval.0,
                    write_timeout: config.client.write_timeout.0,
                    queue: limit_of(config.client.queue_max_size.0),
                },
                max_channels: limits.stream_channels as usize,
                enabled: config.sse.enabled,
                open: streams,
                by_user: session_context.users.clone(),
                stopping: stopping.subscribe(),
            }),
            sign_in: web::Data::new(SignInEndpoint {
                base: link_base(config, address),
                secure: config.server.public_url.as_ref().is_some_and(|own| own.scheme() == "https"),
                session_ttl: config.server.session_ttl.0,
                max_sessions: limits.sessions,
                failures: rate("invalid_sign_ins", limits.invalid_sign_ins_per_minute),
                signing: ArcSwap::from_pointee(signing(config, &secrets.jwt)),
                signed_out: watch::Sender::new(()),
            }),
            summaries: web::Data::new(Summaries::new(limits.stream_channels)),
            sockets: WebSocketEndpoint {
                enabled: config.websocket.enabled,
                uni_enabled: config.uni_websocket.enabled,
                open: open_sockets,
                metrics: metrics.http.clone(),
                stopping: stopping.subscribe(),
            },
            health: web::Data::new(HealthEndpoint {
                stopping: stopping.subscribe(),
                bus: cluster.bus_live(),
                limits: node_limits,
                publish: metrics.publish.clone(),
                registry: metrics.registry.clone(),
            }),
            api: web::Data::new(ServerApiEndpoint {
                max_publication: limit_of(config.channel.max_publication_size.0),
            }),
        })
    }

    /// The rates that a restart must not reset, by the names that they have in the store.
    fn rates(&self) -> PersistentRates {
        let rates =
            [&self.polls.rate, &self.builds.rate, &self.webhooks.invalid_signatures, &self.sign_in.failures];
        rates.into_iter().map(|rate| (rate.name(), Box::new(rate.clone()) as _)).collect()
    }
}

/// The options of a client stream of this form.
fn endpoint_of(config: &Config, form: Form) -> Endpoint {
    let (enabled, largest) = match form {
        Form::HttpStream => (config.http_stream.enabled, config.http_stream.max_request_body_size),
        Form::Sse => (config.sse.enabled, config.sse.max_request_body_size),
        Form::UniWebsocket => (config.uni_websocket.enabled, config.uni_websocket.message_size_limit),
        Form::UniHttpStream => (config.uni_http_stream.enabled, config.uni_http_stream.max_request_body_size),
        Form::UniSse => (config.uni_sse.enabled, config.uni_sse.max_request_body_size),
    };
    Endpoint { enabled, largest: largest.0 }
}

fn limit_of(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// The context of all sessions.
fn session_context(
    config: &Config,
    keys: KeyRing,
    namespaces: SharedNamespaces,
    revocations: Revocations,
    users: UserConnections,
    metrics: &Metrics,
) -> SessionContext {
    let client = &config.client;
    SessionContext {
        keys,
        revocations,
        namespaces,
        users,
        metrics: metrics.session.clone(),
        options: ConnectionOptions {
            ping_interval: client.ping_interval.0,
            pong_timeout: client.pong_timeout.0,
            stale_close_delay: client.stale_close_delay.0,
            expired_close_delay: client.expired_close_delay.0,
            expired_sub_close_delay: client.expired_sub_close_delay.0,
            channel_limit: client.channel_limit as usize,
            history_limit: client.history_max_publication_limit,
            max_publication: limit_of(config.channel.max_publication_size.0),
            insecure: client.insecure,
            allow_anonymous_connect_without_token: client.allow_anonymous_connect_without_token,
            personal: personal(&client.subscribe_to_user_personal_channel),
        },
    }
}

fn personal(config: &PersonalChannelConfig) -> Option<Personal> {
    let namespace = Some(&config.personal_channel_namespace).filter(|name| !name.is_empty()).cloned();
    config.enabled.then_some(Personal { namespace, single: config.single_connection })
}

/// How sockets behave.
fn websocket_options(config: &Config) -> WebsocketOptions {
    let (client, queue) = (&config.client, limit_of(config.client.queue_max_size.0));
    WebsocketOptions {
        message_size: limit_of(config.websocket.message_size_limit.0),
        uni_message_size: limit_of(config.uni_websocket.message_size_limit.0),
        queue,
        write_timeout: client.write_timeout.0,
        recovery: RecoveryLimit {
            events: client.recovery_max_publication_limit.into(),
            bytes: queue.max(4 << 20),
        },
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// How the config says to open the store.
pub fn store_options(config: &Config) -> store::Options {
    let location = match config.backend() {
        Backend::Sqlite { path } => Location::Sqlite { path },
        Backend::Postgres { url, direct_url } => Location::Postgres {
            url: url.expose().to_owned(),
            direct_url: direct_url.map(|url| url.expose().to_owned()),
        },
    };
    store::Options {
        location,
        readers: config.store.readers,
        pool_size: config.store.pool_size,
        deadline: config.store.deadline.0,
        allow_data_loss: config.store.allow_data_loss,
        metrics: Arc::default(),
    }
}

fn map_entry(repo: &RepoConfig) -> RepoMapEntry {
    match &repo.name {
        _ if repo.ignore => RepoMapEntry::Keep(false),
        Some(name) => RepoMapEntry::Rename(name.as_str().to_owned()),
        None => RepoMapEntry::Keep(true),
    }
}

/// The public URL, or else the address that we listen on and localhost.
fn own_origins(config: &Config, address: SocketAddr) -> Vec<Origin> {
    if let Some(own) = &config.server.public_url {
        return vec![own.clone()];
    }
    let port = address.port();
    let origins =
        [format!("http://{address}"), format!("http://localhost:{port}"), format!("http://127.0.0.1:{port}")];
    origins.iter().filter_map(|origin| origin.parse().ok()).collect()
}

/// What signs the tokens that are handed to browsers.
fn signing(config: &Config, secret: &Secret) -> Signing {
    let token = &config.client.token;
    Signing { secret: secret.clone(), audience: token.audience.clone(), issuer: token.issuer.clone() }
}

/// What people call this node. Containers say by HOSTNAME where they run; all listen on one address.
fn name_of(config: &Config, address: SocketAddr) -> String {
    let host = || std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
    let unset = || match host() {
        Some(host) if address.ip().is_unspecified() => format!("{host}:{}", address.port()),
        _ => address.to_string(),
    };
    config.server.name.clone().unwrap_or_else(unset)
}

/// Where a browser on this machine, or by the public URL anywhere, finds us.
fn link_base(config: &Config, address: SocketAddr) -> String {
    match &config.server.public_url {
        Some(own) => own.to_string(),
        None if address.ip().is_unspecified() => format!("http://localhost:{}", address.port()),
        None => format!("http://{address}"),
    }
}

/// A runtime for the store, the publisher and the tasks.
pub fn core_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("campanile-core")
        .on_thread_start(supervision::mark_thread_critical)
        .worker_threads(cores().clamp(2, 4))
        .enable_all()
        .build()
}
