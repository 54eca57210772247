//! WebSocket connections, which are upgraded out of the HTTP dispatcher. `actor` is the connection
//! actor, `incoming` reads the messages of a client, `timer_queue` holds the timers of all connections.
//! This file contains the context of a worker thread and the life of a connection: it is served while
//! its session is open, then closed in order.

mod actor;
mod incoming;
mod timer_queue;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Context, StreamHandler as _};
use actix_rt::net::TcpStream;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::clients::WorkerClients;
use crate::cluster::Cluster;
use crate::domain::position::Position;
use crate::hub::fanout::Fanout;
use crate::hub::metrics::Transport;
use crate::hub::outbox::{Outbox, SocketOptions, UpgradedSocket};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::protocol::websocket as wire;
use crate::publish::Publisher;
use crate::recovery::RecoveryLimit;
use crate::session::SessionContext;
use crate::session::effect::Replay;
use crate::store::Store;
use crate::supervision;
use crate::transport::Metrics;
use crate::transport::effects::RecoveryRequest;
use crate::transport::single_flight::SingleFlight;
use actor::WebSocketActor;
use incoming::{Credit, Incoming};
use timer_queue::TimerQueue;

/// The context of the connection actor.
type SocketContext = Context<WebSocketActor>;

/// How long the peer may take to close after we have.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How sockets behave.
#[derive(Debug, Clone)]
pub struct WebsocketOptions {
    /// The largest message of a client, in bytes.
    pub message_size: usize,
    /// The largest message of a unidirectional client, in bytes.
    pub uni_message_size: usize,
    /// Bytes that may be queued for one connection.
    pub queue: usize,
    /// How long a client may read nothing although data is queued.
    pub write_timeout: Duration,
    /// The recovery limit in configured namespaces.
    pub recovery: RecoveryLimit,
}

/// The kind of client on a WebSocket.
#[derive(Debug, Clone)]
pub enum SocketClient {
    /// It sends commands.
    Bidirectional,
    /// It sends only its connect: this one, or else its first message.
    Unidirectional(Option<ByteString>),
}

impl SocketClient {
    fn form(&self) -> Option<Form> {
        matches!(self, Self::Unidirectional(_)).then_some(Form::UniWebsocket)
    }
}

/// What all connections of one worker thread share.
pub struct WorkerContext {
    /// The context of all sessions.
    pub session_context: Arc<SessionContext>,
    /// The fan-out of this thread.
    pub fanout: Rc<Fanout>,
    pub cluster: Cluster,
    /// For replays and history.
    pub store: Store,
    /// For clients that publish.
    pub publisher: Publisher,
    pub metrics: Arc<Metrics>,
    /// All clients of this thread.
    pub clients: Rc<WorkerClients>,
    timers: Rc<TimerQueue>,
    /// The reads for returning clients that are under way.
    pub(super) recoveries: Rc<SingleFlight<RecoveryRequest, Option<(Replay, Position)>>>,
    pub(super) options: WebsocketOptions,
    outbox: Rc<SocketOptions>,
    stopping: watch::Receiver<Option<Duration>>,
}

impl WorkerContext {
    /// A context without connections. `stopping` becomes `Some(spread)` when the process stops: all
    /// clients are then disconnected, spread over this time.
    pub fn start(
        session_context: Arc<SessionContext>,
        fanout: Rc<Fanout>,
        clients: Rc<WorkerClients>,
        services: (Cluster, Store, Publisher, Arc<Metrics>),
        options: WebsocketOptions,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Rc<Self> {
        let (cluster, store, publisher, metrics) = services;
        let outbox = Rc::new(SocketOptions {
            limit: options.queue,
            write_timeout: options.write_timeout,
            close_timeout: CLOSE_TIMEOUT,
            slow: wire::close(&DisconnectCode::Slow.into()),
        });
        let mut stopped = stopping.clone();
        let timers = Rc::<TimerQueue>::default();
        actix_rt::spawn(supervision::critical(timers.clone().run()));
        let worker = Rc::new(Self {
            session_context,
            fanout,
            cluster,
            store,
            publisher,
            metrics,
            clients,
            timers,
            recoveries: Rc::default(),
            options,
            outbox,
            stopping,
        });
        let weak = Rc::downgrade(&worker);
        actix_rt::spawn(async move {
            let spread = stopped.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            let Some(worker) = weak.upgrade() else { return };
            let mut open = worker.clients.outboxes();
            open.retain(|outbox| outbox.is_socket());
            let pause = spread.unwrap_or_default() / u32::try_from(open.len().max(1)).unwrap_or(u32::MAX);
            let begun = tokio::time::Instant::now();
            let elsewhere = Disconnect::from(DisconnectCode::Shutdown);
            for (outbox, i) in open.iter().zip(0..) {
                tokio::time::sleep_until(begun + pause * i).await;
                outbox.disconnect(&elsewhere);
            }
        });
        worker
    }

    /// Serves a connection over `stream` until it ends. `first` is what came with the request; `held`
    /// is dropped when the socket is closed. The state of the future takes memory as long as the
    /// connection lives, so as much as possible is created before.
    pub fn serve(
        self: Rc<Self>,
        stream: TcpStream,
        first: BytesMut,
        client: SocketClient,
        held: impl Sized,
    ) -> impl Future<Output = ()> {
        let form = client.form();
        let transport = Transport(form.map_or("websocket", Form::name));
        let largest = if form.is_some() { self.options.uni_message_size } else { self.options.message_size };
        self.metrics.connections.with(transport).inc();
        let outbox = Rc::new(Outbox::for_socket(UpgradedSocket::Plain(stream), self.outbox.clone()));
        let credit = Credit::new(largest);
        let incoming = Incoming::new(outbox.clone(), first, credit.clone(), largest);
        let mut ctx = SocketContext::new();
        WebSocketActor::add_stream(incoming, &mut ctx);
        let mut actor = ctx.into_future(WebSocketActor::new(self.clone(), outbox.clone(), credit, client));
        async move {
            // By reference: a value that is moved into an awaited future would be stored twice.
            let live = AssertUnwindSafe(&mut actor);
            if live.catch_unwind().await.is_err() {
                outbox.end_with(disconnect_message(form, &DisconnectCode::Internal.into()));
            }
            drop(actor);
            Box::pin(linger(&outbox)).await;
            outbox.abort_unless_closed();
            self.metrics.connections.with(transport).dec();
            drop(held);
        }
    }
}

/// The closing frame; a unidirectional client is sent a disconnect push before it.
fn disconnect_message(form: Option<Form>, disconnect: &Disconnect) -> Bytes {
    form.map_or_else(|| wire::close(disconnect), |form| form.disconnect_message(disconnect))
}

/// Reads what the peer still sends, until it closes: closing a socket that has unread bytes resets
/// the connection, and our last frames would be lost.
async fn linger(outbox: &Outbox) {
    let Some(wire) = outbox.upgraded_socket() else { return };
    let mut rest = [0; 1024];
    let until_end = async {
        while poll_fn(|cx| wire.poll_read_ready(cx)).await.is_ok() {
            match wire.try_read(&mut rest) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                // A peer that keeps sending must not block this thread.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_end).await;
}
