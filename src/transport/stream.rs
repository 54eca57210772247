//! The client protocol on a response body inside the HTTP dispatcher: `http_stream`, `sse`, and
//! their sisters that only listen. What a client says comes with the request that opens the stream,
//! and by posts of its own after that (`emulation`). The dispatcher stops polling a body while the
//! peer does not read, so pings, deadlines and the end of a reader that is too slow hang on an
//! actor's timers. It decides nothing: it performs what the session asks for.

use std::any::Any;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::future::LocalBoxFuture;
use tokio::sync::watch;

use super::body::{Gone, StreamBody};
use super::carrier::{Carried, Carrier, Note, now};
use super::emulation::{Posted, Session, Sessions};
use super::websocket::Sockets;
use crate::connection::effect::Effect;
use crate::connection::{Connection, Manner};
use crate::hub::fanout::Framing;
use crate::hub::outbox::Outbox;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::telemetry::{count, level};

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
            let (node, uni) = (streams.sessions.node(), form.is_uni());
            let manner = Manner {
                uni,
                session: session.name().clone(),
                node: if uni { "".into() } else { node.clone() },
            };
            let transport = (form.name(), Framing::Form(form));
            Stream {
                form,
                carried: Carried::new(streams.all.clone(), bytes, transport, Some(manner)),
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
    carried: Carried,
    mailbox: Option<Session>,
    first: Option<ByteString>,
    left: Option<LocalBoxFuture<'static, ()>>,
    /// When the timer goes off, if one is set.
    timer: Option<(Instant, SpawnHandle)>,
    _held: Box<dyn Any>,
}

impl Actor for Stream {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.carried.outbox.kept_by(ctx.address());
        if let Some(left) = self.left.take() {
            ctx.spawn(left.into_actor(self).map(|(), actor, ctx| actor.leave(ctx)));
        }
        let write_timeout = self.streams.all.options.write_timeout;
        ctx.run_interval(write_timeout / 4, move |actor, _| {
            if actor.carried.outbox.stalled_for().is_some_and(|stalled| stalled > write_timeout) {
                count(&actor.streams.all.metrics.slow_disconnects, "write_timeout");
                actor.over(DisconnectCode::WriteError.code());
                actor.carried.outbox.abort();
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
        if !self.carried.outbox.is_over() {
            self.carried.outbox.abort();
        }
    }
}

impl Carrier for Stream {
    fn carried(&mut self) -> &mut Carried {
        &mut self.carried
    }

    fn step(&mut self, ctx: &mut Context<Self>, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        if self.carried.ended {
            return;
        }
        for effect in self.carried.advance(act) {
            if let Some(own) = self.perform(effect, ctx) {
                self.utter(own);
            }
        }
        self.arm(ctx);
    }
}

impl Stream {
    fn utter(&mut self, own: Effect) {
        let outbox = &self.carried.outbox;
        match own {
            // What leaves together is merged by the outbox. A refusal ends the connection by itself.
            Effect::Say(message) => drop(outbox.push(self.form.message(&message), None)),
            Effect::SayReplay(message) => drop(outbox.push_replay(self.form.message(&message))),
            Effect::Handled(bytes) => {
                self.mailbox.as_ref().inspect(|mailbox| mailbox.handled(bytes));
            }
            Effect::Close(disconnect) => self.end_with(&disconnect),
            _ => {}
        }
    }

    /// Sets the timer for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self, ctx: &mut Context<Self>) {
        let Some(deadline) = self.carried.session.deadline() else { return };
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
        if !self.carried.ended {
            self.carried.outbox.end_with(self.form.goodbye(disconnect));
            self.over(disconnect.code());
        }
    }

    /// The peer has gone: so has whatever it was.
    fn leave(&mut self, ctx: &mut Context<Self>) {
        self.over(DisconnectCode::Closed.code());
        self.carried.outbox.abort();
        ctx.stop();
    }

    /// The connection is over: whatever it follows ends now, the body a little later.
    fn over(&mut self, code: u16) {
        if self.carried.ended {
            return;
        }
        self.mailbox = None;
        self.carried.over(code);
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
                tracing::info!(connection = %self.carried.session.id(), "a client posts faster than it is served");
                self.end_with(&DisconnectCode::TooManyRequests.into());
            }
        }
    }
}

impl Handler<Note> for Stream {
    type Result = ();

    fn handle(&mut self, note: Note, ctx: &mut Context<Self>) {
        match note {
            Note::FellBehind(channel) => self.fell_behind(&channel, ctx),
            Note::Lost(channel, head) => self.lost(&channel, head, ctx),
            Note::Over(why) => {
                let code = self.carried.end_of(why).code();
                self.over(code);
            }
            // Its timer is its own.
            Note::Due => {}
            Note::End(disconnect) => self.end_with(&disconnect),
            Note::Directed(directive) => {
                self.step(ctx, |session, effects| session.on_directive(directive, now(), effects));
            }
        }
    }
}

impl Handler<Gone> for Stream {
    type Result = ();

    fn handle(&mut self, _: Gone, ctx: &mut Context<Self>) {
        self.over(DisconnectCode::Closed.code());
        ctx.stop();
    }
}
