//! The connection actor: carries a [`Connection`] over frames. Frames come in through the library's
//! context; everything that goes out goes through the outbox, beside which the fan-out writes, so
//! that the order of a turn is the order on the wire. It decides nothing: it performs.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use actix_http::ws::{CloseCode, Message, ProtocolError};
use bytes::Bytes;
use bytestring::ByteString;
use futures_util::FutureExt as _;

use super::alarms::Alarm;
use super::incoming::{BadMessage, Credit, Fragments};
use super::work::{self, Follow};
use super::{SocketClient, SocketContext, Sockets, goodbye};
use crate::connection::clients::Listed;
use crate::connection::effect::{Effect, Join, Joined, Outcome};
use crate::connection::{Connection, Manner, Moment, replay};
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::hub::fanout::{Framing, Release};
use crate::hub::outbox::{Ended, Keeper, Outbox};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::form::Form;
use crate::protocol::frames::Frames;
use crate::protocol::websocket as wire;
use crate::telemetry::{Code, count};
use crate::transport::emulation::new_name;

/// What ends a connection that never came to be, and is not the client's fault.
pub(in crate::transport) const FAILURES: [u16; 4] = [
    DisconnectCode::Internal.code(),
    DisconnectCode::Slow.code(),
    DisconnectCode::WriteError.code(),
    DisconnectCode::TooManyRequests.code(),
];

/// The connection actor.
pub(super) struct Socket {
    all: Rc<Sockets>,
    /// `None` in the usual form: commands, and frames of several messages.
    form: Option<Form>,
    /// What a client that only listens has said in its request.
    connect: Option<ByteString>,
    session: Connection,
    /// Whether the session is, or was, open; then it counts as a connection that succeeded.
    opened: bool,
    listed: Listed,
    /// Whom the list takes it for.
    principal: Rc<Principal>,
    outbox: Rc<Outbox>,
    credit: Rc<Credit>,
    /// By channel, in order.
    follows: Vec<Follow>,
    fragments: Fragments,
    /// When it hears next that time has passed, if it wants to.
    alarm: Option<Alarm>,
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
struct Due;

#[derive(Message)]
#[rtype(result = "()")]
struct Directed(Arc<Directive>);

impl Keeper for Addr<Socket> {
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

    fn due(&self) {
        self.do_send(Due);
    }

    fn directed(&self, directive: &Arc<Directive>) {
        self.do_send(Directed(directive.clone()));
    }
}

impl Actor for Socket {
    type Context = SocketContext;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.outbox.kept_by(ctx.address());
        // It was let in just before, and nobody else would tell it.
        if self.all.stopping.borrow().is_some() {
            ctx.notify(End(DisconnectCode::Shutdown.into()));
        }
        if let Some(connect) = self.connect.take() {
            self.take(connect, ctx);
        }
        self.arm();
    }
}

impl StreamHandler<Result<Message, ProtocolError>> for Socket {
    fn handle(&mut self, message: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        match message {
            Ok(Message::Text(text)) => {
                self.credit.give_header(text.len());
                self.take(text, ctx);
            }
            Ok(Message::Continuation(item)) => {
                use actix_http::ws::Item::{Continue, FirstBinary, FirstText, Last};
                let (FirstText(bytes) | FirstBinary(bytes) | Continue(bytes) | Last(bytes)) = &item;
                self.credit.give_header(bytes.len());
                match self.fragments.add(item, self.all.options.message_size) {
                    Ok(Some(text)) => self.take(text, ctx),
                    Ok(None) => {}
                    Err(bad) => self.refuse(bad, ctx),
                }
            }
            Ok(Message::Binary(_)) => self.refuse(BadMessage::Binary, ctx),
            Ok(Message::Ping(payload)) => {
                self.credit.give_header(payload.len());
                self.credit.give(payload.len());
                // A refusal ends the connection by itself.
                let _ = self.outbox.push(wire::pong(&payload), None);
            }
            Ok(Message::Pong(payload)) => {
                self.credit.give_header(payload.len());
                self.credit.give(payload.len());
            }
            Ok(Message::Close(_)) => {
                self.end_with(DisconnectCode::Closed.code(), wire::close_with(CloseCode::Normal, ""), ctx);
            }
            Ok(Message::Nop) => {}
            Err(ProtocolError::Overflow) => self.refuse(BadMessage::TooLong, ctx),
            // The stream of bytes never fails, so this is text that is none; or reserved bits.
            Err(ProtocolError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
                self.refuse(BadMessage::NotText, ctx);
            }
            Err(_) => {
                let frame = wire::close_with(CloseCode::Protocol, "not a frame of WebSocket");
                self.end_with(CloseCode::Protocol.into(), frame, ctx);
            }
        }
    }

    /// The peer is gone without a word.
    fn finished(&mut self, ctx: &mut Self::Context) {
        self.outbox.close();
        self.over(DisconnectCode::Closed.code(), ctx);
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
        let principal = Rc::new(Principal::default());
        let kind = form.map_or("websocket", Form::name);
        let listed = all.clients.add(outbox.clone(), principal.clone(), kind);
        let mut session = Connection::new(all.rules.clone(), listed.id(), now(), rand::random());
        let connect = if let SocketClient::Listens(connect) = client {
            session = session.speaking(Manner { uni: true, session: new_name(), node: "".into() });
            connect
        } else {
            None
        };
        let (follows, fragments) = (Vec::new(), Fragments::default());
        Self {
            all,
            form,
            connect,
            session,
            opened: false,
            listed,
            principal,
            outbox,
            credit,
            follows,
            fragments,
            alarm: None,
        }
    }

    fn take(&mut self, text: ByteString, ctx: &mut SocketContext) {
        self.step(ctx, |session, effects| session.on_frame(text, now(), effects));
    }

    /// Lets the session do something, and does what it asks for. What is said in a row leaves in
    /// one piece.
    fn step(&mut self, ctx: &mut SocketContext, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
        let mut said = Frames::new();
        let mut effects = VecDeque::from(self.advance(act));
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Say(message) if self.form.is_none() => said.add(|out| out.push_str(&message)),
                Effect::Handled(bytes) => self.credit.give(bytes),
                Effect::Join(join) if join.recover.is_none() && self.all.fanout.follows(&join.channel) => {
                    // It is done at once, and so is what follows from it.
                    if let Some(joined) = self.join(join).now_or_never() {
                        let outcome = self.joined(joined);
                        effects
                            .extend(self.advance(|session, more| session.on_outcome(outcome, now(), more)));
                    }
                }
                effect => {
                    self.say(&mut said);
                    self.perform(effect, ctx);
                }
            }
        }
        self.say(&mut said);
        self.arm();
    }

    /// Lets the session do something; answers what it asks for.
    fn advance(&mut self, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut effects = Vec::new();
        act(&mut self.session, &mut effects);
        if !self.opened && self.session.is_open() {
            self.opened = true;
            count(&self.all.metrics.connects, "open");
        }
        if !Rc::ptr_eq(&self.principal, self.session.principal()) {
            self.principal = self.session.principal().clone();
            self.listed.identify(self.principal.clone());
        }
        effects
    }

    fn join(&self, join: Join) -> impl Future<Output = (ChannelName, Option<(Follow, Joined)>)> + use<> {
        let (client, user) = (self.session.id(), self.session.user().into());
        let framing = self.form.map_or(Framing::WebSocket, Framing::Form);
        work::join_channel(self.all.clone(), (self.outbox.clone(), framing), (client, user), join)
    }

    fn joined(&mut self, (channel, found): (ChannelName, Option<(Follow, Joined)>)) -> Outcome {
        let joined = found.map(|(follow, joined)| {
            self.keep(follow);
            joined
        });
        Outcome::Joined(channel, joined)
    }

    fn say(&self, said: &mut Frames) {
        for frame in said.take() {
            // A refusal ends the connection by itself.
            let _ = self.outbox.push(wire::text(&frame), None);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut SocketContext) {
        match effect {
            // Each push is a frame of its own, and nothing was said before it in the usual form.
            Effect::Say(message) => drop(self.outbox.push(wire::text(&message), None)),
            Effect::Handled(_) => {}
            Effect::SayReplay(message) => {
                let _ = self.outbox.push_replay(wire::text(&message));
            }
            Effect::LookUp(channel) => {
                let looked_up = work::look_up(self.all.store.clone(), channel);
                ctx.spawn(looked_up.into_actor(self).map(|(channel, found), actor, ctx| {
                    actor.hear(Outcome::LookedUp(channel, found), ctx);
                }));
            }
            Effect::Join(join) => {
                ctx.spawn(self.join(join).into_actor(self).map(|joined, actor, ctx| {
                    let outcome = actor.joined(joined);
                    actor.hear(outcome, ctx);
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
                let published = work::publish(self.all.publisher.clone(), event);
                ctx.spawn(published.into_actor(self).map(|published, actor, ctx| {
                    actor.hear(Outcome::Published(published), ctx);
                }));
            }
            Effect::ReadHistory(wish) => {
                let read = work::read_history(self.all.clone(), wish);
                ctx.spawn(read.into_actor(self).map(|stored, actor, ctx| {
                    actor.hear(Outcome::History(stored), ctx);
                }));
            }
            Effect::ReadPresence(channel) => {
                let hub = self.all.hub.clone();
                let members = async move { hub.members(&channel).await };
                ctx.spawn(members.into_actor(self).map(|members, actor, ctx| {
                    actor.hear(Outcome::Presence(members), ctx);
                }));
            }
            Effect::EndOlder => work::end_older(&self.all, &self.session),
            Effect::Close(disconnect) => {
                self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
            }
        }
    }

    fn hear(&mut self, outcome: Outcome, ctx: &mut SocketContext) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
    }

    fn keep(&mut self, follow: Follow) {
        // A list that grows by itself begins with room for four.
        if self.follows.is_empty() {
            self.follows.reserve_exact(1);
        }
        let place = self.follows.partition_point(|other| other.channel() < follow.channel());
        self.follows.insert(place, follow);
    }

    fn follow(&self, channel: &ChannelName) -> Option<&Follow> {
        let place = self.follows.binary_search_by(|follow| follow.channel().cmp(channel)).ok()?;
        self.follows.get(place)
    }

    /// Brings an entry that is on hold back to the head.
    fn catch_up(&self, channel: &ChannelName, from: Option<Position>, ctx: &mut SocketContext) {
        let (Some(follow), Some(from)) = (self.follow(channel), from) else { return };
        let Some(retention) = self.all.rules.namespaces.load().retention_of(channel) else {
            // A reload has turned the history off: there is nothing to catch up from.
            if follow.positioned {
                ctx.address().do_send(Lost(channel.clone(), from));
            } else {
                let _ = follow.subscription.entry().release(None);
            }
            return;
        };
        let (store, entry) = (self.all.store.clone(), follow.subscription.entry().clone());
        let fed = async move {
            // Refused means that the connection is over, which is noticed elsewhere.
            let _ = replay::catch_up(&store, &entry, retention, from).await;
        };
        ctx.spawn(fed.into_actor(self));
    }

    /// Sets the alarm for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self) {
        let Some(deadline) = self.session.deadline() else { return };
        if self.alarm.is_some_and(|(set, _)| set <= deadline) {
            return;
        }
        self.disarm();
        self.alarm = Some(self.all.alarms.set(deadline, self.outbox.clone()));
    }

    fn disarm(&mut self) {
        if let Some(alarm) = self.alarm.take() {
            self.all.alarms.cancel(alarm);
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
            BadMessage::Binary => {
                let disconnect = Disconnect::from(DisconnectCode::InappropriateProtocol);
                self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
            }
        }
    }

    fn end_with(&mut self, code: u16, frame: Bytes, ctx: &mut SocketContext) {
        self.outbox.end_with(frame);
        self.over(code, ctx);
    }

    /// The connection is over: whatever it follows ends now, the socket a little later.
    fn over(&mut self, code: u16, ctx: &mut SocketContext) {
        self.follows.clear();
        if !std::mem::replace(&mut self.opened, true) {
            let outcome = if FAILURES.contains(&code) { "failed" } else { "refused" };
            count(&self.all.metrics.connects, outcome);
        }
        self.all.metrics.disconnects.get_or_create(&Code { code: code.into() }).inc();
        tracing::debug!(connection = %self.session.id(), code, "a connection is over");
        ctx.stop();
    }
}

/// An alarm holds on to the socket.
impl Drop for Socket {
    fn drop(&mut self) {
        self.disarm();
    }
}

impl Handler<FellBehind> for Socket {
    type Result = ();

    fn handle(&mut self, FellBehind(channel): FellBehind, ctx: &mut Self::Context) {
        let from =
            self.follow(&channel).and_then(|follow| follow.subscription.entry().take_resume_position());
        self.catch_up(&channel, from, ctx);
    }
}

impl Handler<Lost> for Socket {
    type Result = ();

    fn handle(&mut self, Lost(channel, head): Lost, ctx: &mut Self::Context) {
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

impl Handler<Over> for Socket {
    type Result = ();

    fn handle(&mut self, Over(why): Over, ctx: &mut Self::Context) {
        let code = match why {
            Ended::Slow => {
                tracing::info!(connection = %self.session.id(), "a reader is too slow and was disconnected");
                count(&self.all.metrics.slow_disconnects, "queue");
                DisconnectCode::Slow
            }
            Ended::Stalled => {
                count(&self.all.metrics.slow_disconnects, "write_timeout");
                DisconnectCode::WriteError
            }
            Ended::Broken => DisconnectCode::Closed,
        };
        self.over(code.code(), ctx);
    }
}

impl Handler<Due> for Socket {
    type Result = ();

    fn handle(&mut self, _: Due, ctx: &mut Self::Context) {
        self.alarm = None;
        self.step(ctx, |session, effects| session.on_time(now(), effects));
    }
}

impl Handler<End> for Socket {
    type Result = ();

    fn handle(&mut self, End(disconnect): End, ctx: &mut Self::Context) {
        self.end_with(disconnect.code(), goodbye(self.form, &disconnect), ctx);
    }
}

impl Handler<Directed> for Socket {
    type Result = ();

    fn handle(&mut self, Directed(directive): Directed, ctx: &mut Self::Context) {
        self.step(ctx, |session, effects| session.on_directive(directive, now(), effects));
    }
}

/// This moment.
pub(in crate::transport) fn now() -> Moment {
    Moment { wall: chrono::Utc::now(), mono: Instant::now() }
}
