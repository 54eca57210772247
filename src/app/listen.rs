//! The worker threads: each has a fan-out, its sockets and the HTTP app. Sockets leave the HTTP
//! dispatcher through a door of their own; everything else is a route.

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

use super::{Doors, cores};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::connection::Rules;
use crate::connection::clients::{Clients, Control};
use crate::http::line::Socket;
use crate::http::poll::AtEnd;
use crate::http::{error, origin, routes, socket};
use crate::hub::Hub;
use crate::hub::fanout::Fanout;
use crate::publish::Publisher;
use crate::store::Store;
use crate::tasks::revocations::Revoker;
use crate::telemetry::{Metrics, counter};
use crate::transport::stream::Streams;
use crate::transport::websocket::{Sockets, WebsocketOptions};

/// Connections of one worker thread in the HTTP dispatcher.
const MAX_CONNECTIONS: usize = 25_000;
/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// For what is left when nothing is under way any more.
const LAST_GRACE_SECS: u64 = 1;

/// What the workers share.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) hub: Hub,
    pub(super) publisher: Publisher,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cluster: Cluster,
    pub(super) control: Control,
    pub(super) revoker: Revoker,
    pub(super) in_flight: Arc<AtomicUsize>,
    pub(super) rules: Arc<Rules>,
    pub(super) websocket: WebsocketOptions,
    pub(super) stopping: watch::Receiver<Option<Duration>>,
}

/// Starts the worker threads on `listener`.
pub(super) fn listen(
    config: &Config,
    listener: TcpListener,
    doors: Doors,
    parts: Parts,
) -> anyhow::Result<Server> {
    let workers = config.server.workers.map_or_else(cores, |workers| workers as usize);
    let builder = Server::build()
        .workers(workers)
        .max_concurrent_connections(MAX_CONNECTIONS)
        .shutdown_timeout(LAST_GRACE_SECS)
        .disable_signals();
    let address = listener.local_addr()?;
    let draining = builder.graceful_shutdown_signal();
    let server = builder.listen("http", listener, move || {
        // Runs once on each worker thread.
        let (doors, parts, draining) = (doors.clone(), parts.clone(), draining.clone());
        let fanout = Fanout::start(parts.hub.clone(), parts.metrics.clone());
        let clients = Rc::new(Clients::default());
        parts.control.enlist(clients.clone(), fanout.clone());
        let services =
            (parts.cluster.clone(), parts.store.clone(), parts.publisher.clone(), parts.metrics.clone());
        let (rules, options) = (parts.rules.clone(), parts.websocket.clone());
        let stopping = parts.stopping.clone();
        let sockets = Sockets::start(rules, fanout.clone(), clients.clone(), services, options, stopping);
        let streams = Rc::new(Streams {
            all: sockets.clone(),
            sessions: doors.transports.sessions.clone(),
            stopping: parts.stopping.clone(),
        });
        let (socket_door, access) = (doors.sockets.clone(), doors.access.clone());
        let upgrade = fn_service(move |(request, framed)| {
            let (door, access, sockets) = (socket_door.clone(), access.clone(), sockets.clone());
            async move { socket::upgrade(request, framed, &door, &access, sockets).await }
        });
        let at_end = AtEnd {
            access: doors.access.clone(),
            door: doors.polls.clone(),
            store: parts.store.clone(),
            not_modified: counter(&parts.metrics.polls, "not_modified"),
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
            .app_data(web::Data::from(parts.metrics.clone()))
            .app_data(web::Data::new(parts.hub))
            .app_data(doors.access.clone())
            .app_data(doors.webhooks.clone())
            .app_data(doors.polls.clone())
            .app_data(doors.builds.clone())
            .app_data(doors.streams.clone())
            .app_data(doors.transports.clone())
            .app_data(doors.sign_in.clone())
            .app_data(doors.summaries.clone())
            .app_data(doors.health.clone())
            .app_data(doors.api)
            .wrap(middleware::from_fn(move |request, next| {
                let (counted, stopping) = (Counted::new(&in_flight), stopping.clone());
                async move {
                    let mut answer = origin::guard(request, next).await?;
                    error::count_refusal(&answer);
                    // A busy connection would otherwise keep a node that stops alive.
                    if stopping.borrow().is_some() {
                        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                    }
                    drop(counted);
                    Ok(answer)
                }
            }))
            .configure(routes::routes)
            .into_factory()
            .map_err(|error: Error| error.error_response());
        let app = map_config(app, |()| AppConfig::default());
        let app = apply_fn_factory(app, move |request: Request, app: &_| {
            // A node that stops says so with every answer, which is the app's to do.
            let answer = if running.borrow().is_none() { at_end.answer(&request) } else { None };
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
    // A node that starts again takes its port back although old connections still end.
    socket.set_reuse_address(true)?;
    // Small frames must not wait for each other; accepted sockets take this over.
    socket.set_tcp_nodelay(true)?;
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

fn keep_socket(stream: &actix_rt::net::TcpStream, extensions: &mut Extensions) {
    if let Ok(socket) = socket2::SockRef::from(stream).try_clone() {
        extensions.insert(Socket(Rc::new(socket)));
    }
}
