//! The worker threads: each has a fan-out, its connections and the HTTP app. WebSocket upgrades are
//! handled outside the HTTP dispatcher; everything else is a route.

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_http::{HttpService, Request};
use actix_server::Server;
use actix_service::{
    IntoServiceFactory as _, Service as _, ServiceFactoryExt as _, apply_fn_factory, fn_service, map_config,
};
use actix_web::body::EitherBody;
use actix_web::dev::{AppConfig, Extensions, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::{App, Error, HttpResponse, middleware, web};
use futures_util::future::{Either, TryFutureExt as _, ready};
use tokio::sync::watch;

use super::core::cores;
use super::http_state::Endpoints;
use super::metrics::Metrics;
use crate::clients::{ClientRegistry, WorkerClients};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::http::metrics::PollOutcome;
use crate::http::poll::NotModifiedFastPath;
use crate::http::tcp::TcpHandle;
use crate::http::{error, origin, routes, websocket};
use crate::hub::Hub;
use crate::hub::fanout::Fanout;
use crate::publish::Publisher;
use crate::session::SessionContext;
use crate::store::Store;
use crate::tasks::revocations::Revoker;
use crate::transport::http_stream::Streams;
use crate::transport::worker::{WebsocketOptions, WorkerContext};

/// Connections of one worker thread in the HTTP dispatcher.
const MAX_CONNECTIONS: usize = 25_000;
/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long actix waits for its remaining connections once all requests have finished.
const SHUTDOWN_TIMEOUT_SECS: u64 = 1;

/// What the worker threads share.
#[derive(Clone)]
pub(super) struct WorkerParts {
    pub(super) store: Store,
    pub(super) hub: Hub,
    pub(super) publisher: Publisher,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cluster: Cluster,
    pub(super) client_registry: ClientRegistry,
    pub(super) revoker: Revoker,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) session_context: Arc<SessionContext>,
    pub(super) websocket: WebsocketOptions,
    pub(super) stopping: watch::Receiver<Option<Duration>>,
}

/// Starts the worker threads on `listener`.
pub(super) fn start(
    config: &Config,
    listener: TcpListener,
    endpoints: Endpoints,
    parts: WorkerParts,
) -> anyhow::Result<Server> {
    let workers = config.server.workers.map_or_else(cores, |workers| workers as usize);
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(MAX_CONNECTIONS)
        .shutdown_timeout(SHUTDOWN_TIMEOUT_SECS)
        .disable_signals();
    let address = listener.local_addr()?;
    let draining = builder.graceful_shutdown_signal();
    let server = builder.listen("http", listener, move || {
        // Runs once on each worker thread.
        let (endpoints, parts, draining) = (endpoints.clone(), parts.clone(), draining.clone());
        let fanout = Fanout::start(parts.hub.clone(), parts.metrics.hub.clone());
        let clients = Rc::new(WorkerClients::default());
        parts.client_registry.register_worker(clients.clone(), fanout.clone());
        let services = (
            parts.cluster.clone(),
            parts.store.clone(),
            parts.publisher.clone(),
            parts.metrics.transport.clone(),
        );
        let (session_context, options) = (parts.session_context.clone(), parts.websocket.clone());
        let stopping = parts.stopping.clone();
        let worker = WorkerContext::start(
            session_context,
            fanout.clone(),
            clients.clone(),
            services,
            options,
            stopping,
        );
        let streams = Rc::new(Streams {
            worker: worker.clone(),
            sessions: endpoints.transports.sessions.clone(),
            stopping: parts.stopping.clone(),
        });
        let (websocket_endpoint, access) = (endpoints.sockets.clone(), endpoints.access.clone());
        let upgrade = fn_service(move |(request, framed)| {
            let (endpoint, access, worker) = (websocket_endpoint.clone(), access.clone(), worker.clone());
            async move { websocket::upgrade(request, framed, &endpoint, &access, worker).await }
        });
        let fast_path = NotModifiedFastPath {
            access: endpoints.access.clone(),
            endpoint: endpoints.polls.clone(),
            store: parts.store.clone(),
            not_modified: parts.metrics.http.polls.with(PollOutcome("not_modified")),
        };
        let running = parts.stopping.clone();
        let (in_flight, stopping) = (parts.in_flight.clone(), parts.stopping.clone());
        let app = App::new()
            .app_data(fanout)
            .app_data(clients)
            .app_data(streams)
            .app_data(web::Data::new(parts.cluster))
            .app_data(web::Data::new(parts.revoker))
            .app_data(web::Data::new(parts.store.clone()))
            .app_data(web::Data::new(parts.publisher.clone()))
            .app_data(web::Data::from(parts.metrics.http.clone()))
            .app_data(web::Data::from(parts.metrics.transport.clone()))
            .app_data(web::Data::from(parts.metrics.session.clone()))
            .app_data(web::Data::new(parts.hub))
            .app_data(endpoints.access.clone())
            .app_data(endpoints.webhooks.clone())
            .app_data(endpoints.polls.clone())
            .app_data(endpoints.builds.clone())
            .app_data(endpoints.streams.clone())
            .app_data(endpoints.transports.clone())
            .app_data(endpoints.sign_in.clone())
            .app_data(endpoints.summaries.clone())
            .app_data(endpoints.health.clone())
            .app_data(endpoints.api)
            .wrap(middleware::from_fn(move |request, next| {
                let (in_flight, stopping) = (InFlight::new(&in_flight), stopping.clone());
                async move {
                    let mut answer = origin::guard(request, next).await?;
                    error::count_refusal(&answer);
                    // A busy connection would otherwise keep a stopping node alive.
                    if stopping.borrow().is_some() {
                        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                    }
                    drop(in_flight);
                    Ok(answer)
                }
            }))
            .configure(routes::routes)
            .into_factory()
            .map_err(|error: Error| error.error_response());
        let app = map_config(app, |()| AppConfig::default());
        let app = apply_fn_factory(app, move |request: Request, app: &_| {
            // A stopping node closes the connection with every answer, which the app does.
            let answer = if running.borrow().is_none() { fast_path.answer(&request) } else { None };
            match answer {
                Some(answer) => Either::Left(ready(Ok(answer.map_body(|_, body| EitherBody::right(body))))),
                None => Either::Right(app.call(request).map_ok(|answer: ServiceResponse<_>| {
                    HttpResponse::from(answer).map_body(|_, body| EitherBody::left(body))
                })),
            }
        });
        HttpService::build()
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .local_addr(address)
            .on_connect_ext(keep_socket)
            .upgrade(upgrade)
            .finish(app)
            .tcp()
    })?;
    Ok(server.run())
}

/// A listening socket. Made here because actix and std fix the backlog of a listener at 128.
pub(super) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket as RawSocket, Type};
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted node can bind its port although old connections are still closing.
    socket.set_reuse_address(true)?;
    // Small frames must not be delayed; accepted sockets inherit this.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Counts a request that is being handled, until dropped.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn keep_socket(stream: &actix_rt::net::TcpStream, extensions: &mut Extensions) {
    if let Ok(socket) = socket2::SockRef::from(stream).try_clone() {
        extensions.insert(TcpHandle(Rc::new(socket)));
    }
}
