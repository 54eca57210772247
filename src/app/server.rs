//! What serves the clients of a node: the hub, the worker threads with HTTP and the transports. It
//! is made from the parts of a core, and started when the core runs.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_rt::Arbiter;
use actix_server::ServerHandle;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cluster::count_users;
use super::core::{ClientHandlers, Core, OpenCore};
use super::http_state::{self, ServerParts};
use super::metrics::Metrics;
use super::{internal, worker};
use crate::clients::ClientRegistry;
use crate::config::{Config, Secrets};
use crate::http::HttpState;
use crate::hub::metrics::Transport;
use crate::hub::{Hub, HubOptions};
use crate::limits::persistence::{self, PersistentRates};
use crate::limits::user_connections::UserConnections;
use crate::session::{ConnectionOptions, SessionContext};
use crate::supervision::{critical, mark_thread_critical};
use crate::tasks::monitor;
use crate::telemetry::metrics::Label as _;
use crate::transport::emulation::{LocalPostOutcome, Sessions};
use crate::transport::worker::WebsocketOptions;

/// Streams closed in a second while draining, unless the time is too short for that.
const CLOSES_PER_SECOND: f64 = 500.0;
/// How long the accepting thread may take to pause; it does not report when it has.
const PAUSE_DELAY: Duration = Duration::from_millis(20);

/// The parts of a server that does not run yet.
pub struct OpenServer {
    hub: Hub,
    hub_thread: Arbiter,
    users: UserConnections,
    users_task: BoxFuture<'static, ()>,
    clients: ClientRegistry,
    parts: ServerParts,
}

/// A running server.
pub struct Server {
    hub: Hub,
    hub_thread: Arbiter,
    state: Arc<HttpState>,
    rates: Arc<PersistentRates>,
    metrics: Arc<Metrics>,
    stopping: watch::Sender<Option<Duration>>,
    in_flight: Arc<AtomicUsize>,
    handle: ServerHandle,
    internal: Option<ServerHandle>,
    listener: TcpListener,
    task: JoinHandle<std::io::Result<()>>,
}

impl OpenServer {
    /// Makes the hub and what counts clients.
    pub fn new(config: &Config, core: &OpenCore) -> Self {
        let hub_thread = Arbiter::new();
        // Nothing but the hub runs on it.
        hub_thread.spawn_fn(mark_thread_critical);
        let options = HubOptions { namespaces: core.namespaces.clone(), ..config.into() };
        let hub = Hub::new(
            core.store.clone(),
            core.bus.clone(),
            options,
            core.metrics.hub.clone(),
            hub_thread.handle(),
        );
        let (users, users_task) = count_users(config, &core.counters, &core.peers);
        let session_context = SessionContext {
            keys: core.keys.clone(),
            revocations: core.revocations.clone(),
            namespaces: core.namespaces.clone(),
            users: users.clone(),
            metrics: core.metrics.session.clone(),
            options: ConnectionOptions::from(config),
        };
        Self {
            hub,
            hub_thread,
            users,
            users_task,
            clients: core.clients.clone(),
            parts: ServerParts {
                sessions: Sessions::new(core.peers.identity().uid, config.emulation.queue_max_size.bytes()),
                session_context: Arc::new(session_context),
                counters: core.counters.clone(),
                bus_live: core.bus.live(),
            },
        }
    }

    /// What the core needs of it.
    pub fn handlers(&self) -> ClientHandlers {
        let (users, sessions) = (self.users.clone(), self.parts.sessions.clone());
        ClientHandlers {
            hub: Some(self.hub.clone()),
            count_connections: Box::new(move |user| users.count(user)),
            post: Box::new(move |session, frame| {
                sessions.deliver_local(session, frame.into()) == LocalPostOutcome::Accepted
            }),
        }
    }

    /// Serves on `listener`.
    pub async fn start(
        self,
        config: &Config,
        secrets: &Secrets,
        core: &mut Core,
        (listener, internal): (TcpListener, Option<TcpListener>),
    ) -> anyhow::Result<Server> {
        let store = core.store.clone();
        let interval = config.channel.position_check_interval.0;
        let ServerParts { sessions, session_context, bus_live, .. } = &self.parts;
        let live = bus_live.clone();
        core.spawn(monitor::check_positions(store.clone(), self.hub.clone(), live, interval));
        let stopping = watch::Sender::new(None);
        let state = http_state::new(config, secrets, listener.local_addr()?, core, &self.parts, &stopping)?;
        core.spawn(self.users_task);
        let (rates, state) = (Arc::new(http_state::persistent_rates(&state)), Arc::new(state));
        if let Err(error) = persistence::restore(&store, &rates).await {
            tracing::warn!(%error, "the saved rates cannot be read: they start empty");
        }
        core.spawn(persistence::run(store, rates.clone()));
        let in_flight = Arc::new(AtomicUsize::new(0));
        let parts = worker::WorkerParts {
            state: state.clone(),
            hub: self.hub.clone(),
            metrics: core.metrics.clone(),
            clients: self.clients,
            sessions: sessions.clone(),
            in_flight: in_flight.clone(),
            session_context: session_context.clone(),
            websocket: WebsocketOptions::from(config),
            stopping: stopping.subscribe(),
        };
        let server = worker::start(config, listener.try_clone()?, parts)?;
        let internal = internal.map(|listener| internal::start(listener, state.clone())).transpose()?;
        let internal = internal.map(|server| {
            let handle = server.handle();
            tokio::task::spawn_local(critical(server));
            handle
        });
        Ok(Server {
            hub: self.hub,
            hub_thread: self.hub_thread,
            state,
            rates,
            metrics: core.metrics.clone(),
            stopping,
            in_flight,
            handle: server.handle(),
            internal,
            listener,
            task: tokio::task::spawn_local(critical(server)),
        })
    }
}

impl Server {
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn state(&self) -> &HttpState {
        &self.state
    }

    /// Not ready, no new connections, streams closed, requests finished. Returns the thread of
    /// the hub, which has to outlive the publisher.
    pub async fn drain(self, timeout: Duration) -> Arbiter {
        let open: Vec<_> = Transport::USUAL
            .iter()
            .map(|transport| self.metrics.transport.connections.with(*transport))
            .collect();
        let connections = || open.iter().map(|level| level.get().max(0)).sum::<i64>();
        let window = Duration::from_secs_f64(connections() as f64 / CLOSES_PER_SECOND);
        let spread = window.min(timeout.mul_f64(0.8));
        tracing::info!(connections = connections(), spread_ms = spread.as_millis() as u64, "draining");
        self.stopping.send_replace(Some(spread));
        self.handle.pause().await;
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
        if tokio::time::timeout(timeout, drained).await.is_err() {
            tracing::warn!(
                connections = connections(),
                "the drain timeout has passed; the remaining connections are closed"
            );
        }
        self.handle.stop(true).await;
        if let Some(internal) = &self.internal {
            internal.stop(false).await;
        }
        let _ = self.task.await;
        if let Err(error) = persistence::write(&self.state.store, &self.rates).await {
            tracing::warn!(%error, "the rates of the last second cannot be saved");
        }
        self.hub_thread
    }
}
