//! The worker threads: each has a fan-out, its connections and the HTTP app. WebSocket upgrades are
//! handled outside the HTTP dispatcher; everything else is a route.

use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_http::{HttpService, Protocol, Request};
use actix_rt::net::TcpStream;
use actix_server::Server;
use actix_service::{
    IntoServiceFactory as _, Service as _, ServiceFactoryExt as _, apply_fn_factory, fn_service, map_config,
};
use actix_web::body::EitherBody;
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::http::{ConnectionType, Version};
use actix_web::{App, Error, HttpResponse, middleware};
use futures_util::future::{Either, TryFutureExt as _, ready};
use tokio::sync::watch;

use super::core::cores;
use super::metrics::Metrics;
use crate::clients::{ClientRegistry, WorkerClients};
use crate::config::Config;
use crate::http::accepted::Accepted;
use crate::http::metrics::PollOutcome;
use crate::http::poll::NotModifiedFastPath;
use crate::http::tcp::{self, TcpHandle};
use crate::http::{HttpState, State, error, origin, routes, websocket};
use crate::hub::Hub;
use crate::hub::fanout::Fanout;
use crate::session::SessionContext;
use crate::transport::emulation::Sessions;
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
    pub(super) state: Arc<HttpState>,
    pub(super) hub: Hub,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clients: ClientRegistry,
    pub(super) sessions: Sessions,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) session_context: Arc<SessionContext>,
    pub(super) websocket: WebsocketOptions,
    pub(super) stopping: watch::Receiver<Option<Duration>>,
}

impl WorkerParts {
    /// What the app of one worker thread shares. Runs on that thread.
    fn start(self) -> State {
        let node = self.state;
        let fanout = Fanout::start(self.hub, self.metrics.hub.clone());
        let clients = Rc::new(WorkerClients::default());
        self.clients.register_worker(clients.clone(), fanout.clone());
        let services = (
            node.cluster.clone(),
            node.store.clone(),
            node.publisher.clone(),
            self.metrics.transport.clone(),
            node.user_limits.clone(),
        );
        let worker = WorkerContext::start(
            self.session_context,
            fanout,
            clients,
            services,
            self.websocket,
            self.stopping.clone(),
        );
        let streams = Streams { worker, sessions: self.sessions, stopping: self.stopping };
        State { node, streams: Rc::new(streams) }
    }
}

/// Starts the worker threads on `listener`.
pub(super) fn start(config: &Config, listener: TcpListener, parts: WorkerParts) -> anyhow::Result<Server> {
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
        let (parts, draining) = (parts.clone(), draining.clone());
        let (in_flight, stopping) = (parts.in_flight.clone(), parts.stopping.clone());
        let running = stopping.clone();
        let node = parts.state.clone();
        let state = parts.start();
        let upgraded = state.clone();
        let upgrade =
            fn_service(move |(request, framed)| websocket::upgrade(request, framed, upgraded.clone()));
        let fast_path = NotModifiedFastPath {
            not_modified: state.metrics.polls.with(PollOutcome("not_modified")),
            state: state.node.clone(),
        };
        let app = App::new()
            .app_data(state)
            .wrap(middleware::from_fn(move |request: ServiceRequest, next| {
                let (in_flight, stopping) = (InFlight::new(&in_flight), stopping.clone());
                let busy = tcp::Busy::of(request.request());
                async move {
                    let mut answer = origin::guard(request, next).await?;
                    error::count_refusal(&answer);
                    tcp::note_unread(&mut answer);
                    // It knows no chunks (RFC 9112, section 6.1): a stream ends with its connection.
                    if answer.request().version() < Version::HTTP_11 {
                        let head = answer.response_mut().head_mut();
                        head.no_chunking(true);
                        head.set_connection_type(ConnectionType::Close);
                    }
                    // A busy connection would otherwise keep a stopping node alive.
                    if stopping.borrow().is_some() {
                        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                    }
                    drop((in_flight, busy));
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
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let draining = draining.clone();
                async move { draining.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .local_addr(address)
            .on_connect_ext(TcpHandle::keep)
            .upgrade(upgrade)
            .finish(app);
        apply_fn_factory(http, move |stream: TcpStream, http: &_| {
            let peer = stream.peer_addr().ok();
            let accepted = Accepted::accept(stream, peer, &node);
            let served = accepted.map(|socket| {
                let mark = socket.unread_mark();
                (mark, http.call((socket, Protocol::Http1, peer)))
            });
            async move {
                let Some((mark, served)) = served else { return Ok(()) };
                let mut served = pin!(served);
                let done = served.as_mut().await;
                // What is no request has been answered, too.
                if done.is_err() {
                    mark.set();
                }
                done
            }
        })
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
