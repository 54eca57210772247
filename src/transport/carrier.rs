//! What is the same for every connection actor, whatever carries its bytes: a session, the channels
//! that it follows, and how the effects that it asks for are performed. A carrier adds how words
//! become bytes, how time is told and how the connection ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::dev::ToEnvelope;
use actix::prelude::*;

use super::websocket::Sockets;
use super::work::{self, Follow};
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
use crate::telemetry::{Code, count};

/// What ends a connection that never came to be, and is not the client's fault.
const FAILURES: [u16; 4] = [
    DisconnectCode::Internal.code(),
    DisconnectCode::Slow.code(),
    DisconnectCode::WriteError.code(),
    DisconnectCode::TooManyRequests.code(),
];

/// What a connection actor hears from its outbox and its entries.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum Note {
    FellBehind(ChannelName),
    Lost(ChannelName, Position),
    Over(Ended),
    End(Disconnect),
    Due,
    Directed(Arc<Directive>),
}

impl<A> Keeper for Addr<A>
where
    A: Actor<Context: ToEnvelope<A, Note>> + Handler<Note>,
{
    fn fell_behind(&self, channel: &ChannelName) {
        self.do_send(Note::FellBehind(channel.clone()));
    }

    fn lost(&self, channel: &ChannelName, head: &Position) {
        self.do_send(Note::Lost(channel.clone(), head.clone()));
    }

    fn ended(&self, why: Ended) {
        self.do_send(Note::Over(why));
    }

    fn dismissed(&self, disconnect: &Disconnect) {
        self.do_send(Note::End(disconnect.clone()));
    }

    fn due(&self) {
        self.do_send(Note::Due);
    }

    fn directed(&self, directive: &Arc<Directive>) {
        self.do_send(Note::Directed(directive.clone()));
    }
}

/// A session and what it has.
pub(super) struct Carried {
    pub(super) all: Rc<Sockets>,
    pub(super) session: Connection,
    pub(super) outbox: Rc<Outbox>,
    framing: Framing,
    /// Whether the session is, or was, open; then it counts as a connection that succeeded.
    opened: bool,
    listed: Listed,
    /// Whom the list takes it for.
    principal: Rc<Principal>,
    /// By channel, in order.
    follows: Vec<Follow>,
    /// It is over: the end is said, or needs no saying, and nothing is followed any more.
    pub(super) ended: bool,
}

impl Carried {
    /// Somebody who just came, over a transport of this name. `manner` where it is not the usual one.
    pub(super) fn new(
        all: Rc<Sockets>,
        outbox: Rc<Outbox>,
        (transport, framing): (&'static str, Framing),
        manner: Option<Manner>,
    ) -> Self {
        let principal = Rc::new(Principal::default());
        let name = manner.as_ref().map(|manner| manner.session.clone());
        let listed = all.clients.add(outbox.clone(), principal.clone(), transport, name);
        let session = Connection::new(all.rules.clone(), listed.id(), now(), rand::random());
        let session = match manner {
            Some(manner) => session.speaking(manner),
            None => session,
        };
        Self {
            all,
            session,
            outbox,
            framing,
            opened: false,
            listed,
            principal,
            follows: Vec::new(),
            ended: false,
        }
    }

    /// Lets the session do something; answers what it asks for.
    pub(super) fn advance(&mut self, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) -> Vec<Effect> {
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

    /// Whether a join needs no waiting.
    pub(super) fn joins_at_once(&self, join: &Join) -> bool {
        join.recover.is_none() && self.all.fanout.follows(&join.channel)
    }

    pub(super) fn join(
        &self,
        join: Join,
    ) -> impl Future<Output = (ChannelName, Option<(Follow, Joined)>)> + use<> {
        work::join_channel(self.all.clone(), (self.outbox.clone(), self.framing.clone()), join)
    }

    pub(super) fn joined(&mut self, (channel, found): (ChannelName, Option<(Follow, Joined)>)) -> Outcome {
        let joined = found.filter(|_| !self.ended).map(|(follow, joined)| {
            self.keep(follow);
            joined
        });
        Outcome::Joined(channel, joined)
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

    /// The connection is over: whatever it follows ends now.
    pub(super) fn over(&mut self, code: u16) {
        self.ended = true;
        self.follows.clear();
        let metrics = &self.all.metrics;
        if !std::mem::replace(&mut self.opened, true) {
            count(&metrics.connects, if FAILURES.contains(&code) { "failed" } else { "refused" });
        }
        metrics.disconnects.get_or_create(&Code { code: code.into() }).inc();
        tracing::debug!(connection = %self.session.id(), code, "a connection is over");
    }

    /// Why the outbox ended, as the connection's own end.
    pub(super) fn end_of(&self, why: Ended) -> DisconnectCode {
        let slow = &self.all.metrics.slow_disconnects;
        match why {
            Ended::Slow => {
                tracing::info!(connection = %self.session.id(), "a reader is too slow and was disconnected");
                count(slow, "queue");
                DisconnectCode::Slow
            }
            Ended::Stalled => {
                count(slow, "write_timeout");
                DisconnectCode::WriteError
            }
            Ended::Broken => DisconnectCode::Closed,
        }
    }
}

/// A connection actor.
pub(super) trait Carrier: Actor<Context: AsyncContext<Self>> + Handler<Note> {
    /// What it carries.
    fn carried(&mut self) -> &mut Carried;

    /// Lets the session do something, and does what it asks for.
    fn step(&mut self, ctx: &mut Self::Context, act: impl FnOnce(&mut Connection, &mut Vec<Effect>));

    fn hear(&mut self, outcome: Outcome, ctx: &mut Self::Context) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
    }

    /// Performs what is the same for all. The words, and what else is the carrier's own, come back.
    fn perform(&mut self, effect: Effect, ctx: &mut Self::Context) -> Option<Effect> {
        let carried = self.carried();
        let all = &carried.all;
        match effect {
            Effect::LookUp(channel) => {
                let looked_up = work::look_up(all.store.clone(), channel);
                ctx.spawn(looked_up.into_actor(self).map(|(channel, found), actor, ctx| {
                    actor.hear(Outcome::LookedUp(channel, found), ctx);
                }));
            }
            Effect::Join(join) => {
                let joining = carried.join(join);
                ctx.spawn(joining.into_actor(self).map(|joined, actor, ctx| {
                    let outcome = actor.carried().joined(joined);
                    actor.hear(outcome, ctx);
                }));
            }
            Effect::Live(channel, position) => {
                let follow = carried.follow(&channel)?;
                let entry = follow.subscription.entry();
                if entry.release(position.clone()) == Release::Missed {
                    let from = entry.take_resume_position().or(position);
                    self.catch_up(&channel, from, ctx);
                }
            }
            Effect::Leave(channel) => carried.follows.retain(|follow| *follow.channel() != channel),
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
                let cluster = all.cluster.clone();
                let members = async move { cluster.members(&channel).await };
                ctx.spawn(members.into_actor(self).map(|members, actor, ctx| {
                    actor.hear(Outcome::Presence(members), ctx);
                }));
            }
            Effect::Claim(claim) => {
                let users = all.rules.users.clone();
                let settled = async move { users.settle(claim).await };
                ctx.spawn(settled.into_actor(self).map(|room, actor, ctx| {
                    actor.hear(Outcome::Claimed(room), ctx);
                }));
            }
            Effect::EndOlder => work::end_older(all, &carried.session),
            own @ (Effect::Say(_) | Effect::SayReplay(_) | Effect::Handled(_) | Effect::Close(_)) => {
                return Some(own);
            }
        }
        None
    }

    /// Brings an entry that is on hold back to the head.
    fn catch_up(&mut self, channel: &ChannelName, from: Option<Position>, ctx: &mut Self::Context) {
        let carried = self.carried();
        let (Some(follow), Some(from)) = (carried.follow(channel), from) else { return };
        let Some(retention) = carried.all.rules.namespaces.load().retention_of(channel) else {
            // A reload has turned the history off: there is nothing to catch up from.
            if follow.positioned {
                ctx.notify(Note::Lost(channel.clone(), from));
            } else {
                let _ = follow.subscription.entry().release(None);
            }
            return;
        };
        let (store, entry) = (carried.all.store.clone(), follow.subscription.entry().clone());
        let fed = async move {
            // Refused means that the connection is over, which is noticed elsewhere.
            let _ = replay::catch_up(&store, &entry, retention, from).await;
        };
        ctx.spawn(fed.into_actor(self));
    }

    fn fell_behind(&mut self, channel: &ChannelName, ctx: &mut Self::Context) {
        let follow = self.carried().follow(channel);
        let from = follow.and_then(|follow| follow.subscription.entry().take_resume_position());
        self.catch_up(channel, from, ctx);
    }

    fn lost(&mut self, channel: &ChannelName, head: Position, ctx: &mut Self::Context) {
        let Some(follow) = self.carried().follow(channel) else { return };
        if follow.positioned {
            return self.step(ctx, |session, effects| session.on_lost(channel, now(), effects));
        }
        // Nothing was promised here: it goes on with what comes.
        if follow.subscription.entry().release(Some(head.clone())) == Release::Missed {
            self.catch_up(channel, Some(head), ctx);
        }
    }
}

/// This moment.
pub(super) fn now() -> Moment {
    Moment { wall: chrono::Utc::now(), mono: Instant::now() }
}
