//! The client protocol over a streamed HTTP response: `http_stream`, `sse` and their unidirectional
//! variants. The first commands come with the request that opens the stream, later ones by emulation
//! requests (`emulation`). The dispatcher stops polling a body while the peer does not read, so pings,
//! deadlines and the disconnection of slow clients depend on the timers of an actor. It performs the
//! effects of the session and makes no decisions itself.

use std::any::Any;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;

use super::body::{BodyDropped, StreamBody};
use super::connection_actor::{ActorCore, ActorEvent, ConnectionActor, now};
use super::emulation::{Session, SessionInput, Sessions};
use super::worker::WorkerContext;
use crate::hub::metrics::{SlowReason, Transport};
use crate::hub::outbox::Outbox;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::encoding::Framing;
use crate::protocol::form::Form;
use crate::session::effect::Effect;
use crate::session::{Connection, SessionMode};

/// Opens the streams of one worker thread.
pub struct Streams {
    /// The context of the worker thread.
    pub worker: Rc<WorkerContext>,
    /// The sessions that emulation requests are addressed to.
    pub sessions: Sessions,
    /// `Some(spread)` as soon as the process stops: end within this time.
    pub stopping: watch::Receiver<Option<Duration>>,
}

/// The HTTP connection of a stream.
pub struct StreamRequest {
    /// Aborts the connection.
    pub abort: Box<dyn Fn()>,
    /// Resolves when the peer has closed its side.
    pub closed: LocalBoxFuture<'static, ()>,
    /// Dropped when the stream ends.
    pub held: Box<dyn Any>,
}

impl Streams {
    /// Opens a stream and returns its response body. `first` is the first frame of the client.
    pub fn open(self: &Rc<Self>, form: Form, first: ByteString, request: StreamRequest) -> StreamBody {
        let outbox = Rc::new(Outbox::new(self.worker.options.queue, request.abort));
        // An empty piece is none, and a new queue takes anything.
        let _ = outbox.push(Bytes::from_static(form.opening()), None);
        self.worker.metrics.connections.with(Transport(form.name())).inc();
        let (streams, bytes) = (self.clone(), outbox.clone());
        let actor = HttpStreamActor::create(move |ctx| {
            let session = streams.sessions.open(ctx.address().recipient(), first.len());
            let (node, uni) = (streams.sessions.node(), form.is_uni());
            let mode = SessionMode {
                uni,
                session: session.name().clone(),
                node: if uni { "".into() } else { node.clone() },
            };
            let transport = (form.name(), Framing::Form(form));
            HttpStreamActor {
                form,
                core: ActorCore::new(streams.worker.clone(), bytes, transport, Some(mode)),
                // A unidirectional client sends no emulation requests.
                mailbox: Some(session).filter(|_| !uni),
                first: Some(first),
                closed: Some(request.closed),
                timer: None,
                streams,
                _held: request.held,
            }
        });
        StreamBody::new(outbox, actor.recipient(), form.name(), self.worker.fanout.metrics())
    }
}

struct HttpStreamActor {
    streams: Rc<Streams>,
    form: Form,
    core: ActorCore,
    mailbox: Option<Session>,
    first: Option<ByteString>,
    closed: Option<LocalBoxFuture<'static, ()>>,
    /// When the timer goes off, if one is set.
    timer: Option<(Instant, SpawnHandle)>,
    _held: Box<dyn Any>,
}

impl Actor for HttpStreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.core.outbox.set_listener(ctx.address());
        if let Some(closed) = self.closed.take() {
            ctx.spawn(closed.into_actor(self).map(|(), actor, ctx| actor.on_peer_closed(ctx)));
        }
        let write_timeout = self.streams.worker.options.write_timeout;
        ctx.run_interval(write_timeout / 4, move |actor, _| {
            if actor.core.outbox.stalled_for().is_some_and(|stalled| stalled > write_timeout) {
                let slow = &actor.streams.worker.fanout.metrics().slow_disconnects;
                slow.inc(SlowReason::WriteTimeout);
                actor.close(DisconnectCode::WriteError.code());
                actor.core.outbox.abort();
            }
        });
        let mut stopping = self.streams.stopping.clone();
        let stop = async move {
            let spread = stopping.wait_for(Option::is_some).await.ok().and_then(|spread| *spread);
            tokio::time::sleep(spread.unwrap_or_default().mul_f64(rand::random::<f64>())).await;
        };
        ctx.spawn(stop.into_actor(self).map(|(), actor, _| actor.end_with(&DisconnectCode::Shutdown.into())));
        if let Some(first) = self.first.take() {
            self.core.count_received(&first);
            self.step(ctx, |session, effects| session.on_frame(first, now(), effects));
        }
    }
}

/// Even after a panic, the client is never left waiting on a stream that nothing writes to.
impl Drop for HttpStreamActor {
    fn drop(&mut self) {
        self.streams.worker.metrics.connections.with(Transport(self.form.name())).dec();
        if !self.core.outbox.is_closed() {
            self.core.outbox.abort();
        }
    }
}

impl ConnectionActor for HttpStreamActor {
    fn core(&mut self) -> &mut ActorCore {
        &mut self.core
    }

    fn step(&mut self, ctx: &mut Context<Self>, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        if self.core.ended {
            return;
        }
        for effect in self.core.advance(act) {
            if let Some(own) = self.perform(effect, ctx) {
                self.send_own(own);
            }
        }
        self.schedule_timer(ctx);
    }
}

impl HttpStreamActor {
    fn send_own(&mut self, own: Effect) {
        let outbox = &self.core.outbox;
        match own {
            // The outbox merges what is sent together. If it refuses, it also ends the connection.
            Effect::Send(message) => drop(outbox.push(self.form.message(&message), None)),
            Effect::SendReplay(message) => drop(outbox.push_replay(self.form.message(&message))),
            Effect::Handled(bytes) => {
                self.mailbox.as_ref().inspect(|mailbox| mailbox.handled(bytes));
            }
            Effect::Close(disconnect) => self.end_with(&disconnect),
            _ => {}
        }
    }

    /// Sets the timer for the session's next deadline. A timer that fires early is set again.
    fn schedule_timer(&mut self, ctx: &mut Context<Self>) {
        let Some(deadline) = self.core.session.deadline(now()) else { return };
        if self.timer.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let delay = deadline.saturating_duration_since(Instant::now());
        let timer = ctx.run_later(delay, |actor, ctx| {
            actor.timer = None;
            actor.step(ctx, |session, effects| session.on_time(now(), effects));
        });
        self.timer = Some((deadline, timer));
    }

    /// Sends the disconnect if that is still possible, and lets the client read what is queued.
    fn end_with(&mut self, disconnect: &Disconnect) {
        if !self.core.ended {
            self.core.outbox.end_with(self.form.disconnect_message(disconnect));
            self.close(disconnect.code());
        }
    }

    /// The peer has closed its side of the connection.
    fn on_peer_closed(&mut self, ctx: &mut Context<Self>) {
        self.close(DisconnectCode::Closed.code());
        self.core.outbox.abort();
        ctx.stop();
    }

    /// The connection has ended: it follows no channel any more, and the body ends a little later.
    fn close(&mut self, code: u16) {
        if self.core.ended {
            return;
        }
        self.mailbox = None;
        self.core.close(code);
    }
}

impl Handler<SessionInput> for HttpStreamActor {
    type Result = ();

    fn handle(&mut self, input: SessionInput, ctx: &mut Context<Self>) {
        match input {
            SessionInput::Frame(frame) => {
                self.core.count_received(&frame);
                self.step(ctx, |session, effects| session.on_frame(frame, now(), effects))
            }
            SessionInput::Overflow => {
                tracing::info!(connection = %self.core.session.id(), "a client sends emulation requests faster than they are handled");
                self.end_with(&DisconnectCode::TooManyRequests.into());
            }
        }
    }
}

impl Handler<ActorEvent> for HttpStreamActor {
    type Result = ();

    fn handle(&mut self, event: ActorEvent, ctx: &mut Context<Self>) {
        match event {
            ActorEvent::Lagged(channel) => self.on_lag(&channel, ctx),
            ActorEvent::Lost(channel, head) => self.on_lost(&channel, head, ctx),
            ActorEvent::OutboxEnded(why) => {
                let code = self.core.end_of(why).code();
                self.close(code);
            }
            // Only WebSocket connections use the timers of the worker.
            ActorEvent::TimerDue => {}
            ActorEvent::Disconnect(disconnect) => self.end_with(&disconnect),
            ActorEvent::ServerCommand(command) => {
                self.step(ctx, |session, effects| session.on_server_command(command, now(), effects));
            }
        }
    }
}

impl Handler<BodyDropped> for HttpStreamActor {
    type Result = ();

    fn handle(&mut self, _: BodyDropped, ctx: &mut Context<Self>) {
        self.close(DisconnectCode::Closed.code());
        ctx.stop();
    }
}
