//! The connection actor of a WebSocket: connects a [`Connection`] to frames. The messages of the client
//! arrive as a stream. Everything that is sent goes through the outbox, which the fan-out writes to as
//! well, so that the order within a turn is the order on the wire. It performs the effects of the
//! session and makes no decisions itself.

use std::collections::VecDeque;
use std::rc::Rc;

use actix::prelude::*;
use actix_web_actors::ws::CloseCode;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::FutureExt as _;

use super::incoming::{BadMessage, ClientFrame, Credit};
use super::{SocketClient, SocketContext, disconnect_message};
use crate::hub::outbox::Outbox;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::encoding::Framing;
use crate::protocol::form::Form;
use crate::protocol::frames::Frames;
use crate::protocol::websocket as wire;
use crate::session::effect::Effect;
use crate::session::{Connection, SessionMode};
use crate::transport::connection_actor::{ActorCore, ActorEvent, ConnectionActor, now};
use crate::transport::emulation::new_name;
use crate::transport::timer_queue::TimerKey;
use crate::transport::worker::WorkerContext;

pub(super) struct WebSocketActor {
    core: ActorCore,
    /// `None` in the usual form, where the client sends commands and a frame may hold several replies.
    form: Option<Form>,
    /// The connect of a unidirectional client, if its request contained it.
    connect: Option<Box<ByteString>>,
    credit: Rc<Credit>,
    /// The timer for the session's next deadline, if there is one.
    timer: Option<TimerKey>,
}

impl Actor for WebSocketActor {
    type Context = SocketContext;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.core.outbox.set_listener(ctx.address());
        // The process may have begun to stop after this connection was admitted.
        if self.core.worker.stopping.borrow().is_some() {
            ctx.notify(ActorEvent::Disconnect(DisconnectCode::Shutdown.into()));
        }
        if let Some(connect) = self.connect.take() {
            self.on_text(*connect, ctx);
        }
        self.schedule_timer();
    }
}

impl StreamHandler<Result<ClientFrame, BadMessage>> for WebSocketActor {
    fn handle(&mut self, frame: Result<ClientFrame, BadMessage>, ctx: &mut Self::Context) {
        match frame {
            Ok(ClientFrame::Text(text)) => self.on_text(text, ctx),
            // If the outbox refuses, it also ends the connection.
            Ok(ClientFrame::Ping(payload)) => drop(self.core.outbox.push(wire::pong(&payload), None)),
            Ok(ClientFrame::Close) => {
                self.end_with(DisconnectCode::Closed.code(), wire::close_with(CloseCode::Normal, ""), ctx);
            }
            Err(bad) => self.refuse(bad, ctx),
        }
    }

    /// The peer has gone without a close frame.
    fn finished(&mut self, ctx: &mut Self::Context) {
        self.core.outbox.close();
        self.close(DisconnectCode::Closed.code(), ctx);
    }
}

impl ConnectionActor for WebSocketActor {
    fn core(&mut self) -> &mut ActorCore {
        &mut self.core
    }

    /// Consecutive messages are sent together in as few frames as possible.
    fn step(&mut self, ctx: &mut SocketContext, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        let mut frames = Frames::new();
        let mut effects = VecDeque::from(self.core.advance(act));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Send(message) if self.form.is_none() => {
                    frames.add(|out| out.push_str(&message));
                    self.core.give_back_room();
                }
                Effect::Handled(bytes) => self.credit.give(bytes),
                Effect::Join(join) if self.core.joins_at_once(&join) => {
                    // The effects that follow from it are performed in the same turn.
                    let channel = join.channel.clone();
                    let joined = self.core.join(join).now_or_never().unwrap_or((channel, None));
                    let outcome = self.core.joined(joined);
                    let resume = |session: &mut Connection, more: &mut _| {
                        session.on_outcome(outcome, now(), more);
                    };
                    effects.extend(self.core.advance(resume));
                }
                effect => {
                    self.flush(&mut frames);
                    if let Some(own) = self.perform(effect, ctx) {
                        self.send_own(own, ctx);
                    }
                }
            }
        }
        self.flush(&mut frames);
        self.schedule_timer();
    }
}

impl WebSocketActor {
    pub(super) fn new(
        worker: Rc<WorkerContext>,
        outbox: Rc<Outbox>,
        credit: Rc<Credit>,
        client: SocketClient,
    ) -> Self {
        let form = client.form();
        let transport = form.map_or(("websocket", Framing::WebSocket), |f| (f.name(), Framing::Form(f)));
        let (connect, mode) = match client {
            SocketClient::Unidirectional(connect) => {
                (connect.map(Box::new), Some(SessionMode { uni: true, session: new_name(), node: "".into() }))
            }
            SocketClient::Bidirectional => (None, None),
        };
        let core = ActorCore::new(worker, outbox, transport, mode);
        Self { core, form, connect, credit, timer: None }
    }

    fn on_text(&mut self, text: ByteString, ctx: &mut SocketContext) {
        self.core.count_received(&text);
        self.step(ctx, |session, effects| session.on_frame(text, now(), effects));
    }

    fn flush(&self, frames: &mut Frames) {
        for frame in frames.take() {
            // If the outbox refuses, it also ends the connection.
            let _ = self.core.outbox.push(wire::text(&frame), None);
        }
    }

    fn send_own(&mut self, own: Effect, ctx: &mut SocketContext) {
        match own {
            // Each push is a frame of its own; the usual form sends its messages in `step`.
            Effect::Send(message) => drop(self.core.outbox.push(wire::text(&message), None)),
            Effect::SendReplay(message) => {
                let _ = self.core.outbox.push_replay(wire::text(&message));
            }
            Effect::Close(disconnect) => {
                self.end_with(disconnect.code(), disconnect_message(self.form, &disconnect), ctx);
            }
            _ => {}
        }
    }

    /// Sets the timer for the session's next deadline. A timer that fires early is set again.
    fn schedule_timer(&mut self) {
        let Some(deadline) = self.core.session.deadline(now()) else { return };
        if self.timer.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        self.cancel_timer();
        self.timer = Some(self.core.worker.timers.schedule(deadline, self.core.outbox.clone()));
    }

    fn cancel_timer(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.core.worker.timers.cancel(timer);
        }
    }

    fn refuse(&mut self, bad: BadMessage, ctx: &mut SocketContext) {
        match bad {
            BadMessage::TooLong => {
                let frame = wire::close_with(CloseCode::Size, "the message is too long");
                self.end_with(CloseCode::Size.into(), frame, ctx);
            }
            BadMessage::NotText => {
                let frame = wire::close_with(CloseCode::Invalid, "the text is not UTF-8");
                self.end_with(CloseCode::Invalid.into(), frame, ctx);
            }
            BadMessage::Malformed => {
                let frame = wire::close_with(CloseCode::Protocol, "not a frame of WebSocket");
                self.end_with(CloseCode::Protocol.into(), frame, ctx);
            }
            BadMessage::Binary => {
                let disconnect = Disconnect::from(DisconnectCode::InappropriateProtocol);
                self.end_with(disconnect.code(), disconnect_message(self.form, &disconnect), ctx);
            }
        }
    }

    fn end_with(&mut self, code: u16, frame: Bytes, ctx: &mut SocketContext) {
        self.core.outbox.end_with(frame);
        self.close(code, ctx);
    }

    /// The connection has ended; the socket is closed a little later.
    fn close(&mut self, code: u16, ctx: &mut SocketContext) {
        self.core.close(code);
        ctx.stop();
    }
}

/// A timer keeps the outbox, and so the socket, alive.
impl Drop for WebSocketActor {
    fn drop(&mut self) {
        self.cancel_timer();
    }
}

impl Handler<ActorEvent> for WebSocketActor {
    type Result = ();

    fn handle(&mut self, event: ActorEvent, ctx: &mut Self::Context) {
        match event {
            ActorEvent::Lagged(channel) => self.on_lag(&channel, ctx),
            ActorEvent::Lost(channel, head) => self.on_lost(&channel, head, ctx),
            ActorEvent::OutboxEnded(why) => {
                let code = self.core.end_of(why).code();
                self.close(code, ctx);
            }
            ActorEvent::TimerDue => {
                self.timer = None;
                self.step(ctx, |session, effects| session.on_time(now(), effects));
            }
            ActorEvent::Disconnect(disconnect) => {
                self.end_with(disconnect.code(), disconnect_message(self.form, &disconnect), ctx);
            }
            ActorEvent::ServerCommand(command) => {
                self.step(ctx, |session, effects| session.on_server_command(command, now(), effects));
            }
        }
    }
}
