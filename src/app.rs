//! Builds the parts, starts them in order and stops them in reverse: store, hub, bus, publisher,
//! tasks, HTTP. The store, the publisher and the tasks live on a runtime of their own, because
//! connections belong to the runtime that opened them; HTTP and the streams live on actix's
//! workers.

pub mod demo;
mod listen;
mod reload;
mod serve;
mod together;

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
use crate::cluster::{Cluster, Identity};
use crate::config::{
    Backend, Config, Origin, PersonalChannelConfig, RepoRule as ConfiguredRepo, Secret, Secrets,
};
use crate::connection::clients::Control;
use crate::connection::replay::RecoveryLimit;
use crate::connection::users::UserConnections;
use crate::connection::{ConnectionOptions, Personal, Rules};
use crate::counts::Counts;
use crate::domain::gcra::Rate;
use crate::domain::options::SharedNamespaces;
use crate::http::access::{Access, Origins};
use crate::http::auth::{SignInDoor, Signing};
use crate::http::builds::BuildDoor;
use crate::http::health::HealthDoor;
use crate::http::limit::{Budget, RateLimit};
use crate::http::poll::PollDoor;
use crate::http::server_api::ServerApiDoor;
use crate::http::socket::SocketDoor;
use crate::http::stream::StreamDoor;
use crate::http::summary::Summaries;
use crate::http::transports::{Door, TransportDoors};
use crate::http::webhooks::WebhookDoor;
use crate::hub::{Hub, HubOptions};
use crate::protocol::form::Form;
use crate::publish::Publisher;
use crate::sources::github::signature::WebhookSecrets;
use crate::sources::github::{RepoMap, RepoRule};
use crate::store::{self, Place, Store};
use crate::tasks::leases::Lease;
use crate::tasks::revocations::Revoker;
use crate::tasks::{janitor, jwks, monitor, rates};
use crate::telemetry::{Metrics, TRANSPORTS, Traffic, level};
use crate::transport::emulation::{Delivery, Sessions};
use crate::transport::sse::SseOptions;
use crate::transport::websocket::WebsocketOptions;
use crate::vital;

use reload::Reloadable;
pub use serve::serve;
use together::{count_users, open_bus, open_counts};

/// Streams closed in a second while draining, unless the time is too short for that.
const CLOSES_PER_SECOND: f64 = 500.0;
/// What the accepting thread needs to hear that it pauses; it does not say when it has.
const PAUSING: Duration = Duration::from_millis(20);

/// For what is still to be said to other nodes at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running node.
pub struct Node {
    address: SocketAddr,
    store: Store,
    hub: Hub,
    cluster: Cluster,
    sign_in: web::Data<SignInDoor>,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<Option<Duration>>,
    drain_timeout: Duration,
    in_flight: Arc<AtomicUsize>,
    server: ServerHandle,
    listener: TcpListener,
    serving: JoinHandle<std::io::Result<()>>,
    publishing: JoinHandle<()>,
    carrying: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    lease: Lease,
    rates: Arc<rates::Rates>,
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
        let metrics = Arc::new(Metrics::new());
        let options = store::Options { traffic: metrics.traffic.clone(), ..store_options(config) };
        let opening = core.spawn(async move { Store::open(&options).await });
        let store = opening.await.context("the store panicked while opening")??;
        let listener = listen::bind(config.server.listen).with_context(|| {
            format!("cannot listen on {}: is another server there? (--listen)", config.server.listen)
        })?;
        let address = listener.local_addr()?;
        metrics.store_up.set(1);

        let namespaces = config.channel.declared().shared();
        let uid = Uuid::new_v4();
        let (bus, carrying) = open_bus(config, uid, &store, &metrics)?;
        let hub_thread = Arbiter::new();
        hub_thread.spawn_fn(vital::mark_thread);
        let hub_options = HubOptions {
            namespaces: namespaces.clone(),
            linger: config.channel.linger.0,
            io_uring: config.server.io_uring,
            ..HubOptions::default()
        };
        let hub = Hub::new(store.clone(), bus.clone(), hub_options, metrics.clone(), hub_thread.handle());
        bus.deliver_to(hub.ear());
        let (publisher, publishing) = Publisher::new(store.clone(), bus.clone(), metrics.clone());
        let publishing = store.writing_thread().unwrap_or(core).spawn(vital::part(publishing));
        let interval = config.channel.position_check_interval.0;
        let (control, revocations) = (Control::default(), Revocations::default());
        let identity = Identity { uid, name: name_of(config, address), since: Instant::now() };
        let cluster = Cluster::new(identity, bus.clone(), hub.clone(), control.clone(), metrics.clone());
        let revoker = Revoker::new(store.clone(), revocations.clone(), control.clone(), {
            let cluster = cluster.weak();
            move || _ = cluster.upgrade().inspect(Cluster::tell_revoked)
        });
        cluster.on_revocation({
            let revoker = revoker.clone();
            move || {
                let revoker = revoker.clone();
                tokio::spawn(async move {
                    if let Err(error) = revoker.look().await {
                        tracing::warn!(%error, "cannot read what is revoked");
                    }
                });
            }
        });
        // Before the first client: what was revoked stays revoked.
        core.spawn({
            let revoker = revoker.clone();
            async move { revoker.look().await }
        })
        .await
        .context("reading what is revoked panicked")?
        .context("cannot read what is revoked")?;
        let reloadable = Reloadable {
            keys: keys.clone(),
            namespaces: namespaces.clone(),
            key_set: watch::Sender::new(config.jwks_endpoint().cloned()),
        };
        if config.jwks_endpoint().is_some() {
            keys.set_fetching(Fetching::UnderWay);
        }
        let fetching =
            jwks::run(keys.clone(), reloadable.key_set.subscribe(), jwks::Pace::default(), metrics.clone());
        let (counts, counting) = open_counts(config, uid, &store, &metrics, core)?;
        let (lease, keeping) = Lease::keep(store.clone(), "janitor", uid, metrics.clone());
        let carrying = core.spawn(carrying);
        let mut tasks = vec![
            core.spawn(keeping),
            core.spawn(counting),
            core.spawn(fetching),
            core.spawn(revoker.clone().run()),
            core.spawn(monitor::watch_store(store.clone(), metrics.clone())),
            core.spawn(monitor::check_positions(store.clone(), hub.clone(), bus.live(), interval)),
            core.spawn(cluster.clone().run()),
            core.spawn(janitor::run(store.clone(), namespaces.clone(), metrics.clone(), lease.clone())),
        ];

        let stopping = watch::Sender::new(None);
        let in_flight = Arc::new(AtomicUsize::new(0));
        let (users, telling) = count_users(config, &counts, &cluster);
        tasks.push(core.spawn(telling));
        let rules = Arc::new(rules(config, keys, namespaces, revocations, users, &metrics));
        let doors = Doors::new(config, secrets, &cluster, address, &counts, &rules, &stopping)?;
        let sign_in = doors.sign_in.clone();
        let rates = Arc::new(doors.rates());
        if let Err(error) = rates::restore(&store, &rates).await {
            tracing::warn!(%error, "what the rates have counted is not known: they begin anew");
        }
        tasks.push(core.spawn(rates::run(store.clone(), rates.clone())));
        let cluster_settles = cluster.clone();
        let parts = listen::Parts {
            store: store.clone(),
            hub: hub.clone(),
            publisher,
            metrics: metrics.clone(),
            cluster: cluster.clone(),
            control,
            revoker,
            in_flight: in_flight.clone(),
            rules,
            websocket: websocket_options(config),
            stopping: stopping.subscribe(),
        };
        // Whoever asks this node from its first moment on shall hear of all.
        core.spawn(async move { cluster_settles.settle().await }).await.context("the cluster panicked")?;
        let server = listen::listen(config, listener.try_clone()?, doors, parts)?;
        let handle = server.handle();
        let serving = tokio::task::spawn_local(server);
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
            serving,
            publishing,
            carrying,
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

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A link that signs one browser in.
    pub async fn sign_in_link(&self) -> store::Result<String> {
        Ok(self.sign_in.new_link(&self.store).await?.0)
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
        let open = TRANSPORTS.map(|kind| level(&self.metrics.connections, kind));
        let connections = || open.iter().map(|level| level.get().max(0)).sum::<i64>();
        let window = Duration::from_secs_f64(connections() as f64 / CLOSES_PER_SECOND);
        let spread = window.min(self.drain_timeout.mul_f64(0.8));
        tracing::info!(connections = connections(), spread_ms = spread.as_millis() as u64, "draining");
        self.stopping.send_replace(Some(spread));
        self.lease.release();
        self.server.pause().await;
        // A paused listener still lets clients in and leaves them waiting; refused, they go to
        // another node at once.
        tokio::time::sleep(PAUSING).await;
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
            tracing::warn!(connections = connections(), "the drain time is over; what is left is cut");
        }
        self.server.stop(true).await;
        let _ = self.serving.await;
        self.lease.released().await;
        self.tasks.iter().for_each(JoinHandle::abort);
        if let Err(error) = rates::write(&self.store, &self.rates).await {
            tracing::warn!(%error, "what the rates have counted in the last second is not written");
        }
        // The last handle on the publisher went with the HTTP workers: it finishes its queue.
        if tokio::time::timeout(self.drain_timeout, self.publishing).await.is_err() {
            tracing::error!("the publisher did not finish in time");
        }
        // Its clients are gone: nobody needs to wait for its answers.
        self.cluster.leave();
        if tokio::time::timeout(LAST_WORDS, self.cluster.flush()).await.is_err() {
            tracing::warn!("other nodes may hear late of the last events");
        }
        self.carrying.abort();
        self.hub_thread.stop();
        tracing::info!("stopped");
    }
}

/// What each door knows.
#[derive(Clone)]
struct Doors {
    access: web::Data<Access>,
    webhooks: web::Data<WebhookDoor>,
    polls: web::Data<PollDoor>,
    builds: web::Data<BuildDoor>,
    streams: web::Data<StreamDoor>,
    transports: web::Data<TransportDoors>,
    sign_in: web::Data<SignInDoor>,
    summaries: web::Data<Summaries>,
    sockets: SocketDoor,
    health: web::Data<HealthDoor>,
    api: web::Data<ServerApiDoor>,
}

impl Doors {
    fn new(
        config: &Config,
        secrets: &Secrets,
        cluster: &Cluster,
        address: SocketAddr,
        counts: &Counts,
        rules: &Rules,
        stopping: &watch::Sender<Option<Duration>>,
    ) -> anyhow::Result<Self> {
        let limits = &config.limits;
        let rate = |name, limit: u32| RateLimit::new(name, Rate::per_minute(limit.into()), counts.clone());
        let repos =
            config.github.repos.iter().map(|(name, rule)| (name.as_str().to_owned(), repo_rule(rule)));
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
        let sessions = Sessions::new(cluster.me().uid, limit_of(config.emulation.queue_max_size.0));
        cluster.posts_go_to({
            let sessions = sessions.clone();
            move |session, frame| sessions.deliver_here(session, frame.into()) == Delivery::Done
        });
        Ok(Self {
            access: web::Data::new(Access {
                keys: rules.keys.clone(),
                revocations: rules.revocations.clone(),
                api_key: secrets.api_key.clone(),
                namespaces: rules.namespaces.clone(),
                trusted_proxies: config.server.trusted_proxies.clone(),
                origins: Origins {
                    own: own_origins(config, address),
                    foreign: config.client.allowed_origins.clone(),
                },
            }),
            webhooks: web::Data::new(WebhookDoor {
                secrets: WebhookSecrets::new(secrets.github.iter().map(|secret| secret.expose())),
                repos: RepoMap::new(repos).context("github.repos")?,
                allowed_addresses: config.github.allowed_addresses.clone(),
                max_body: limits.webhook_body.0,
                body_timeout: limits.webhook_body_timeout.0,
                in_flight: webhook_bytes,
                invalid_signatures: rate("invalid_signatures", limits.invalid_signatures_per_minute),
            }),
            polls: web::Data::new(PollDoor { rate: rate("polls", limits.polls_per_minute) }),
            builds: web::Data::new(BuildDoor {
                max_publication: limit_of(config.channel.max_publication_size.0),
                body_timeout: limits.webhook_body_timeout.0,
                in_flight: build_bytes,
                rate: rate("build_events", limits.build_events_per_minute),
            }),
            transports: web::Data::new(TransportDoors {
                doors: Form::ALL.map(|form| door_of(config, form)),
                largest_post: config.emulation.max_request_body_size.0,
                body_timeout: config.client.stale_close_delay.0,
                in_flight: posts,
                open: open_sockets.clone(),
                streams: streams.clone(),
                sessions,
                stopping: stopping.subscribe(),
            }),
            streams: web::Data::new(StreamDoor {
                options: SseOptions {
                    ping_interval: config.sse.ping_interval.0,
                    write_timeout: config.client.write_timeout.0,
                    queue: limit_of(config.client.queue_max_size.0),
                },
                max_channels: limits.stream_channels as usize,
                enabled: config.sse.enabled,
                open: streams,
                by_user: rules.users.clone(),
                stopping: stopping.subscribe(),
            }),
            sign_in: web::Data::new(SignInDoor {
                base: link_base(config, address),
                secure: config.server.public_url.as_ref().is_some_and(|own| own.scheme() == "https"),
                session_ttl: config.server.session_ttl.0,
                max_sessions: limits.sessions,
                failures: rate("invalid_sign_ins", limits.invalid_sign_ins_per_minute),
                signing: ArcSwap::from_pointee(signing(config, &secrets.jwt)),
                signed_out: watch::Sender::new(()),
            }),
            summaries: web::Data::new(Summaries::new(limits.stream_channels)),
            sockets: SocketDoor {
                enabled: config.websocket.enabled,
                uni_enabled: config.uni_websocket.enabled,
                open: open_sockets,
                stopping: stopping.subscribe(),
            },
            health: web::Data::new(HealthDoor {
                stopping: stopping.subscribe(),
                bus: cluster.bus_live(),
                limits: node_limits,
            }),
            api: web::Data::new(ServerApiDoor {
                max_publication: limit_of(config.channel.max_publication_size.0),
            }),
        })
    }

    /// The rates that a restart must not reset, by the names that they have in the store.
    fn rates(&self) -> rates::Rates {
        let rates =
            [&self.polls.rate, &self.builds.rate, &self.webhooks.invalid_signatures, &self.sign_in.failures];
        rates.into_iter().map(|rate| (rate.name(), Box::new(rate.clone()) as _)).collect()
    }
}

/// How a stream's door stands.
fn door_of(config: &Config, form: Form) -> Door {
    let (enabled, largest) = match form {
        Form::HttpStream => (config.http_stream.enabled, config.http_stream.max_request_body_size),
        Form::Sse => (config.sse.enabled, config.sse.max_request_body_size),
        Form::UniWebsocket => (config.uni_websocket.enabled, config.uni_websocket.message_size_limit),
        Form::UniHttpStream => (config.uni_http_stream.enabled, config.uni_http_stream.max_request_body_size),
        Form::UniSse => (config.uni_sse.enabled, config.uni_sse.max_request_body_size),
    };
    Door { enabled, largest: largest.0 }
}

fn limit_of(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// What connections go by.
fn rules(
    config: &Config,
    keys: KeyRing,
    namespaces: SharedNamespaces,
    revocations: Revocations,
    users: UserConnections,
    metrics: &Metrics,
) -> Rules {
    let client = &config.client;
    Rules {
        keys,
        revocations,
        namespaces,
        users,
        errors: metrics.errors.clone(),
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
        traffic: Traffic::default(),
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
        .on_thread_start(vital::mark_thread)
        .worker_threads(cores().clamp(2, 4))
        .enable_all()
        .build()
}
