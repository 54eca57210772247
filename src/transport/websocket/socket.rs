//! The connection actor: carries a [`Connection`] over frames. Frames come in through the library's
//! context; everything that goes out goes through the outbox, beside which the fan-out writes, so
//! that the order of a turn is the order on the wire. It decides nothing: it performs.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use actix_http::ws::{CloseCode, Message, ProtocolError};
use bytes::Bytes;
use bytestring::ByteString;

use super::incoming::{BadMessage, Credit, Fragments};
use super::work::{self, Follow};
use super::{SocketContext, Sockets};
use crate::connection::clients::{Listed, Target};
use crate::connection::effect::{Effect, Outcome};
use crate::connection::{Connection, Moment, replay};
use crate::domain::channel::ChannelName;
use crate::domain::directive::Directive;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::hub::fanout::Release;
use crate::hub::outbox::{Ended, Keeper, Outbox};
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::frames::Frames;
use crate::protocol::websocket as wire;
use crate::telemetry::{Code, count};

/// What ends a connection that never came to be, and is not the client's fault.
const FAILURES: [u16; 4] = [
    DisconnectCode::Internal.code(),
    DisconnectCode::Slow.code(),
    DisconnectCode::WriteError.code(),
    DisconnectCode::TooManyRequests.code(),
];

/// The connection actor.
pub(super) struct Socket {
    all: Rc<Sockets>,
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
    /// When the timer goes off, if one is set.
    timer: Option<(Instant, SpawnHandle)>,
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
        self.arm(ctx);
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
    pub(super) fn new(all: Rc<Sockets>, outbox: Rc<Outbox>, credit: Rc<Credit>) -> Self {
        let principal = Rc::new(Principal::default());
        let listed = all.clients.add(outbox.clone(), principal.clone());
        let session = Connection::new(all.rules.clone(), listed.id(), now(), rand::random());
        let (follows, fragments) = (Vec::new(), Fragments::default());
        Self {
            all,
            session,
            opened: false,
            listed,
            principal,
            outbox,
            credit,
            follows,
            fragments,
            timer: None,
        }
    }

    fn take(&mut self, text: ByteString, ctx: &mut SocketContext) {
        self.step(ctx, |session, effects| session.on_frame(text, now(), effects));
    }

    /// Lets the session do something, and does what it asks for.
    fn step(&mut self, ctx: &mut SocketContext, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) {
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
        let mut said = Frames::new();
        for effect in effects {
            match effect {
                Effect::Say(message) => {
                    said.add(|out| out.push_str(&message));
                    continue;
                }
                Effect::Handled(bytes) => {
                    self.credit.give(bytes);
                    continue;
                }
                _ => self.say(&mut said),
            }
            self.perform(effect, ctx);
        }
        self.say(&mut said);
        self.arm(ctx);
    }

    fn say(&self, said: &mut Frames) {
        for frame in said.take() {
            // A refusal ends the connection by itself.
            let _ = self.outbox.push(wire::text(&frame), None);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut SocketContext) {
        match effect {
            Effect::Say(_) | Effect::Handled(_) => {}
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
                let (client, user) = (self.session.id(), self.session.user().into());
                let joining = work::join_channel(self.all.clone(), self.outbox.clone(), (client, user), join);
                ctx.spawn(joining.into_actor(self).map(|(channel, found), actor, ctx| {
                    let joined = found.map(|(follow, joined)| {
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
            Effect::EndOlder => {
                let (control, than) = (self.all.rules.control.clone(), self.session.id());
                let older = Target::Older { user: self.session.user().to_owned(), than };
                // It goes on even if this one is gone by then.
                actix_rt::spawn(async move {
                    control.dismiss(older, &DisconnectCode::ConnectionLimit.into()).await;
                });
            }
            Effect::Close(disconnect) => {
                self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
            }
        }
    }

    fn hear(&mut self, outcome: Outcome, ctx: &mut SocketContext) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
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

    /// Sets the timer for the session's next moment. One that goes off too early sets it again.
    fn arm(&mut self, ctx: &mut SocketContext) {
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
                self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
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

impl Handler<End> for Socket {
    type Result = ();

    fn handle(&mut self, End(disconnect): End, ctx: &mut Self::Context) {
        self.end_with(disconnect.code(), wire::close(&disconnect), ctx);
    }
}

impl Handler<Directed> for Socket {
    type Result = ();

    fn handle(&mut self, Directed(directive): Directed, ctx: &mut Self::Context) {
        self.step(ctx, |session, effects| session.on_directive(directive, now(), effects));
    }
}

fn now() -> Moment {
    Moment { wall: chrono::Utc::now(), mono: Instant::now() }
}
