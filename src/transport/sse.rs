//! Server-sent events inside the HTTP dispatcher. The dispatcher stops polling a body while the
//! peer does not read, so nothing that must happen in time hangs on the body: pings, the token's
//! end, the write time-out and the drain are an actor's timers, and a reader that is too slow has
//! its socket cut under the dispatcher.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;

use super::body::{Gone, StreamBody};
use crate::connection::clients::{Clients, Listed};
use crate::connection::replay;
use crate::domain::channel::ChannelName;
use crate::domain::options::Retention;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::hub::CannotFollow;
use crate::hub::fanout::{Cursors, Fanout, Framing, Subscription, Visitor};
use crate::hub::outbox::{Ended, Keeper, Outbox};
use crate::protocol::code::Disconnect;
use crate::protocol::sse;
use crate::store::Store;
use crate::telemetry::{Metrics, count, level};

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

/// One channel of a stream.
#[derive(Debug, Clone)]
pub struct Start {
    /// Which.
    pub channel: ChannelName,
    /// What is kept of it.
    pub kept: Option<Retention>,
    /// Where the reader is; `None`: from now on.
    pub from: Option<Position>,
}

/// What a stream needs of its surroundings.
pub struct Surroundings {
    /// The fan-out of this thread.
    pub fanout: Rc<Fanout>,
    /// For replays.
    pub store: Store,
    /// For counting.
    pub metrics: Arc<Metrics>,
    /// How streams behave.
    pub options: SseOptions,
    /// `Some(spread)` as soon as the process stops: end within this time.
    pub stopping: watch::Receiver<Option<Duration>>,
    /// Cuts the connection under the stream.
    pub cut: Box<dyn Fn()>,
    /// Resolves when the peer has closed its side of the connection. The dispatcher takes that for
    /// the end of the requests alone and would find out when a ping is answered by a reset.
    pub left: LocalBoxFuture<'static, ()>,
    /// Resolves when the reader's right ends before its time.
    pub revoked: Option<LocalBoxFuture<'static, ()>>,
    /// The clients of this thread, of which this is going to be one.
    pub clients: Rc<Clients>,
    /// Who reads it.
    pub principal: Principal,
    /// Kept as long as the stream is open.
    pub held: Box<dyn Any>,
}

/// Subscribes to all of `starts` and answers the body that carries them. Every event after the
/// answered body's first frame is in it. Ends when `lifetime` is over.
pub async fn open(
    around: Surroundings,
    starts: Vec<Start>,
    lifetime: Option<Duration>,
) -> Result<StreamBody, CannotFollow> {
    let outbox = Rc::new(Outbox::new(around.options.queue, around.cut));
    // In the turn in which it was let in: who is revoked after that is found here.
    let listed = around.clients.add(outbox.clone(), Rc::new(around.principal), "sse", None);
    let many = (starts.len() > 1).then(|| Rc::new(Cursors::default()));
    let framing = many.map_or(Framing::Sse, Framing::SseMany);
    let mut follows = Vec::with_capacity(starts.len());
    let mut id = None;
    for start in starts {
        let subscribed = around
            .fanout
            .subscribe(start.channel.clone(), outbox.clone(), framing.clone(), Visitor::default())
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
    let connection = SseConnection {
        _listed: listed,
        outbox: outbox.clone(),
        follows,
        store: around.store,
        options: around.options,
        lifetime,
        revoked: around.revoked,
        stopping: around.stopping,
        metrics: around.metrics.clone(),
        left: Some(around.left),
        _held: around.held,
    };
    level(&around.metrics.connections, "sse").inc();
    Ok(StreamBody::new(outbox, connection.start().recipient(), "sse", around.metrics))
}

struct Follow {
    subscription: Subscription,
    kept: Option<Retention>,
    begin: Option<Position>,
    joined: Option<Position>,
}

/// The connection actor of a stream: keeps its time and its subscriptions.
struct SseConnection {
    _listed: Listed,
    outbox: Rc<Outbox>,
    follows: Vec<Follow>,
    store: Store,
    options: SseOptions,
    lifetime: Option<Duration>,
    revoked: Option<LocalBoxFuture<'static, ()>>,
    stopping: watch::Receiver<Option<Duration>>,
    metrics: Arc<Metrics>,
    left: Option<LocalBoxFuture<'static, ()>>,
    _held: Box<dyn Any>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct FellBehind(ChannelName);

#[derive(Message)]
#[rtype(result = "()")]
struct Dismissed;

impl Actor for SseConnection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.outbox.kept_by(ctx.address());
        for follow in &self.follows {
            let (store, entry) = (self.store.clone(), follow.subscription.entry().clone());
            let (kept, begin, joined) = (follow.kept, follow.begin.clone(), follow.joined.clone());
            let fed = async move {
                let _refused = replay::begin(&store, &entry, kept, begin, joined.as_ref()).await;
            };
            ctx.spawn(fed.into_actor(self));
        }
        ctx.run_interval(self.options.ping_interval, |actor, _| {
            let _ = actor.outbox.push(Bytes::from_static(sse::PING.as_bytes()), None);
        });
        ctx.run_interval(self.options.write_timeout / 4, |actor, _| actor.check_progress());
        if let Some(left) = self.left.take() {
            ctx.spawn(left.into_actor(self).map(|(), actor, _| actor.outbox.abort()));
        }
        if let Some(lifetime) = self.lifetime {
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

/// However it ends, a panic included: the reader is never left waiting on a stream without life.
impl Drop for SseConnection {
    fn drop(&mut self) {
        level(&self.metrics.connections, "sse").dec();
        if !self.outbox.is_over() {
            self.outbox.abort();
        }
    }
}

impl SseConnection {
    fn expire(&self) {
        self.outbox.end_with(Bytes::from_static(sse::EXPIRED.as_bytes()));
    }

    fn check_progress(&self) {
        if self.outbox.stalled_for().is_some_and(|stalled| stalled > self.options.write_timeout) {
            count(&self.metrics.slow_disconnects, "write_timeout");
            self.outbox.abort();
        }
    }
}

/// The stream says itself what was lost, and its body ends with its outbox.
impl Keeper for Addr<SseConnection> {
    fn fell_behind(&self, channel: &ChannelName) {
        self.do_send(FellBehind(channel.clone()));
    }

    fn lost(&self, _: &ChannelName, _: &Position) {}

    fn ended(&self, _: Ended) {}

    fn dismissed(&self, _: &Disconnect) {
        self.do_send(Dismissed);
    }
}

impl Handler<FellBehind> for SseConnection {
    type Result = ();

    fn handle(&mut self, FellBehind(channel): FellBehind, ctx: &mut Context<Self>) {
        let follow = self.follows.iter().find(|follow| *follow.subscription.entry().channel() == channel);
        let Some(Follow { subscription, kept: Some(retention), .. }) = follow else { return };
        let (store, entry, retention) = (self.store.clone(), subscription.entry().clone(), *retention);
        let Some(position) = entry.take_resume_position() else { return };
        let fed = async move {
            let _refused = replay::catch_up(&store, &entry, retention, position).await;
        };
        ctx.spawn(fed.into_actor(self));
    }
}

impl Handler<Dismissed> for SseConnection {
    type Result = ();

    fn handle(&mut self, _: Dismissed, _: &mut Context<Self>) {
        self.outbox.end_with(Bytes::from_static(sse::EXPIRED.as_bytes()));
    }
}

impl Handler<Gone> for SseConnection {
    type Result = ();

    fn handle(&mut self, _: Gone, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
