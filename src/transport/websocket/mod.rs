//! WebSocket on sockets that were upgraded out of the HTTP dispatcher. `socket` is the connection
//! actor, `incoming` what a client sends, `alarms` when it wants to be woken. Here are the connections of a
//! worker thread and the life of one: carried while its session lives, then closed in order.

mod alarms;
mod incoming;
mod socket;

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

use crate::cluster::Cluster;
use crate::connection::Rules;
use crate::connection::clients::Clients;
use crate::connection::effect::Replay;
use crate::connection::replay::RecoveryLimit;
use crate::domain::position::Position;
use crate::hub::fanout::Fanout;
use crate::hub::outbox::{Outbox, SocketOptions, Wire};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::protocol::websocket as wire;
use crate::publish::Publisher;
use crate::store::Store;
use crate::telemetry::{Metrics, level};
use crate::transport::gathered::Gathered;
use crate::transport::work::Missed;
use crate::vital;
use alarms::Alarms;
use incoming::{Credit, Incoming};
use socket::Socket;

/// What the actor lives in.
type SocketContext = Context<Socket>;

/// How long the peer may take to close after we have.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How sockets behave.
#[derive(Debug, Clone)]
pub struct WebsocketOptions {
    /// The largest message of a client, in bytes.
    pub message_size: usize,
    /// The same of a client that only listens.
    pub uni_message_size: usize,
    /// Bytes that may wait for one connection.
    pub queue: usize,
    /// How long a reader may take nothing although something waits.
    pub write_timeout: Duration,
    /// What is replayed at most in configured namespaces.
    pub recovery: RecoveryLimit,
}

/// Who is at the other end of a socket.
#[derive(Debug, Clone)]
pub enum SocketClient {
    /// It sends commands.
    Speaks,
    /// It only listens, and says who it is by this, or else by its first message.
    Listens(Option<ByteString>),
}

impl SocketClient {
    fn form(&self) -> Option<Form> {
        matches!(self, Self::Listens(_)).then_some(Form::UniWebsocket)
    }
}

/// All connections of one worker thread and what they share.
pub struct Sockets {
    /// What connections go by.
    pub rules: Arc<Rules>,
    /// The fan-out of this thread.
    pub fanout: Rc<Fanout>,
    /// For presence.
    pub cluster: Cluster,
    /// For replays and history.
    pub store: Store,
    /// For clients that publish.
    pub publisher: Publisher,
    /// For counting.
    pub metrics: Arc<Metrics>,
    /// All clients of this thread.
    pub clients: Rc<Clients>,
    alarms: Rc<Alarms>,
    /// What returning clients have missed.
    pub(super) missed: Rc<Gathered<Missed, Option<(Replay, Position)>>>,
    pub(super) options: WebsocketOptions,
    outbox: Rc<SocketOptions>,
    stopping: watch::Receiver<Option<Duration>>,
}

impl Sockets {
    /// No connection yet. `stopping` becomes `Some(spread)` when the process stops: then all are
    /// told to go elsewhere, spread over this time.
    pub fn start(
        rules: Arc<Rules>,
        fanout: Rc<Fanout>,
        clients: Rc<Clients>,
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
        let mut told = stopping.clone();
        let alarms = Rc::<Alarms>::default();
        actix_rt::spawn(vital::part(alarms.clone().run()));
        let sockets = Rc::new(Self {
            rules,
            fanout,
            cluster,
            store,
            publisher,
            metrics,
            clients,
            alarms,
            missed: Rc::default(),
            options,
            outbox,
            stopping,
        });
        let all = Rc::downgrade(&sockets);
        actix_rt::spawn(async move {
            let spread = told.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            let Some(sockets) = all.upgrade() else { return };
            let mut open = sockets.clients.outboxes();
            open.retain(|outbox| outbox.is_socket());
            let pause = spread.unwrap_or_default() / u32::try_from(open.len().max(1)).unwrap_or(u32::MAX);
            let begun = tokio::time::Instant::now();
            let elsewhere = Disconnect::from(DisconnectCode::Shutdown);
            for (outbox, i) in open.iter().zip(0..) {
                tokio::time::sleep_until(begun + pause * i).await;
                outbox.dismiss(&elsewhere);
            }
        });
        sockets
    }

    /// Carries a connection over `stream` until it is over. `first` came with the request; `held`
    /// is kept as long as the socket is open. What is awaited is a task's memory for as long as
    /// the connection lives, so all that can be made before is.
    pub fn carry(
        self: Rc<Self>,
        stream: TcpStream,
        first: BytesMut,
        client: SocketClient,
        held: impl Sized,
    ) -> impl Future<Output = ()> {
        let form = client.form();
        let kind = form.map_or("websocket", Form::name);
        let largest = if form.is_some() { self.options.uni_message_size } else { self.options.message_size };
        level(&self.metrics.connections, kind).inc();
        let outbox = Rc::new(Outbox::socket(Wire::Plain(stream), self.outbox.clone()));
        let credit = Credit::new(largest);
        let incoming = Incoming::new(outbox.clone(), first, credit.clone(), largest);
        let mut ctx = SocketContext::new();
        Socket::add_stream(incoming, &mut ctx);
        let mut actor = ctx.into_future(Socket::new(self.clone(), outbox.clone(), credit, client));
        async move {
            // By reference: what is moved into what is awaited would be stored twice.
            let live = AssertUnwindSafe(&mut actor);
            if live.catch_unwind().await.is_err() {
                outbox.end_with(goodbye(form, &DisconnectCode::Internal.into()));
            }
            drop(actor);
            Box::pin(linger(&outbox)).await;
            outbox.give_up();
            level(&self.metrics.connections, kind).dec();
            drop(held);
        }
    }
}

/// The last frame, and before it the words for a client that only listens.
fn goodbye(form: Option<Form>, disconnect: &Disconnect) -> Bytes {
    form.map_or_else(|| wire::close(disconnect), |form| form.goodbye(disconnect))
}

/// Reads what the peer still sends, until it closes: a socket that is closed with bytes unread
/// resets the connection, and our last words would be lost.
async fn linger(outbox: &Outbox) {
    let Some(wire) = outbox.wire() else { return };
    let mut rest = [0; 1024];
    let until_end = async {
        while poll_fn(|cx| wire.poll_read_ready(cx)).await.is_ok() {
            match wire.try_read(&mut rest) {
                Ok(0) => return,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return,
                // A peer that sends on and on must not keep this thread.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_end).await;
}
