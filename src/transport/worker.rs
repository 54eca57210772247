//! What all connections of one worker thread share, whatever carries them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::metrics::Metrics;
use super::single_flight::SingleFlight;
use super::timer_queue::TimerQueue;
use crate::clients::WorkerClients;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::domain::channel::ChannelName;
use crate::hub::fanout::Fanout;
use crate::hub::outbox::SocketOptions;
use crate::limits::rate_limit::RateLimit;
use crate::limits::replies::Replies;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::websocket as wire;
use crate::publish::Publisher;
use crate::recovery::{Recovered, RecoveryLimit, RecoveryRequest};
use crate::session::SessionContext;
use crate::store::Store;
use crate::supervision;

/// How long the peer may take to close after we have.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of events that a returning client may always recover.
const MIN_RECOVERY_BYTES: usize = 4 << 20;

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

impl From<&Config> for WebsocketOptions {
    fn from(config: &Config) -> Self {
        let (client, queue) = (&config.client, config.client.queue_max_size.bytes());
        Self {
            message_size: config.websocket.message_size_limit.bytes(),
            uni_message_size: config.uni_websocket.message_size_limit.bytes(),
            queue,
            write_timeout: client.write_timeout.0,
            recovery: RecoveryLimit {
                events: client.recovery_max_publication_limit.into(),
                bytes: queue.max(MIN_RECOVERY_BYTES),
            },
        }
    }
}

/// What a user may use up on this node, over all its connections; without one, a connection.
#[derive(Clone)]
pub struct UserLimits {
    /// Subscribe to channels that nobody here follows yet: they are memory of this node.
    pub new_channels: RateLimit,
    /// Join channels so that all others are told: each is a message to everybody there.
    pub joins: RateLimit,
    /// Room for what returning clients get.
    pub replies: Replies,
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
    pub(super) limits: UserLimits,
    /// All clients of this thread.
    pub clients: Rc<WorkerClients>,
    pub(super) timers: Rc<TimerQueue>,
    /// The reads for returning clients that are under way.
    pub(super) recoveries: Rc<SingleFlight<RecoveryRequest, Option<Recovered>>>,
    pub(super) options: WebsocketOptions,
    pub(super) outbox: Rc<SocketOptions>,
    pub(super) stopping: watch::Receiver<Option<Duration>>,
}

impl WorkerContext {
    /// Whether `channel` is followed on this node, or may be from now on as a new one of `holder`.
    pub fn may_open(&self, channel: &ChannelName, holder: impl FnOnce() -> String) -> bool {
        if self.fanout.is_subscribed(channel) || self.fanout.hub().is_active(channel) {
            return true;
        }
        let allowed = self.limits.new_channels.check_here(&holder()).is_some();
        if !allowed {
            self.metrics.channels_refused.inc();
        }
        allowed
    }

    /// A context without connections. `stopping` becomes `Some(spread)` when the process stops: all
    /// clients are then disconnected, spread over this time.
    pub fn start(
        session_context: Arc<SessionContext>,
        fanout: Rc<Fanout>,
        clients: Rc<WorkerClients>,
        services: (Cluster, Store, Publisher, Arc<Metrics>, UserLimits),
        options: WebsocketOptions,
        stopping: watch::Receiver<Option<Duration>>,
    ) -> Rc<Self> {
        let (cluster, store, publisher, metrics, limits) = services;
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
            limits,
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
}
