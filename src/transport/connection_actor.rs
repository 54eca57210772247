//! What all connection actors have in common, whatever the transport: a session, the channels that it
//! follows, and how the effects that it requests are performed. Each transport adds its encoding, its
//! timers and how its connections are closed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::dev::ToEnvelope;
use actix::prelude::*;

use super::effects::{self, Follow};
use super::worker::WorkerContext;
use crate::clients::Registration;
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::domain::principal::Principal;
use crate::domain::server_command::ServerCommand;
use crate::hub::fanout::Resume;
use crate::hub::metrics::{SlowReason, Transport};
use crate::hub::outbox::{ConnectionEvents, EndReason, Outbox};
use crate::limits::replies::Share;
use crate::protocol::code::{Disconnect, DisconnectCode};
use crate::protocol::encoding::Framing;
use crate::recovery;
use crate::session::effect::{Effect, Join, Joined, Outcome};
use crate::session::{Connection, Now, SessionMode};
use crate::telemetry::metrics::Counter;
use crate::transport::metrics::{AttemptOutcome, DisconnectedWith};

/// Codes that end a connection attempt without being the client's fault.
const FAILURES: [u16; 4] = [
    DisconnectCode::Internal.code(),
    DisconnectCode::Slow.code(),
    DisconnectCode::WriteError.code(),
    DisconnectCode::TooManyRequests.code(),
];

/// The length of a pong: a message that is no longer says nothing else.
const PONG: usize = "{}\n".len();

/// What the outbox and the subscribers of a connection report to its actor.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum ActorEvent {
    Lagged(ChannelName),
    Lost(ChannelName, Position),
    OutboxEnded(EndReason),
    Disconnect(Disconnect),
    TimerDue,
    ServerCommand(Arc<ServerCommand>),
}

impl<A> ConnectionEvents for Addr<A>
where
    A: Actor<Context: ToEnvelope<A, ActorEvent>> + Handler<ActorEvent>,
{
    fn on_lag(&self, channel: &ChannelName) {
        self.do_send(ActorEvent::Lagged(channel.clone()));
    }

    fn on_position_lost(&self, channel: &ChannelName, head: &Position) {
        self.do_send(ActorEvent::Lost(channel.clone(), head.clone()));
    }

    fn on_end(&self, why: EndReason) {
        self.do_send(ActorEvent::OutboxEnded(why));
    }

    fn on_disconnect(&self, disconnect: &Disconnect) {
        self.do_send(ActorEvent::Disconnect(disconnect.clone()));
    }

    fn on_timer(&self) {
        self.do_send(ActorEvent::TimerDue);
    }

    fn on_command(&self, command: &Arc<ServerCommand>) {
        self.do_send(ActorEvent::ServerCommand(command.clone()));
    }
}

/// A session with its outbox, its registration and the channels that it follows.
pub(super) struct ActorCore {
    pub(super) worker: Rc<WorkerContext>,
    pub(super) session: Connection,
    pub(super) outbox: Rc<Outbox>,
    framing: Framing,
    /// The room of its replies, while some are read.
    replies: Option<Rc<Share>>,
    /// Whether the session is or was open; it then counts as a successful connection.
    opened: bool,
    registration: Registration,
    /// The principal that it is registered with.
    principal: Rc<Principal>,
    /// Whether it is registered as one that uses subscription tokens.
    uses_subscription_tokens: bool,
    /// By channel, in order.
    follows: Vec<Follow>,
    received: Counter,
    /// It counts as one whose pong is late.
    unhealthy: bool,
    /// Whether the connection has ended: the disconnect was sent or needs not be sent, and no channel
    /// is followed any more.
    pub(super) ended: bool,
}

impl ActorCore {
    /// A new connection over the named transport. `mode` is `None` for the usual kind of session.
    pub(super) fn new(
        worker: Rc<WorkerContext>,
        outbox: Rc<Outbox>,
        (transport, framing): (&'static str, Framing),
        mode: Option<SessionMode>,
    ) -> Self {
        let principal = Rc::new(Principal::default());
        let name = mode.as_ref().map(|mode| mode.session.clone());
        let registration = worker.clients.add(outbox.clone(), principal.clone(), transport, name);
        let session =
            Connection::new(worker.session_context.clone(), registration.id(), now(), rand::random());
        let session = match mode {
            Some(mode) => session.with_mode(mode),
            None => session,
        };
        let received = worker.metrics.messages_received.with(Transport(transport));
        Self {
            received,
            unhealthy: false,
            worker,
            session,
            outbox,
            framing,
            replies: None,
            opened: false,
            registration,
            principal,
            uses_subscription_tokens: false,
            follows: Vec::new(),
            ended: false,
        }
    }

    /// Calls the session and returns the effects that it requests.
    pub(super) fn advance(&mut self, act: impl FnOnce(&mut Connection, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut effects = Vec::new();
        act(&mut self.session, &mut effects);
        if !self.opened && self.session.is_open() {
            self.opened = true;
            self.worker.metrics.connection_attempts.inc(AttemptOutcome::Open);
        }
        self.set_unhealthy(self.session.is_unhealthy());
        if !Rc::ptr_eq(&self.principal, self.session.principal()) {
            self.principal = self.session.principal().clone();
            self.registration.identify(self.principal.clone());
        }
        if self.session.uses_subscription_tokens() && !self.uses_subscription_tokens {
            self.uses_subscription_tokens = true;
            self.registration.uses_subscription_tokens();
        }
        effects
    }

    /// Counts a message of the client, unless it is a pong.
    pub(super) fn count_received(&self, message: &str) {
        if message.len() > PONG {
            self.received.inc();
        }
    }

    /// Whether a join completes without waiting.
    pub(super) fn joins_at_once(&self, join: &Join) -> bool {
        join.recover.is_none() && self.worker.fanout.is_subscribed(&join.channel)
    }

    pub(super) fn join(
        &mut self,
        mut join: Join,
    ) -> impl Future<Output = (ChannelName, Option<(Follow, Joined)>)> + use<> {
        let (worker, outbox) = (self.worker.clone(), (self.outbox.clone(), self.framing.clone()));
        let (allowed, share) = (self.may_open(&join.channel), join.recover.is_some().then(|| self.share()));
        if let Some(seen) = join.presence_info.as_mut().filter(|seen| seen.announced) {
            seen.announced = self.may_announce();
        }
        async move {
            match allowed {
                true => effects::join_channel(worker, outbox, share, join).await,
                false => (join.channel, None),
            }
        }
    }

    /// Whether the channel is followed on this node, or may be from now on.
    fn may_open(&self, channel: &ChannelName) -> bool {
        self.worker.may_open(channel, || self.holder())
    }

    /// Whether others are told of one more join, and later that it left.
    fn may_announce(&self) -> bool {
        let allowed = self.worker.limits.joins.check_here(&self.holder()).is_some();
        if !allowed {
            self.worker.metrics.joins_unannounced.inc();
        }
        allowed
    }

    /// Who uses limits up: its user, or if it has none, the connection.
    fn holder(&self) -> String {
        match self.session.user() {
            "" => format!("c:{}", self.session.id()),
            user => format!("u:{user}"),
        }
    }

    fn set_unhealthy(&mut self, unhealthy: bool) {
        let gauge = &self.worker.metrics.connections_unhealthy;
        match (std::mem::replace(&mut self.unhealthy, unhealthy), unhealthy) {
            (false, true) => drop(gauge.inc()),
            (true, false) => drop(gauge.dec()),
            _ => {}
        }
    }

    fn share(&mut self) -> (Rc<Share>, String) {
        (self.replies.get_or_insert_default().clone(), self.holder())
    }

    /// A reply is made: its room is free as soon as most of it has been sent.
    pub(super) fn give_back_room(&mut self) {
        let room = self.replies.as_ref().and_then(|share| share.take());
        self.replies.take_if(|share| Rc::strong_count(share) == 1);
        if let Some(room) = room {
            let outbox = self.outbox.clone();
            actix_rt::spawn(async move {
                outbox.wait_for_capacity().await;
                drop(room);
            });
        }
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

    /// The connection has ended: it follows no channel any more.
    pub(super) fn close(&mut self, code: u16) {
        self.ended = true;
        self.set_unhealthy(false);
        self.follows.clear();
        let metrics = &self.worker.metrics;
        if !std::mem::replace(&mut self.opened, true) {
            let failed = FAILURES.contains(&code);
            let outcome = if failed { AttemptOutcome::Failed } else { AttemptOutcome::Refused };
            metrics.connection_attempts.inc(outcome);
        }
        metrics.disconnects.inc(DisconnectedWith(code.into()));
        tracing::debug!(connection = %self.session.id(), code, "a connection has ended");
    }

    /// The disconnect code for the reason why the outbox ended.
    pub(super) fn end_of(&self, why: EndReason) -> DisconnectCode {
        let slow = &self.worker.fanout.metrics().slow_disconnects;
        match why {
            EndReason::Slow => {
                tracing::info!(connection = %self.session.id(), "a client reads too slowly and was disconnected");
                slow.inc(SlowReason::Queue);
                DisconnectCode::Slow
            }
            EndReason::Stalled => {
                slow.inc(SlowReason::WriteTimeout);
                DisconnectCode::WriteError
            }
            EndReason::Broken => DisconnectCode::Closed,
        }
    }
}

pub(super) trait ConnectionActor: Actor<Context: AsyncContext<Self>> + Handler<ActorEvent> {
    /// The state that all connection actors share.
    fn core(&mut self) -> &mut ActorCore;

    /// Calls the session and performs the effects that it requests.
    fn step(&mut self, ctx: &mut Self::Context, act: impl FnOnce(&mut Connection, &mut Vec<Effect>));

    fn on_outcome(&mut self, outcome: Outcome, ctx: &mut Self::Context) {
        self.step(ctx, |session, effects| session.on_outcome(outcome, now(), effects));
    }

    /// Performs the effects that are the same for all transports, and returns those that are not.
    fn perform(&mut self, effect: Effect, ctx: &mut Self::Context) -> Option<Effect> {
        let core = self.core();
        let worker = &core.worker;
        match effect {
            Effect::LookUp(channel) => {
                let looked_up = effects::look_up(worker.store.clone(), channel);
                ctx.spawn(looked_up.into_actor(self).map(|(channel, found), actor, ctx| {
                    actor.on_outcome(Outcome::LookedUp(channel, found), ctx);
                }));
            }
            Effect::Join(join) => {
                let joining = core.join(join);
                ctx.spawn(joining.into_actor(self).map(|joined, actor, ctx| {
                    let outcome = actor.core().joined(joined);
                    actor.on_outcome(outcome, ctx);
                }));
            }
            Effect::GoLive(channel, position) => {
                let follow = core.follow(&channel)?;
                let subscriber = follow.subscription.subscriber();
                if subscriber.resume(position.clone()) == Resume::Gap {
                    let from = subscriber.take_resume_position().or(position);
                    self.catch_up(&channel, from, ctx);
                }
            }
            Effect::Leave(channel) => core.follows.retain(|follow| *follow.channel() != channel),
            Effect::Publish(event) => {
                let published = effects::publish(worker.publisher.clone(), event);
                ctx.spawn(published.into_actor(self).map(|published, actor, ctx| {
                    actor.on_outcome(Outcome::Published(published), ctx);
                }));
            }
            Effect::ReadHistory(request) => {
                let (worker, share) = (worker.clone(), core.share());
                let read = effects::read_history(worker, share, request);
                ctx.spawn(read.into_actor(self).map(|stored, actor, ctx| {
                    actor.on_outcome(Outcome::History(stored), ctx);
                }));
            }
            Effect::ReadPresence(channel) => {
                let cluster = worker.cluster.clone();
                let members = async move { cluster.members(&channel).await };
                ctx.spawn(members.into_actor(self).map(|members, actor, ctx| {
                    actor.on_outcome(Outcome::Presence(members), ctx);
                }));
            }
            Effect::Claim(claim) => {
                let users = worker.session_context.users.clone();
                let settled = async move { users.resolve(claim).await };
                ctx.spawn(settled.into_actor(self).map(|capacity, actor, ctx| {
                    actor.on_outcome(Outcome::Claimed(capacity), ctx);
                }));
            }
            Effect::DisconnectOlder => effects::disconnect_older(worker, &core.session),
            own @ (Effect::Send(_) | Effect::SendReplay(_) | Effect::Handled(_) | Effect::Close(_)) => {
                core.give_back_room();
                return Some(own);
            }
        }
        None
    }

    /// Brings a subscriber that is paused up to the head of its channel.
    fn catch_up(&mut self, channel: &ChannelName, from: Option<Position>, ctx: &mut Self::Context) {
        let core = self.core();
        let (Some(follow), Some(from)) = (core.follow(channel), from) else { return };
        let Some(retention) = core.worker.session_context.namespaces.load().retention_of(channel) else {
            // A reload has turned the history off: there is no log to catch up from.
            if follow.positioned {
                ctx.notify(ActorEvent::Lost(channel.clone(), from));
            } else {
                let _ = follow.subscription.subscriber().resume(None);
            }
            return;
        };
        let (store, subscriber) = (core.worker.store.clone(), follow.subscription.subscriber().clone());
        let fed = async move {
            // A refusal means that the connection has ended, which is handled elsewhere.
            let _ = recovery::catch_up(&store, &subscriber, retention, from).await;
        };
        ctx.spawn(fed.into_actor(self));
    }

    fn on_lag(&mut self, channel: &ChannelName, ctx: &mut Self::Context) {
        let follow = self.core().follow(channel);
        let from = follow.and_then(|follow| follow.subscription.subscriber().take_resume_position());
        self.catch_up(channel, from, ctx);
    }

    fn on_lost(&mut self, channel: &ChannelName, head: Position, ctx: &mut Self::Context) {
        let Some(follow) = self.core().follow(channel) else { return };
        if follow.positioned {
            return self.step(ctx, |session, effects| session.on_lost(channel, now(), effects));
        }
        // Without a tracked position the subscription continues with the next events.
        if follow.subscription.subscriber().resume(Some(head.clone())) == Resume::Gap {
            self.catch_up(channel, Some(head), ctx);
        }
    }
}

pub(super) fn now() -> Now {
    Now { wall: chrono::Utc::now(), mono: Instant::now() }
}
