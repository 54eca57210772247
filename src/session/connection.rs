//! The state machine of one client: frames, outcomes and time go in, effects come out. Commands
//! run strictly in order, one at a time; while an effect is under way, further input of the client is
//! queued here. Holds who the client is and what it is subscribed to. It uses no socket, no store and
//! no clock, and live events never pass through it.
//! Invariant: `Close` is the last effect.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use uuid::Uuid;

use super::context::SessionContext;
use super::effect::{Effect, LookedUp, Outcome};
use super::metrics::Code;
use super::pending::Pending;
use super::state::{CommandResult, Frame, Lookups, Phase, QueuedInput, SessionMode};
use super::subscriptions::Subscriptions;
use super::timers::{Now, Timers};
use crate::domain::access::{AccessContext, Action, Denied, Principal, ResourceInfo, may};
use crate::domain::channel::ChannelName;
use crate::limits::user_connections::OpenConnection;
use crate::protocol::code::{DisconnectCode, ErrorCode, Refusal, UnsubscribeCode};
use crate::protocol::command::{BadFrame, Command, Method};
use crate::protocol::presence::client_info;
use crate::protocol::push::{ChannelPush, Push};
use crate::protocol::reply::Reply;

/// The version that replies name.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The session of one client, independent of the transport.
pub struct Connection {
    pub(super) context: Arc<SessionContext>,
    pub(super) id: Uuid,
    pub(super) phase: Phase,
    /// `None` if commands and replies use the same connection.
    pub(super) mode: Option<Box<SessionMode>>,
    /// Anonymous until the client has connected.
    pub(super) principal: Rc<Principal>,
    pub(super) counted: Option<OpenConnection>,
    pub(super) subscriptions: Subscriptions,
    pub(super) uses_subscription_tokens: bool,
    pub(super) timers: Timers,
    /// The command whose effect is under way.
    pub(super) pending: Option<Box<Pending>>,
    /// The lookups of that command.
    pub(super) lookups: Lookups,
    /// Input that is handled after that command; empty if there is none.
    pub(super) queued: VecDeque<QueuedInput>,
}

impl Connection {
    /// The session of a new connection. `ping_jitter` is any number from 0 to 1, different for each.
    pub fn new(context: Arc<SessionContext>, id: Uuid, now: Now, ping_jitter: f64) -> Self {
        let timers = Timers::new(now.mono, context.options.stale_close_delay, ping_jitter);
        Self {
            context,
            id,
            phase: Phase::New,
            mode: None,
            principal: Rc::default(),
            counted: None,
            subscriptions: Subscriptions::default(),
            uses_subscription_tokens: false,
            timers,
            pending: None,
            lookups: Lookups::default(),
            queued: VecDeque::new(),
        }
    }

    /// The connection's id, which others see as `client`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The user of the connection; empty if it is anonymous or has not connected yet.
    pub fn user(&self) -> &str {
        &self.principal.user
    }

    /// Who the client is: another value after each command that changes it.
    pub fn principal(&self) -> &Rc<Principal> {
        &self.principal
    }

    /// Whether it was given subscription tokens that can be revoked.
    pub fn uses_subscription_tokens(&self) -> bool {
        self.uses_subscription_tokens
    }

    /// Whether the client has connected and has not been closed.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the connection has been closed.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The client sent a frame.
    pub fn on_frame(&mut self, frame: ByteString, now: Now, effects: &mut Vec<Effect>) {
        let frame = Frame::new(frame);
        match self.pending {
            _ if self.is_closed() => {}
            Some(_) => self.queued.push_back(QueuedInput::Frame(frame)),
            None => self.handle(frame, now, effects),
        }
    }

    /// An asynchronous effect has finished. Outcomes that nothing waits for are ignored.
    pub fn on_outcome(&mut self, outcome: Outcome, now: Now, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        let done = match (*pending, outcome) {
            (Pending::LookUp(requested), Outcome::LookedUp(channel, found)) if requested == channel => {
                self.lookups.add(channel, found);
                None
            }
            (Pending::Claim(admitted), Outcome::Claimed(capacity)) => {
                self.connect_claimed(admitted, capacity, now, effects)
            }
            (Pending::Connect(connecting), Outcome::Joined(channel, joined)) => {
                self.connect_joined(connecting, channel, joined, now, effects)
            }
            (Pending::Subscribe { id, pending }, Outcome::Joined(channel, joined))
                if pending.channel == channel =>
            {
                self.subscribe_joined(id, pending, channel, joined, now, effects);
                None
            }
            (Pending::Admit { pending }, Outcome::Joined(channel, joined)) if pending.channel == channel => {
                self.admitted(pending, joined, now, effects);
                None
            }
            (Pending::Publish { id }, Outcome::Published(published)) => {
                self.published(id, published, effects);
                None
            }
            (Pending::History { id }, Outcome::History(stored)) => {
                self.history_read(id, stored, effects);
                None
            }
            (Pending::Presence { id }, Outcome::Presence(members)) => {
                self.presence_read(id, &members, effects);
                None
            }
            (Pending::PresenceStats { id }, Outcome::Presence(members)) => {
                self.presence_counted(id, &members, effects);
                None
            }
            (pending, _) => Some(pending),
        };
        self.pending = done.map(Box::new);
        // The rest of the frame depends on the connect that was refused.
        if self.phase == Phase::Refused
            && let Some(QueuedInput::Frame(frame)) = self.queued.front_mut()
        {
            frame.next = None;
        }
        self.drain_pending(now, effects);
    }

    /// Events are missing on a channel: its history is another one, or was trimmed. A subscription
    /// that is not positioned never knows.
    pub fn on_lost(&mut self, channel: &ChannelName, _now: Now, effects: &mut Vec<Effect>) {
        match self.pending.as_deref_mut() {
            Some(Pending::Connect(connecting)) => connecting.lost(channel),
            Some(Pending::Subscribe { pending, .. } | Pending::Admit { pending })
                if pending.channel == *channel =>
            {
                pending.lost = true;
            }
            _ => {}
        }
        if let Some(subscription) = self.subscriptions.get(channel.as_str()).filter(|sub| sub.positioned) {
            if subscription.server_side {
                self.close(DisconnectCode::InsufficientState, effects);
            } else {
                self.end_subscription(channel, UnsubscribeCode::InsufficientState, effects);
            }
        }
    }

    /// Handles queued input until a command has to wait again.
    fn drain_pending(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while self.pending.is_none() {
            match self.queued.pop_front() {
                Some(QueuedInput::Frame(frame)) => self.handle(frame, now, effects),
                Some(QueuedInput::ServerCommand(command)) => self.apply(command, now, effects),
                None => {
                    self.queued = VecDeque::new();
                    return;
                }
            }
        }
    }

    /// Handles the commands of a frame until one has to wait.
    fn handle(&mut self, Frame { text, mut next }: Frame, now: Now, effects: &mut Vec<Effect>) {
        while let Some(start) = next.filter(|_| !self.ignores_input()) {
            let command;
            (command, next) = self.command_at(&text, start);
            self.on_command(command, now, effects);
            if matches!(self.pending.as_deref(), Some(Pending::LookUp(_))) {
                let frame = Frame { text, next: Some(start) };
                return self.queued.push_front(QueuedInput::Frame(frame));
            }
            self.lookups.clear();
            match self.phase {
                Phase::Closed => return,
                Phase::Refused => break,
                _ if self.pending.is_some() => {
                    return self.queued.push_front(QueuedInput::Frame(Frame { text, next }));
                }
                _ => {}
            }
        }
        effects.push(Effect::Handled(text.len()));
    }

    fn on_command(&mut self, command: Result<Command<'_>, BadFrame>, now: Now, effects: &mut Vec<Effect>) {
        let (id, done) = match command {
            Ok(command) => (command.id, self.perform(command, now, effects)),
            Err(bad) => (0, Err(bad.into())),
        };
        if let Err(refusal) = done {
            self.refuse(id, refusal, effects);
        }
    }

    fn perform(&mut self, command: Command<'_>, now: Now, effects: &mut Vec<Effect>) -> CommandResult {
        let id = command.id;
        match (self.phase, command.method) {
            (Phase::New, Method::Connect(connect)) => self.connect(id, connect, now, effects),
            (Phase::New | Phase::Refused | Phase::Closed, _) | (Phase::Open, Method::Connect(_)) => {
                Err(DisconnectCode::BadRequest.into())
            }
            (Phase::Open, Method::Subscribe(subscribe)) => self.subscribe(id, subscribe, now, effects),
            (Phase::Open, Method::Unsubscribe(unsubscribe)) => {
                self.unsubscribe(id, unsubscribe, effects);
                Ok(())
            }
            (Phase::Open, Method::Publish(publish)) => self.publish(id, publish, effects),
            (Phase::Open, Method::Presence(presence)) => {
                self.presence(presence, Pending::Presence { id }, effects)
            }
            (Phase::Open, Method::PresenceStats(presence)) => {
                self.presence(presence, Pending::PresenceStats { id }, effects)
            }
            (Phase::Open, Method::History(history)) => self.history(id, history, effects),
            (Phase::Open, Method::Rpc(_)) => Err(ErrorCode::NotAvailable.into()),
            (Phase::Open, Method::Send(_)) => Err(DisconnectCode::NotAvailable.into()),
            (Phase::Open, Method::Refresh(refresh)) => self.refresh(id, refresh, now, effects),
            (Phase::Open, Method::SubRefresh(refresh)) => self.sub_refresh(id, refresh, now, effects),
            (Phase::Open, Method::Ping) => {
                send_reply(effects, id, &Reply::Ping);
                Ok(())
            }
            (Phase::Open, Method::Pong) => {
                (self.timers.pong, self.timers.pong_is_late) = (None, false);
                Ok(())
            }
        }
    }

    /// Replies with an error, or closes the connection.
    pub(super) fn refuse(&mut self, id: u32, refusal: Refusal, effects: &mut Vec<Effect>) {
        match refusal {
            Refusal::Disconnect(code) => self.close(code, effects),
            Refusal::Error(code) => {
                self.context.metrics.errors.inc(Code(code.code().into()));
                if self.is_uni() {
                    return self.close(code.for_uni(), effects);
                }
                send_reply(effects, id, &Reply::Error(code));
                if self.phase == Phase::New {
                    self.phase = Phase::Refused;
                    self.counted = None;
                    self.principal = Rc::default();
                }
            }
        }
    }

    /// Ends the connection and frees what it holds.
    pub(super) fn close(&mut self, code: DisconnectCode, effects: &mut Vec<Effect>) {
        self.phase = Phase::Closed;
        self.counted = None;
        self.subscriptions = Subscriptions::default();
        self.pending = None;
        self.lookups.clear();
        self.queued = VecDeque::new();
        effects.push(Effect::Close(code.into()));
    }

    /// Ends a subscription from the server's side. No event of the channel follows the unsubscribe push.
    pub(super) fn end_subscription(
        &mut self,
        channel: &ChannelName,
        code: UnsubscribeCode,
        effects: &mut Vec<Effect>,
    ) {
        if self.subscriptions.remove(channel.as_str()).is_some() {
            effects.push(Effect::Leave(channel.clone()));
            effects.push(Effect::Send(self.push(&Push::Channel(channel, ChannelPush::Unsubscribe(code)))));
        }
    }

    /// What stands behind `channel`. `None`: it is being looked up, and the command, which has had
    /// no effect before, will be handled again.
    pub(super) fn resource_of(
        &mut self,
        channel: &ChannelName,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<ResourceInfo>, Refusal> {
        if !channel.has_resource() {
            return Ok(Some(ResourceInfo::NotNeeded));
        }
        match self.lookups.get(channel) {
            Some(LookedUp::Found(resource)) => Ok(Some(resource.clone())),
            Some(LookedUp::Unavailable) => Err(ErrorCode::Internal.into()),
            None => {
                effects.push(Effect::LookUp(channel.clone()));
                self.pending = Some(Box::new(Pending::LookUp(channel.clone())));
                Ok(None)
            }
        }
    }

    /// The access rule for this client.
    pub(super) fn may(
        &self,
        action: Action,
        channel: &ChannelName,
        resource: &ResourceInfo,
        subscribed: bool,
        admitted_by_token: bool,
    ) -> Result<(), Denied> {
        let namespaces = self.context.namespaces.load();
        let options = namespaces.options_of(channel);
        let insecure = self.context.options.insecure;
        let context = AccessContext {
            options,
            resource: resource.as_resource(),
            subscribed,
            admitted_by_token,
            insecure,
        };
        may(&self.principal, action, channel, &context)
    }

    /// What others see of this client on a channel, as JSON.
    pub(super) fn client_info(&self, chan_info: Option<&str>) -> Arc<str> {
        client_info(self.id, &self.principal, chan_info)
    }
}

/// Sends the reply to a command.
pub(super) fn send_reply(effects: &mut Vec<Effect>, id: u32, reply: &Reply<'_>) {
    let mut text = String::new();
    reply.write(&mut text, id);
    effects.push(Effect::Send(text));
}
