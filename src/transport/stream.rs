//! The client protocol on a response body inside the HTTP dispatcher: `http_stream`, `sse`, and
//! their sisters that only listen. What a client says comes with the request that opens the stream,
//! and by posts of its own after that (`emulation`). The dispatcher stops polling a body while the
//! peer does not read, so pings, deadlines and the end of a reader that is too slow hang on an
//! actor's timers. It decides nothing: it performs what the session asks for.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;

use super::body::{Gone, StreamBody};
use super::emulation::{Posted, Session, Sessions};
use super::websocket::Sockets;
use super::websocket::socket::{FAILURES, now};
use super::websocket::work::{self, Follow};
use crate::connection::clients::Listed;
use crate::connection::effect::{Effect, Outcome};
use crate::connection::{Connection, Manner, replay};
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::hub::fanout::{Framing, Release};
use crate::hub::outbox::{Ended, Keeper, Outbox};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::telemetry::{Code, count, level};

/// The streams of one worker thread and what they share.
pub struct Streams {
    /// What they have in common with sockets.
    pub all: Rc<Sockets>,
    /// Where posts find them.
    pub sessions: Sessions,
    /// `Some(spread)` as soon as the process stops: end within this time.
    pub stopping: watch::Receiver<Option<Duration>>,
}

/// The connection under a stream, as its door knows it.
pub struct Line {
    /// Cuts it.
    pub cut: Box<dyn Fn()>,
    /// Resolves when the peer has closed its side.
    pub left: LocalBoxFuture<'static, ()>,
    /// Kept as long as the stream is open.
    pub held: Box<dyn Any>,
}

impl Streams {
    /// Opens a stream, on which `first` is what the client says first, and gives the body that
    /// carries it.
    pub fn open(self: &Rc<Self>, form: Form, first: ByteString, line: Line) -> StreamBody {
        let metrics = self.all.metrics.clone();
        let outbox = Rc::new(Outbox::new(self.all.options.queue, line.cut));
        // An empty piece is none, and a new queue takes anything.
        let _ = outbox.push(Bytes::from_static(form.opening()), None);
        level(&metrics.connections, form.name()).inc();
        let (streams, bytes) = (self.clone(), outbox.clone());
        let actor = Stream::create(move |ctx| {
            let session = streams.sessions.open(ctx.address().recipient(), first.len());
            let principal = Rc::new(Principal::default());
            let listed = streams.all.clients.add(bytes.clone(), principal.clone(), form.name());
            let (node, uni) = (streams.sessions.node(), form.is_uni());
            let manner = Manner {
                uni,
                session: session.name().clone(),
                node: if uni { "".into() } else { node.clone() },
            };
            let connection = Connection::new(streams.all.rules.clone(), listed.id(), now(), rand::random());
            Stream {
                form,
                session: connection.speaking(manner),
                opened: false,
                over: false,
                listed,
                principal,
                outbox: bytes,
                follows: Vec::new(),
                // Whoever only listens has nothing to post.
                mailbox: Some(session).filter(|_| !uni),
                first: Some(first),
                left: Some(line.left),
                timer: None,
                streams,
                _held: line.held,
            }
        });
        StreamBody::new(outbox, actor.recipient(), form.name(), metrics)
    }
}

/// The connection actor of a stream.
struct Stream {
    streams: Rc<Streams>,
    form: Form,
    session: Connection,
    /// Whether the session is, or was, open; then it counts as a connection that succeeded.
    opened: bool,
    /// Whether the end is said, or needs no saying.
    over: bool,
    listed: Listed,
    /// Whom the list takes it for.
    principal: Rc<Principal>,
    outbox: Rc<Outbox>,
    /// By channel, in order.
    follows: Vec<Follow>,
    mailbox: Option<Session>,
    first: Option<ByteString>,
    left: Option<LocalBoxFuture<'static, ()>>,
    /// When the timer goes off, if one is set.
    timer: Option<(Instant, SpawnHandle)>,
    _held: Box<dyn Any>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct FellBehind(ChannelName);

#[derive(Message)]
#[rtype(result = "()")]
struct Lost(ChannelName, Position);

#[derive(Message)]
#[rtype(result = "()")]
struct Over(Ended);

#[derive(Message)]
#[rtype(result = "()")]
struct End(Disconnect);

#[derive(Message)]
#[rtype(result = "()")]
struct Directed(Arc<Directive>);

impl Keeper for Addr<Stream> {
    fn fell_behind(&self, channel: &ChannelName) {
        self.do_send(FellBehind(channel.clone()));
    }

    fn lost(&self, channel: &ChannelName, head: &Position) {
        self.do_send(Lost(channel.clone(), head.clone()));
    }

    fn ended(&self, why: Ended) {
        self.do_send(Over(why));
    }

    fn dismissed(&self, disconnect: &Disconnect) {
        self.do_send(End(disconnect.clone()));
    }

    fn directed(&self, directive: &Arc<Directive>) {
        self.do_send(Directed(directive.clone()));
    }
}

impl Actor for Stream {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.outbox.kept_by(ctx.address());
        if let Some(left) = self.left.take() {
            ctx.spawn(left.into_actor(self).map(|(), actor, ctx| actor.leave(ctx)));
        }
        let write_timeout = self.streams.all.options.write_timeout;
        ctx.run_interval(write_timeout / 4, move |actor, _| {
            if actor.outbox.stalled_for().is_some_and(|stalled| stalled > write_timeout) {
                count(&actor.streams.all.metrics.slow_disconnects, "write_timeout");
                actor.over(DisconnectCode::WriteError.code());
                actor.outbox.abort();
            }
        });
        let mut stopping = self.streams.stopping.clone();
        let stop = async move {
            let spread = stopping.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            tokio::time::sleep(spread.unwrap_or_default().mul_f64(rand::random::<f64>())).await;
        };
        ctx.spawn(stop.into_actor(self).map(|(), actor, _| actor.end_with(&DisconnectCode::Shutdown.into())));
        if let Some(first) = self.first.take() {
            self.step(ctx, |session, effects| session.on_frame(first, now(), effects));
        }
    }
}

/// However it ends, a panic included: the reader is never left waiting on a stream without life.
impl Drop for Stream {
    fn drop(&mut self) {
        level(&self.streams.all.metrics.connections, self.form.name()).dec();
        if !self.outbox.is_over() {
            self.outbox.abort();
        }
    }
}

impl Stream {
    /// Lets the session do something, and does what it asks for.
    fn step(&mut self, ctx: &mut Context<Self>, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        if self.over {
            return;
        }
        let mut effects = Vec::new();
        act(&mut self.session, &mut effects);
        if !self.opened && self.session.is_open() {
            self.opened = true;
            count(&self.streams.all.metrics.connects, "open");
        }
        if !Rc::ptr_eq(&self.principal, self.session.principal()) {
            self.principal = self.session.principal().clone();
            self.listed.identify(self.principal.clone());
        }
        for effect in effects {
            self.perform(effect, ctx);
        }
        self.arm(ctx);
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let all = &self.streams.all;
        match effect {
            // What leaves together is merged by the outbox. A refusal ends the connection by itself.
            Effect::Say(message) => drop(self.outbox.push(self.form.message(&message), None)),
            Effect::SayReplay(message) => drop(self.outbox.push_replay(self.form.message(&message))),
            Effect::Handled(bytes) => {
                self.mailbox.as_ref().inspect(|mailbox| mailbox.handled(bytes));
            }
            Effect::LookUp(channel) => {
                let looked_up = work::look_up(all.store.clone(), channel);
                ctx.spawn(looked_up.into_actor(self).map(|(channel, found), actor, ctx| {
                    actor.hear(Outcome::LookedUp(channel, found), ctx);
                }));
            }
            Effect::Join(join) => {
                let (client, user) = (self.session.id(), self.session.user().into());
                let out = (self.outbox.clone(), Framing::Form(self.form));
                let joining = work::join_channel(all.clone(), out, (client, user), join);
                ctx.spawn(joining.into_actor(self).map(|(channel, found), actor, ctx| {
                    let joined = found.filter(|_| !actor.over).map(|(follow, joined)| {
                        let place = actor.follows.partition_point(|other| *other.channel() < channel);
                        actor.follows.insert(place, follow);
                        joined
                    });
                    actor.hear(Outcome::Joined(channel, joined), ctx);
                }));
            }
            Effect::Live(channel, position) => {
                let Some(follow) = self.follow(&channel) else { return };
                let entry = follow.subscription.entry();
                if entry.release(position.clone()) == Release::Missed {
                    let from = entry.take_resume_position().or(position);
                    self.catch_up(&channel, from, ctx);
                }
            }
            Effect::Leave(channel) => self.follows.retain(|follow| *follow.channel() != channel),
            Effect::Publish(event) => {
                let published = work::publish(all.publisher.clone(), event);
                ctx.spawn(published.into_actor(self).map(|published, actor, ctx| {
                    actor.hear(Outcome::Published(published), ctx);
                }));
            }
            Effect::ReadHistory(wish) => {
                let read = work::read_history(all.clone(), wish);
                ctx.spawn(read.into_actor(self).map(|stored, actor, ctx| {
                    actor.hear(Outcome::History(stored), ctx);
                }));
            }
            Effect::ReadPresence(channel) => {
                let hub = all.hub.clone();
                let members = async move { hub.members(&channel).await };
                ctx.spawn(members.into_actor(self).map(|members, actor, ctx| {
                    actor.hear(Outcome::Presence(members), ctx);
                }));
            }
            Effect::EndOlder => work::end_older(all, &self.session),
            Effect::Close(disconnect) => self.end_with(&disconnect),
        }
    }

    fn hear(&mut self, outcome: Outcome, ctx: &mut Context<Self>) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
    }

    fn follow(&self, channel: &ChannelName) -> Option<&Follow> {
        let place = self.follows.binary_search_by(|follow| follow.channel().cmp(channel)).ok()?;
        self.follows.get(place)
    }

    /// Brings an entry that is on hold back to the head.
    fn catch_up(&self, channel: &ChannelName, from: Option<Position>, ctx: &mut Context<Self>) {
        let (Some(follow), Some(from)) = (self.follow(channel), from) else { return };
        let all = &self.streams.all;
        let Some(retention) = all.rules.namespaces.load().retention_of(channel) else {
            // A reload has turned the history off: there is nothing to catch up from.
            if follow.positioned {
                ctx.address().do_send(Lost(channel.clone(), from));
            } else {
                let _ = follow.subscription.entry().release(None);
            }
            return;
        };
        let (store, entry) = (all.store.clone(), follow.subscription.entry().clone());
        let fed = async move {
            // Refused means that the connection is over, which is noticed elsewhere.
            let _ = replay::catch_up(&store, &entry, retention, from).await;
        };
        ctx.spawn(fed.into_actor(self));
    }

    /// Sets the timer for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let Some(deadline) = self.session.deadline() else { return };
        if self.timer.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timer = ctx.run_later(left, |actor, ctx| {
            actor.timer = None;
            actor.step(ctx, |session, effects| session.on_time(now(), effects));
        });
        self.timer = Some((deadline, timer));
    }

    /// Says why, as far as that can still be said, and lets the reader take what is queued.
    fn end_with(&mut self, disconnect: &Disconnect) {
        if !self.over {
            self.outbox.end_with(self.form.goodbye(disconnect));
            self.over(disconnect.code());
        }
    }

    /// The peer has gone: so has whatever it was.
    fn leave(&mut self, ctx: &mut Context<Self>) {
        self.over(DisconnectCode::Closed.code());
        self.outbox.abort();
        ctx.stop();
    }

    /// The connection is over: whatever it follows ends now, the body a little later.
    fn over(&mut self, code: u16) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.follows.clear();
        self.mailbox = None;
        let metrics = &self.streams.all.metrics;
        if !std::mem::replace(&mut self.opened, true) {
            count(&metrics.connects, if FAILURES.contains(&code) { "failed" } else { "refused" });
        }
        metrics.disconnects.get_or_create(&Code { code: code.into() }).inc();
        tracing::debug!(connection = %self.session.id(), code, "a connection is over");
    }
}

impl Handler<Posted> for Stream {
    type Result = ();

    fn handle(&mut self, posted: Posted, ctx: &mut Context<Self>) {
        match posted {
            Posted::Frame(frame) => {
                self.step(ctx, |session, effects| session.on_frame(frame, now(), effects))
            }
            Posted::TooMuch => {
                tracing::info!(connection = %self.session.id(), "a client posts faster than it is served");
                self.end_with(&DisconnectCode::TooManyRequests.into());
            }
        }
    }
}

impl Handler<FellBehind> for Stream {
    type Result = ();

    fn handle(&mut self, FellBehind(channel): FellBehind, ctx: &mut Context<Self>) {
        let from =
            self.follow(&channel).and_then(|follow| follow.subscription.entry().take_resume_position());
        self.catch_up(&channel, from, ctx);
    }
}

impl Handler<Lost> for Stream {
    type Result = ();

    fn handle(&mut self, Lost(channel, head): Lost, ctx: &mut Context<Self>) {
        let Some(follow) = self.follow(&channel) else { return };
        if follow.positioned {
            return self.step(ctx, |session, effects| session.on_lost(&channel, now(), effects));
        }
        // Nothing was promised here: it goes on with what comes.
        if follow.subscription.entry().release(Some(head.clone())) == Release::Missed {
            self.catch_up(&channel, Some(head), ctx);
        }
    }
}

impl Handler<Over> for Stream {
    type Result = ();

    fn handle(&mut self, Over(why): Over, _: &mut Context<Self>) {
        let code = match why {
            Ended::Slow => {
                tracing::info!(connection = %self.session.id(), "a reader is too slow and was disconnected");
                count(&self.streams.all.metrics.slow_disconnects, "queue");
                DisconnectCode::Slow
            }
            Ended::Stalled => DisconnectCode::WriteError,
            Ended::Broken => DisconnectCode::Closed,
        };
        self.over(code.code());
    }
}

impl Handler<End> for Stream {
    type Result = ();

    fn handle(&mut self, End(disconnect): End, _: &mut Context<Self>) {
        self.end_with(&disconnect);
    }
}

impl Handler<Directed> for Stream {
    type Result = ();

    fn handle(&mut self, Directed(directive): Directed, ctx: &mut Context<Self>) {
        self.step(ctx, |session, effects| session.on_directive(directive, now(), effects));
    }
}

impl Handler<Gone> for Stream {
    type Result = ();

    fn handle(&mut self, _: Gone, ctx: &mut Context<Self>) {
        self.over(DisconnectCode::Closed.code());
        ctx.stop();
    }
}
