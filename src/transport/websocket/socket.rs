//! The connection actor: carries a [`Connection`] over frames. What a client says comes in as a
//! stream; everything that goes out goes through the outbox, beside which the fan-out writes, so
//! that the order of a turn is the order on the wire. It decides nothing: it performs.

use std::collections::VecDeque;
use std::rc::Rc;

use actix::prelude::*;
use actix_web_actors::ws::CloseCode;
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::FutureExt as _;

use super::alarms::Alarm;
use super::incoming::{BadMessage, Credit, Said};
use super::{SocketClient, SocketContext, Sockets, goodbye};
use crate::connection::effect::Effect;
use crate::connection::{Connection, Manner};
use crate::hub::fanout::Framing;
use crate::hub::outbox::Outbox;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::protocol::frames::Frames;
use crate::protocol::websocket as wire;
use crate::transport::carrier::{Carried, Carrier, Note, now};
use crate::transport::emulation::new_name;

/// The connection actor.
pub(super) struct Socket {
    carried: Carried,
    /// `None` in the usual form: commands, and frames of several messages.
    form: Option<Form>,
    /// What a client that only listens has said in its request.
    connect: Option<Box<ByteString>>,
    credit: Rc<Credit>,
    /// When it hears next that time has passed, if it wants to.
    alarm: Option<Alarm>,
}

impl Actor for Socket {
    type Context = SocketContext;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.carried.outbox.kept_by(ctx.address());
        // It was let in just before, and nobody else would tell it.
        if self.carried.all.stopping.borrow().is_some() {
            ctx.notify(Note::End(DisconnectCode::Shutdown.into()));
        }
        if let Some(connect) = self.connect.take() {
            self.take(*connect, ctx);
        }
        self.arm();
    }
}

impl StreamHandler<Result<Said, BadMessage>> for Socket {
    fn handle(&mut self, said: Result<Said, BadMessage>, ctx: &mut Self::Context) {
        match said {
            Ok(Said::Text(text)) => self.take(text, ctx),
            // A refusal ends the connection by itself.
            Ok(Said::Ping(payload)) => drop(self.carried.outbox.push(wire::pong(&payload), None)),
            Ok(Said::Close) => {
                self.end_with(DisconnectCode::Closed.code(), wire::close_with(CloseCode::Normal, ""), ctx);
            }
            Err(bad) => self.refuse(bad, ctx),
        }
    }

    /// The peer is gone without a word.
    fn finished(&mut self, ctx: &mut Self::Context) {
        self.carried.outbox.close();
        self.over(DisconnectCode::Closed.code(), ctx);
    }
}

impl Carrier for Socket {
    fn carried(&mut self) -> &mut Carried {
        &mut self.carried
    }

    /// What is said in a row leaves in one piece.
    fn step(&mut self, ctx: &mut SocketContext, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        let mut said = Frames::new();
        let mut effects = VecDeque::from(self.carried.advance(act));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Say(message) if self.form.is_none() => said.add(|out| out.push_str(&message)),
                Effect::Handled(bytes) => self.credit.give(bytes),
                Effect::Join(join) if self.carried.joins_at_once(&join) => {
                    // What follows from it is done at once too.
                    let channel = join.channel.clone();
                    let joined = self.carried.join(join).now_or_never().unwrap_or((channel, None));
                    let outcome = self.carried.joined(joined);
                    let hear = |session: &mut Connection, more: &mut _| {
                        session.on_outcome(outcome, now(), more);
                    };
                    effects.extend(self.carried.advance(hear));
                }
                effect => {
                    self.say(&mut said);
                    if let Some(own) = self.perform(effect, ctx) {
                        self.utter(own, ctx);
                    }
                }
            }
        }
        self.say(&mut said);
        self.arm();
    }
}

impl Socket {
    pub(super) fn new(
        all: Rc<Sockets>,
        outbox: Rc<Outbox>,
        credit: Rc<Credit>,
        client: SocketClient,
    ) -> Self {
        let form = client.form();
        let transport = form.map_or(("websocket", Framing::WebSocket), |f| (f.name(), Framing::Form(f)));
        let (connect, manner) = match client {
            SocketClient::Listens(connect) => {
                (connect.map(Box::new), Some(Manner { uni: true, session: new_name(), node: "".into() }))
            }
            SocketClient::Speaks => (None, None),
        };
        let carried = Carried::new(all, outbox, transport, manner);
        Self { carried, form, connect, credit, alarm: None }
    }

    fn take(&mut self, text: ByteString, ctx: &mut SocketContext) {
        self.step(ctx, |session, effects| session.on_frame(text, now(), effects));
    }

    fn say(&self, said: &mut Frames) {
        for frame in said.take() {
            // A refusal ends the connection by itself.
            let _ = self.carried.outbox.push(wire::text(&frame), None);
        }
    }

    fn utter(&mut self, own: Effect, ctx: &mut SocketContext) {
        match own {
            // Each push is a frame of its own, and nothing was said before it in the usual form.
            Effect::Say(message) => drop(self.carried.outbox.push(wire::text(&message), None)),
            Effect::SayReplay(message) => {
                let _ = self.carried.outbox.push_replay(wire::text(&message));
            }
            Effect::Close(disconnect) => {
                self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
            }
            _ => {}
        }
    }

    /// Sets the alarm for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self) {
        let Some(deadline) = self.carried.session.deadline() else { return };
        if self.alarm.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        self.disarm();
        self.alarm = Some(self.carried.all.alarms.set(deadline, self.carried.outbox.clone()));
    }

    fn disarm(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            self.carried.all.alarms.cancel(alarm);
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
                self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
            }
        }
    }

    fn end_with(&mut self, code: u16, frame: Bytes, ctx: &mut SocketContext) {
        self.carried.outbox.end_with(frame);
        self.over(code, ctx);
    }

    /// The connection is over; the socket closes a little later.
    fn over(&mut self, code: u16, ctx: &mut SocketContext) {
        self.carried.over(code);
        ctx.stop();
    }
}

/// An alarm holds on to the socket.
impl Drop for Socket {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl Handler<Note> for Socket {
    type Result = ();

    fn handle(&mut self, note: Note, ctx: &mut Self::Context) {
        match note {
            Note::FellBehind(channel) => self.fell_behind(&channel, ctx),
            Note::Lost(channel, head) => self.lost(&channel, head, ctx),
            Note::Over(why) => {
                let code = self.carried.end_of(why).code();
                self.over(code, ctx);
            }
            Note::Due => {
                self.alarm = None;
                self.step(ctx, |session, effects| session.on_time(now(), effects));
            }
            Note::End(disconnect) => {
                self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
            }
            Note::Directed(directive) => {
                self.step(ctx, |session, effects| session.on_directive(directive, now(), effects));
            }
        }
    }
}
