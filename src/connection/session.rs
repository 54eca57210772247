//! The state machine of one client: frames, outcomes and time go in, effects come out. Commands
//! run strictly in order, one at a time; while the answer to an effect is awaited, whatever else
//! the client says waits here. Owns what the client is and what it is subscribed to; touches no
//! socket, no store and no clock, and live events never pass through it.
//! Must hold: after `Close` there is no further effect.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;
use uuid::Uuid;

use super::clock::{Clock, Moment};
use super::effect::{Effect, LookedUp, Outcome};
use super::manner::Manner;
use super::rules::Rules;
use super::state::{Frame, Lookups, Pending, Performed, Phase, Waiting};
use super::subscriptions::Subscriptions;
use super::users::OpenConnection;
use crate::domain::access::{Action, Denied, Facts, KnownItem, Principal, may};
use crate::domain::channel::ChannelName;
use crate::hub::presence::client_info;
use crate::protocol::code::{DisconnectCode, ErrorCode, Refusal, UnsubscribeCode};
use crate::protocol::command::{BadFrame, Command, Method};
use crate::protocol::push::{OnChannel, Push};
use crate::protocol::reply::Reply;
use crate::telemetry::Code;

/// The version that replies name.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One client, whatever carries it.
pub struct Connection {
    pub(super) rules: Arc<Rules>,
    pub(super) id: Uuid,
    pub(super) phase: Phase,
    /// `None`: commands and replies over one line.
    pub(super) manner: Option<Box<Manner>>,
    /// Nobody before the connect.
    pub(super) principal: Rc<Principal>,
    pub(super) counted: Option<OpenConnection>,
    pub(super) subscriptions: Subscriptions,
    pub(super) clock: Clock,
    /// The command whose effect is under way.
    pub(super) pending: Option<Box<Pending>>,
    /// What that command had to know before.
    pub(super) lookups: Lookups,
    /// What comes behind it; empty if there is none.
    pub(super) waiting: VecDeque<Waiting>,
}

impl Connection {
    /// A client that just came. `ping_jitter` is any number from 0 to 1, different for each.
    pub fn new(rules: Arc<Rules>, id: Uuid, now: Moment, ping_jitter: f64) -> Self {
        let clock = Clock::new(now.mono, rules.options.stale_close_delay, ping_jitter);
        Self {
            rules,
            id,
            phase: Phase::New,
            manner: None,
            principal: Rc::default(),
            counted: None,
            subscriptions: Subscriptions::default(),
            clock,
            pending: None,
            lookups: Lookups::default(),
            waiting: VecDeque::new(),
        }
    }

    /// The connection's id, which others see as `client`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Whose connection it is; empty for anonymous, and before the connect.
    pub fn user(&self) -> &str {
        &self.principal.user
    }

    /// Who the client is: another value after each command that changes it.
    pub fn principal(&self) -> &Rc<Principal> {
        &self.principal
    }

    /// Whether the client has connected and has not been closed.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether it has been closed.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// The client said something.
    pub fn on_frame(&mut self, frame: ByteString, now: Moment, effects: &mut Vec<Effect>) {
        let frame = Frame::new(frame);
        match self.pending {
            _ if self.is_over() => {}
            Some(_) => self.waiting.push_back(Waiting::Frame(frame)),
            None => self.handle(frame, now, effects),
        }
    }

    /// An asynchronous effect came to an end. One that nobody waits for is ignored.
    pub fn on_outcome(&mut self, outcome: Outcome, now: Moment, effects: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        let done = match (*pending, outcome) {
            (Pending::LookUp(wanted), Outcome::LookedUp(channel, found)) if wanted == channel => {
                self.lookups.add(channel, found);
                None
            }
            (Pending::Claim(admitted), Outcome::Claimed(room)) => {
                self.connect_claimed(admitted, room, now, effects)
            }
            (Pending::Connect(connecting), Outcome::Joined(channel, joined)) => {
                self.connect_joined(connecting, channel, joined, now, effects)
            }
            (Pending::Subscribe { id, wanted }, Outcome::Joined(channel, joined))
                if wanted.channel == channel =>
            {
                self.subscribe_joined(id, wanted, channel, joined, now, effects);
                None
            }
            (Pending::Admit { wanted }, Outcome::Joined(channel, joined)) if wanted.channel == channel => {
                self.admitted(wanted, joined, now, effects);
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
        // The rest of the frame counted on the connect.
        if self.phase == Phase::Refused
            && let Some(Waiting::Frame(frame)) = self.waiting.front_mut()
        {
            frame.next = None;
        }
        self.catch_up(now, effects);
    }

    /// Events are missing on a channel: its history is another one, or was trimmed. A subscription
    /// that is not positioned never knows.
    pub fn on_lost(&mut self, channel: &ChannelName, _now: Moment, effects: &mut Vec<Effect>) {
        match self.pending.as_deref_mut() {
            Some(Pending::Connect(connecting)) => connecting.lost(channel),
            Some(Pending::Subscribe { wanted, .. } | Pending::Admit { wanted })
                if wanted.channel == *channel =>
            {
                wanted.lost = true;
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

    /// Handles what waits, until something else is awaited.
    fn catch_up(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.pending.is_none() {
            match self.waiting.pop_front() {
                Some(Waiting::Frame(frame)) => self.handle(frame, now, effects),
                Some(Waiting::Directive(directive)) => self.obey(directive, now, effects),
                None => {
                    self.waiting = VecDeque::new();
                    return;
                }
            }
        }
    }

    /// Handles the commands of a frame, until something is awaited.
    fn handle(&mut self, Frame { text, mut next }: Frame, now: Moment, effects: &mut Vec<Effect>) {
        while let Some(start) = next.filter(|_| !self.is_deaf()) {
            let command;
            (command, next) = self.command_at(&text, start);
            self.on_command(command, now, effects);
            if matches!(self.pending.as_deref(), Some(Pending::LookUp(_))) {
                let frame = Frame { text, next: Some(start) };
                return self.waiting.push_front(Waiting::Frame(frame));
            }
            self.lookups.clear();
            match self.phase {
                Phase::Over => return,
                Phase::Refused => break,
                _ if self.pending.is_some() => {
                    return self.waiting.push_front(Waiting::Frame(Frame { text, next }));
                }
                _ => {}
            }
        }
        effects.push(Effect::Handled(text.len()));
    }

    fn on_command(&mut self, command: Result<Command<'_>, BadFrame>, now: Moment, effects: &mut Vec<Effect>) {
        let (id, done) = match command {
            Ok(command) => (command.id, self.perform(command, now, effects)),
            Err(bad) => (0, Err(bad.into())),
        };
        if let Err(refusal) = done {
            self.refuse(id, refusal, effects);
        }
    }

    fn perform(&mut self, command: Command<'_>, now: Moment, effects: &mut Vec<Effect>) -> Performed {
        let id = command.id;
        match (self.phase, command.method) {
            (Phase::New, Method::Connect(connect)) => self.connect(id, connect, now, effects),
            (Phase::New | Phase::Refused | Phase::Over, _) | (Phase::Open, Method::Connect(_)) => {
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
                say(effects, id, &Reply::Ping);
                Ok(())
            }
            (Phase::Open, Method::Pong) => {
                self.clock.pong = None;
                Ok(())
            }
        }
    }

    /// Says that a command failed, or ends the connection.
    pub(super) fn refuse(&mut self, id: u32, refusal: Refusal, effects: &mut Vec<Effect>) {
        match refusal {
            Refusal::Disconnect(code) => self.close(code, effects),
            Refusal::Error(code) => {
                self.rules.errors.get_or_create(&Code { code: code.code().into() }).inc();
                if self.is_uni() {
                    return self.close(code.for_uni(), effects);
                }
                say(effects, id, &Reply::Error(code));
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
        self.phase = Phase::Over;
        self.counted = None;
        self.subscriptions = Subscriptions::default();
        self.pending = None;
        self.lookups.clear();
        self.waiting = VecDeque::new();
        effects.push(Effect::Close(code.into()));
    }

    /// Ends a subscription unasked: nothing of the channel follows the push that says so.
    pub(super) fn end_subscription(
        &mut self,
        channel: &ChannelName,
        code: UnsubscribeCode,
        effects: &mut Vec<Effect>,
    ) {
        if self.subscriptions.remove(channel.as_str()).is_some() {
            effects.push(Effect::Leave(channel.clone()));
            effects.push(Effect::Say(self.push(&Push::On(channel, OnChannel::Unsubscribe(code)))));
        }
    }

    /// What stands behind `channel`. `None`: it is being looked up, and the command, which has had
    /// no effect before, will be handled again.
    pub(super) fn item_of(
        &mut self,
        channel: &ChannelName,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<KnownItem>, Refusal> {
        if !channel.has_item() {
            return Ok(Some(KnownItem::NotNeeded));
        }
        match self.lookups.get(channel) {
            Some(LookedUp::Found(item)) => Ok(Some(item.clone())),
            Some(LookedUp::NotNow) => Err(ErrorCode::Internal.into()),
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
        item: &KnownItem,
        subscribed: bool,
        admitted_by_token: bool,
    ) -> Result<(), Denied> {
        let namespaces = self.rules.namespaces.load();
        let options = namespaces.options_of(channel);
        let insecure = self.rules.options.insecure;
        let facts = Facts { options, item: item.as_item(), subscribed, admitted_by_token, insecure };
        may(&self.principal, action, channel, &facts)
    }

    /// What others see of this client on a channel, as JSON.
    pub(super) fn client_info(&self, chan_info: Option<&str>) -> Arc<str> {
        client_info(self.id, &self.principal, chan_info)
    }
}

/// Says the reply to a command.
pub(super) fn say(effects: &mut Vec<Effect>, id: u32, reply: &Reply<'_>) {
    let mut text = String::new();
    reply.write(&mut text, id);
    effects.push(Effect::Say(text));
}
