//! The event stream: server-sent events inside the HTTP dispatcher. The dispatcher stops polling a body
//! while the peer does not read, so nothing that is time-critical depends on the body: pings, the
//! expiry of the token, the write timeout and the drain are timers of an actor, and the connection of
//! a client that reads too slowly is aborted.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;

use super::body::{BodyDropped, StreamBody};
use crate::auth::revocations::{Revocations, Revoked};
use crate::clients::{Registration, WorkerClients};
use crate::config::Config;
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::hub::SubscribeError;
use crate::hub::fanout::{Fanout, SubscriberOptions, SubscriptionGuard};
use crate::hub::metrics::{SlowReason, Transport};
use crate::hub::outbox::{ConnectionEvents, EndReason, Outbox};
use crate::protocol::code::Disconnect;
use crate::protocol::encoding::{Cursors, Framing};
use crate::protocol::sse;
use crate::recovery;
use crate::store::Store;
use crate::telemetry::metrics::Gauge;
use crate::transport::Metrics;

/// How streams behave.
#[derive(Debug, Clone)]
pub struct SseOptions {
    /// Between two comments.
    pub ping_interval: Duration,
    /// How long a reader may take nothing although something waits.
    pub write_timeout: Duration,
    /// Bytes that may wait for a reader.
    pub queue: usize,
}

impl From<&Config> for SseOptions {
    fn from(config: &Config) -> Self {
        Self {
            ping_interval: config.sse.ping_interval.0,
            write_timeout: config.client.write_timeout.0,
            queue: config.client.queue_max_size.bytes(),
        }
    }
}

/// One channel of a stream.
#[derive(Debug, Clone)]
pub struct Start {
    pub channel: ChannelName,
    /// What is kept of it.
    pub kept: Option<Retention>,
    /// Where the reader is; `None`: from now on.
    pub from: Option<Position>,
}

/// The context of an event stream.
pub struct EventStreamContext {
    /// The fan-out of this thread.
    pub fanout: Rc<Fanout>,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    /// How streams behave.
    pub options: SseOptions,
    /// `Some(spread)` as soon as the process stops: end within this time.
    pub stopping: watch::Receiver<Option<Duration>>,
    /// Aborts the connection of the stream.
    pub abort: Box<dyn Fn()>,
    /// Resolves when the peer has closed its side of the connection. The dispatcher takes that for
    /// the end of the requests alone and would find out when a ping is answered by a reset.
    pub closed: LocalBoxFuture<'static, ()>,
    /// Resolves when access is revoked before the token expires.
    pub revoked: Option<LocalBoxFuture<'static, ()>>,
    /// The clients of this thread, where the stream is registered.
    pub clients: Rc<WorkerClients>,
    /// The principal who reads the stream.
    pub principal: Principal,
    pub revocations: Revocations,
    /// Dropped when the stream ends.
    pub held: Box<dyn Any>,
}

/// Why a stream was not opened.
#[derive(derive_more::From)]
pub enum OpenError {
    Subscribe(SubscribeError),
    Revoked(Revoked),
}

/// Subscribes to all of `starts` and answers the body that carries them. Every event after the
/// answered body's first frame is in it. Ends when the principal's token expires.
pub async fn open(context: EventStreamContext, starts: Vec<Start>) -> Result<StreamBody, OpenError> {
    let outbox = Rc::new(Outbox::new(context.options.queue, context.abort));
    let principal = Rc::new(context.principal);
    let registration = context.clients.add(outbox.clone(), principal.clone(), "sse", None);
    // Time has passed since the caller was admitted. A revocation that came meanwhile is in the list, and
    // one that comes later finds the registration.
    context.revocations.check(&principal, chrono::Utc::now())?;
    let many = (starts.len() > 1).then(|| Rc::new(Cursors::default()));
    let framing = many.map_or(Framing::Sse, Framing::SseMany);
    let mut follows = Vec::with_capacity(starts.len());
    let mut id = None;
    for start in starts {
        let subscribed = context
            .fanout
            .subscribe(start.channel.clone(), outbox.clone(), framing.clone(), SubscriberOptions::default())
            .await;
        let (subscription, joined) = subscribed?;
        let begin = start.from.or_else(|| joined.clone());
        if let Some(begin) = &begin {
            id = Some(framing.cursor(&start.channel, begin));
        }
        follows.push(Follow { subscription, kept: start.kept, begin, joined });
    }
    // Spread over a second, so that a restart is not answered by all at once.
    let retry = rand::random_range(500..1500);
    let _ = outbox.push(Bytes::from(sse::opening(retry, id.as_deref())), None);
    let open_streams = context.metrics.connections.with(Transport("sse"));
    let connection = EventStreamActor {
        _registration: registration,
        outbox: outbox.clone(),
        follows,
        store: context.store,
        options: context.options,
        expires_at: principal.expires_at,
        revoked: context.revoked,
        stopping: context.stopping,
        fanout: context.fanout.clone(),
        open_streams: open_streams.clone(),
        closed: Some(context.closed),
        _held: context.held,
    };
    open_streams.inc();
    Ok(StreamBody::new(outbox, connection.start().recipient(), "sse", context.fanout.metrics()))
}

struct Follow {
    subscription: SubscriptionGuard,
    kept: Option<Retention>,
    begin: Option<Position>,
    joined: Option<Position>,
}

/// The connection actor of an event stream: its timers and its subscriptions.
struct EventStreamActor {
    _registration: Registration,
    outbox: Rc<Outbox>,
    follows: Vec<Follow>,
    store: Store,
    options: SseOptions,
    expires_at: Option<Time>,
    revoked: Option<LocalBoxFuture<'static, ()>>,
    stopping: watch::Receiver<Option<Duration>>,
    fanout: Rc<Fanout>,
    open_streams: Gauge,
    closed: Option<LocalBoxFuture<'static, ()>>,
    _held: Box<dyn Any>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Lagged(ChannelName);

#[derive(Message)]
#[rtype(result = "()")]
struct Disconnected;

impl Actor for EventStreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.outbox.set_listener(ctx.address());
        for follow in &self.follows {
            let (store, subscriber) = (self.store.clone(), follow.subscription.subscriber().clone());
            let (kept, begin, joined) = (follow.kept, follow.begin.clone(), follow.joined.clone());
            let fed = async move {
                let _refused = recovery::begin(&store, &subscriber, kept, begin, joined.as_ref()).await;
            };
            ctx.spawn(fed.into_actor(self));
        }
        ctx.run_interval(self.options.ping_interval, |actor, _| {
            // The timer below stands still while the machine sleeps.
            if actor.lifetime().is_some_and(|left| left.is_zero()) {
                return actor.expire();
            }
            let _ = actor.outbox.push(Bytes::from_static(sse::PING.as_bytes()), None);
        });
        ctx.run_interval(self.options.write_timeout / 4, |actor, _| actor.check_progress());
        if let Some(closed) = self.closed.take() {
            ctx.spawn(closed.into_actor(self).map(|(), actor, _| actor.outbox.abort()));
        }
        if let Some(lifetime) = self.lifetime() {
            ctx.run_later(lifetime, |actor, _| actor.expire());
        }
        if let Some(revoked) = self.revoked.take() {
            ctx.spawn(revoked.into_actor(self).map(|(), actor, _| actor.expire()));
        }
        let mut stopping = self.stopping.clone();
        let stop = async move {
            let spread = stopping.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            let spread = spread.unwrap_or_default();
            tokio::time::sleep(spread.mul_f64(rand::random::<f64>())).await;
        };
        ctx.spawn(stop.into_actor(self).map(|(), actor, _| {
            actor.outbox.end_with(Bytes::from_static(sse::CLOSING.as_bytes()));
        }));
    }
}

/// Even after a panic, the client is never left waiting on a stream that nothing writes to.
impl Drop for EventStreamActor {
    fn drop(&mut self) {
        self.open_streams.dec();
        if !self.outbox.is_closed() {
            self.outbox.abort();
        }
    }
}

impl EventStreamActor {
    /// How long the token is still good for.
    fn lifetime(&self) -> Option<Duration> {
        Some((self.expires_at? - chrono::Utc::now()).to_std().unwrap_or_default())
    }

    fn expire(&self) {
        self.outbox.end_with(Bytes::from_static(sse::EXPIRED.as_bytes()));
    }

    fn check_progress(&self) {
        if self.outbox.stalled_for().is_some_and(|stalled| stalled > self.options.write_timeout) {
            self.fanout.metrics().slow_disconnects.inc(SlowReason::WriteTimeout);
            self.outbox.abort();
        }
    }
}

/// The subscribers report lost events on the stream themselves, and the body ends with its outbox.
impl ConnectionEvents for Addr<EventStreamActor> {
    fn on_lag(&self, channel: &ChannelName) {
        self.do_send(Lagged(channel.clone()));
    }

    fn on_position_lost(&self, _: &ChannelName, _: &Position) {}

    fn on_end(&self, _: EndReason) {}

    fn on_disconnect(&self, _: &Disconnect) {
        self.do_send(Disconnected);
    }
}

impl Handler<Lagged> for EventStreamActor {
    type Result = ();

    fn handle(&mut self, Lagged(channel): Lagged, ctx: &mut Context<Self>) {
        let follow =
            self.follows.iter().find(|follow| *follow.subscription.subscriber().channel() == channel);
        let Some(Follow { subscription, kept: Some(retention), .. }) = follow else { return };
        let (store, subscriber, retention) =
            (self.store.clone(), subscription.subscriber().clone(), *retention);
        let Some(position) = subscriber.take_resume_position() else { return };
        let fed = async move {
            let _refused = recovery::catch_up(&store, &subscriber, retention, position).await;
        };
        ctx.spawn(fed.into_actor(self));
    }
}

impl Handler<Disconnected> for EventStreamActor {
    type Result = ();

    fn handle(&mut self, _: Disconnected, _: &mut Context<Self>) {
        self.outbox.end_with(Bytes::from_static(sse::EXPIRED.as_bytes()));
    }
}

impl Handler<BodyDropped> for EventStreamActor {
    type Result = ();

    fn handle(&mut self, _: BodyDropped, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
