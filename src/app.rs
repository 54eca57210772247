//! Builds the parts, starts them in order and stops them in reverse: store, hub, bus, publisher,
//! tasks, HTTP. The store, the publisher and the tasks live on a runtime of their own, because
//! connections belong to the runtime that opened them; HTTP and the streams live on actix's
//! workers.

pub mod demo;
mod serve;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_rt::Arbiter;
use actix_web::dev::{Extensions, Server, ServerHandle};
use actix_web::http::ConnectionType;
use actix_web::{App, HttpServer, middleware, web};
use anyhow::Context as _;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::auth::Keys;
use crate::bus::{Bus, LocalBus};
use crate::config::{Backend, BusBackend, Config, Origin, RepoRule as ConfiguredRepo, Secrets};
use crate::connection::users::UserConnections;
use crate::domain::gcra::Rate;
use crate::domain::options::Namespaces;
use crate::http::access::{Access, Origins};
use crate::http::health::HealthDoor;
use crate::http::limit::{Budget, RateLimit};
use crate::http::poll::PollDoor;
use crate::http::server_api::ServerApiDoor;
use crate::http::stream::{Socket, StreamDoor};
use crate::http::webhooks::WebhookDoor;
use crate::http::{error, origin, routes};
use crate::hub::fanout::Fanout;
use crate::hub::{Hub, HubOptions};
use crate::publish::Publisher;
use crate::sources::github::signature::WebhookSecrets;
use crate::sources::github::{RepoMap, RepoRule};
use crate::store::{self, Place, Store};
use crate::tasks::{janitor, monitor};
use crate::telemetry::Metrics;
use crate::transport::sse::SseOptions;
use crate::vital;

pub use serve::serve;

/// Connections on one worker thread.
const MAX_CONNECTIONS: usize = 25_000;
/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// Streams closed in a second while draining, unless the time is too short for that.
const CLOSES_PER_SECOND: f64 = 500.0;
/// What the accepting thread needs to hear that it pauses; it does not say when it has.
const PAUSING: Duration = Duration::from_millis(20);
/// For what is left when nothing is under way any more.
const LAST_GRACE_SECS: u64 = 1;

/// A running node.
pub struct Node {
    address: SocketAddr,
    store: Store,
    hub: Hub,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<Option<Duration>>,
    drain_timeout: Duration,
    in_flight: Arc<AtomicUsize>,
    server: ServerHandle,
    listener: TcpListener,
    serving: JoinHandle<std::io::Result<()>>,
    publishing: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    hub_thread: Arbiter,
}

impl Node {
    /// Opens the store, starts everything and listens. Must be called inside an actix system;
    /// `core` is the runtime of the store.
    pub async fn start(config: &Config, secrets: &Secrets, core: &Handle) -> anyhow::Result<Self> {
        let options = store_options(config);
        let opening = core.spawn(async move { Store::open(&options).await });
        let store = opening.await.context("the store panicked while opening")??;
        let listener = bind(config.server.listen).with_context(|| {
            format!("cannot listen on {}: is another server there? (--listen)", config.server.listen)
        })?;
        let address = listener.local_addr()?;
        let metrics = Arc::new(Metrics::new());
        metrics.store_up.set(1);

        let namespaces = config.channel.declared();
        let hub_thread = Arbiter::new();
        hub_thread.spawn_fn(vital::mark_thread);
        let hub_options = HubOptions {
            namespaces: namespaces.clone(),
            linger: config.channel.linger.0,
            ..HubOptions::default()
        };
        let hub = Hub::new(store.clone(), hub_options, metrics.clone(), hub_thread.handle());
        let bus = Bus::Local(LocalBus::new({
            let hub = hub.clone();
            Arc::new(move |notice| hub.deliver(notice))
        }));
        match config.bus_backend() {
            BusBackend::InProcess => {}
            BusBackend::Postgres => {
                tracing::info!(
                    "other nodes on this Postgres are heard of by the position check, see OPERATIONS.md"
                );
            }
            BusBackend::Redis { .. } => {
                anyhow::bail!("this version has no bus over Redis yet: unset REDIS_URL")
            }
        }
        let (publisher, publishing) = Publisher::new(store.clone(), bus, metrics.clone());
        let publishing = core.spawn(publishing);
        let interval = config.channel.position_check_interval.0;
        let tasks = vec![
            core.spawn(monitor::watch_store(store.clone(), metrics.clone())),
            core.spawn(monitor::check_positions(store.clone(), hub.clone(), interval)),
            core.spawn(janitor::run(store.clone(), namespaces.clone(), metrics.clone())),
        ];

        let stopping = watch::Sender::new(None);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let doors = Doors::new(config, secrets, namespaces, address, &stopping)?;
        let parts = Parts {
            store: store.clone(),
            hub: hub.clone(),
            publisher,
            metrics: metrics.clone(),
            in_flight: in_flight.clone(),
            stopping: stopping.subscribe(),
        };
        let server = listen(config, listener.try_clone()?, doors, parts)?;
        let handle = server.handle();
        let serving = tokio::task::spawn_local(server);
        tracing::info!(%address, store = store.backend_name(), "listening");
        Ok(Self {
            address,
            store,
            hub,
            metrics,
            stopping,
            drain_timeout: config.server.drain_timeout.0,
            in_flight,
            server: handle,
            listener,
            serving,
            publishing,
            tasks,
            hub_thread,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Drains and stops: not ready, no new connections, streams told and ended, requests finished,
    /// what was accepted committed.
    pub async fn stop(self) {
        let streams = self.metrics.connections.get_or_create(&crate::telemetry::Kind { kind: "sse" }).clone();
        let window = Duration::from_secs_f64(streams.get().max(0) as f64 / CLOSES_PER_SECOND);
        let spread = window.min(self.drain_timeout.mul_f64(0.8));
        tracing::info!(streams = streams.get(), spread_ms = spread.as_millis() as u64, "draining");
        self.stopping.send_replace(Some(spread));
        self.server.pause().await;
        // A paused listener still lets clients in and leaves them waiting; refused, they go to
        // another node at once.
        tokio::time::sleep(PAUSING).await;
        if let Err(error) = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both) {
            tracing::debug!(%error, "the listener cannot be shut down");
        }
        let under_way = || streams.get() > 0 || self.in_flight.load(Ordering::SeqCst) > 0;
        let drained = async {
            while under_way() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(self.drain_timeout, drained).await.is_err() {
            tracing::warn!(streams = streams.get(), "the drain time is over; what is left is cut");
        }
        self.server.stop(true).await;
        let _ = self.serving.await;
        self.tasks.iter().for_each(JoinHandle::abort);
        // The last handle on the publisher went with the HTTP workers: it finishes its queue.
        if tokio::time::timeout(self.drain_timeout, self.publishing).await.is_err() {
            tracing::error!("the publisher did not finish in time");
        }
        self.hub_thread.stop();
        tracing::info!("stopped");
    }
}

/// What the workers share.
#[derive(Clone)]
struct Parts {
    store: Store,
    hub: Hub,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    in_flight: Arc<AtomicUsize>,
    stopping: watch::Receiver<Option<Duration>>,
}

/// What each door knows.
#[derive(Clone)]
struct Doors {
    access: web::Data<Access>,
    webhooks: web::Data<WebhookDoor>,
    polls: web::Data<PollDoor>,
    streams: web::Data<StreamDoor>,
    health: web::Data<HealthDoor>,
    api: web::Data<ServerApiDoor>,
}

impl Doors {
    fn new(
        config: &Config,
        secrets: &Secrets,
        namespaces: Namespaces,
        address: SocketAddr,
        stopping: &watch::Sender<Option<Duration>>,
    ) -> anyhow::Result<Self> {
        let token = &config.client.token;
        let limits = &config.limits;
        let rules =
            config.github.repos.iter().map(|(name, rule)| (name.as_str().to_owned(), repo_rule(rule)));
        let limit_of = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        Ok(Self {
            access: web::Data::new(Access {
                keys: Keys::hmac([secrets.jwt.expose()], token.audience.clone(), token.issuer.clone()),
                api_key: secrets.api_key.clone(),
                namespaces,
                trusted_proxies: config.server.trusted_proxies.clone(),
                origins: Origins {
                    own: own_origins(config, address),
                    foreign: config.client.allowed_origins.clone(),
                },
            }),
            webhooks: web::Data::new(WebhookDoor {
                secrets: WebhookSecrets::new(secrets.github.iter().map(|secret| secret.expose())),
                repos: RepoMap::new(rules).context("github.repos")?,
                allowed_addresses: config.github.allowed_addresses.clone(),
                max_body: limits.webhook_body.0,
                body_timeout: limits.webhook_body_timeout.0,
                in_flight: Budget::new(limits.webhook_in_flight.0),
                invalid_signatures: RateLimit::new(Rate::per_minute(
                    limits.invalid_signatures_per_minute.into(),
                )),
            }),
            polls: web::Data::new(PollDoor {
                rate: RateLimit::new(Rate::per_minute(limits.polls_per_minute.into())),
            }),
            streams: web::Data::new(StreamDoor {
                options: SseOptions {
                    ping_interval: config.sse.ping_interval.0,
                    write_timeout: config.client.write_timeout.0,
                    queue: limit_of(config.client.queue_max_size.0),
                },
                max_channels: limits.stream_channels as usize,
                enabled: config.sse.enabled,
                open: Budget::new(limits.sse_connections.into()),
                by_user: UserConnections::new(config.client.user_connection_limit),
                stopping: stopping.subscribe(),
            }),
            health: web::Data::new(HealthDoor { stopping: stopping.subscribe() }),
            api: web::Data::new(ServerApiDoor {
                max_publication: limit_of(config.channel.max_publication_size.0),
            }),
        })
    }
}

fn listen(config: &Config, listener: TcpListener, doors: Doors, parts: Parts) -> anyhow::Result<Server> {
    let workers = config.server.workers.map_or_else(cores, |workers| workers as usize);
    let server = HttpServer::new(move || {
        // Runs once on each worker thread.
        let fanout: Rc<Fanout> = Fanout::start(parts.hub.clone(), parts.metrics.clone());
        let (in_flight, stopping) = (parts.in_flight.clone(), parts.stopping.clone());
        App::new()
            .app_data(fanout)
            .app_data(web::Data::new(parts.store.clone()))
            .app_data(web::Data::new(parts.hub.clone()))
            .app_data(web::Data::new(parts.publisher.clone()))
            .app_data(web::Data::from(parts.metrics.clone()))
            .app_data(doors.access.clone())
            .app_data(doors.webhooks.clone())
            .app_data(doors.polls.clone())
            .app_data(doors.streams.clone())
            .app_data(doors.health.clone())
            .app_data(doors.api.clone())
            .wrap(middleware::from_fn(origin::guard))
            .wrap(middleware::from_fn(error::count_refusals))
            .wrap(middleware::from_fn(move |request, next: middleware::Next<_>| {
                let (counted, stopping) = (Counted::new(&in_flight), stopping.clone());
                async move {
                    let mut answer = next.call(request).await;
                    // A busy connection would otherwise keep a node that stops alive.
                    if let Ok(answer) = &mut answer
                        && stopping.borrow().is_some()
                    {
                        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                    }
                    drop(counted);
                    answer
                }
            }))
            .configure(routes::routes)
    });
    Ok(server
        .workers(workers)
        .max_connections(MAX_CONNECTIONS)
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(LAST_GRACE_SECS)
        .disable_signals()
        .on_connect(keep_socket)
        .listen(listener)?
        .run())
}

/// A listening socket. Made here because actix and std fix the backlog of a listener at 128.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket as RawSocket, Type};
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A node that starts again takes its port back although old connections still end.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A request under way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn keep_socket(io: &dyn std::any::Any, extensions: &mut Extensions) {
    let Some(stream) = io.downcast_ref::<actix_rt::net::TcpStream>() else { return };
    let socket = socket2::SockRef::from(stream);
    // Small frames must not wait for each other. A socket that refuses this is about to fail anyway.
    let _ = socket.set_tcp_nodelay(true);
    if let Ok(socket) = socket.try_clone() {
        extensions.insert(Socket(Rc::new(socket)));
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// How the config says to open the store.
pub fn store_options(config: &Config) -> store::Options {
    let place = match config.backend() {
        Backend::Sqlite { path } => Place::Sqlite { path },
        Backend::Postgres { url, direct_url } => Place::Postgres {
            url: url.expose().to_owned(),
            direct_url: direct_url.map(|url| url.expose().to_owned()),
        },
    };
    store::Options {
        place,
        readers: config.store.readers,
        pool_size: config.store.pool_size,
        deadline: config.store.deadline.0,
        allow_data_loss: config.store.allow_data_loss,
    }
}

fn repo_rule(rule: &ConfiguredRepo) -> RepoRule {
    match &rule.name {
        _ if rule.ignore => RepoRule::Keep(false),
        Some(name) => RepoRule::Rename(name.as_str().to_owned()),
        None => RepoRule::Keep(true),
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

/// A runtime for the store, the publisher and the tasks.
pub fn core_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name("campanile-core")
        .on_thread_start(vital::mark_thread)
        .worker_threads(cores().clamp(2, 4))
        .enable_all()
        .build()
}
