//! Server commands (protocol §12.2): the server API begins or ends a subscription of a client, or
//! changes when its connection expires. No access rule is checked and no reply is sent; the client is
//! informed by pushes. A server command is handled after the commands that came before it.

use std::rc::Rc;
use std::sync::Arc;

use super::connection::Connection;
use super::effect::{Effect, Joined, Replay, Since};
use super::pending::{Pending, PendingSubscription, live_from};
use super::state::{Phase, QueuedInput};
use super::subscriptions::{RequestedFlags, Subscription};
use super::timers::Now;
use crate::domain::access::ResourceInfo;
use crate::domain::channel::ChannelName;
use crate::domain::server_command::{Admission, Expiry, ServerCommand};
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::push::{ChannelPush, Push};

impl Connection {
    /// The server API has sent a command. It is ignored before the client has connected.
    pub fn on_server_command(&mut self, command: Arc<ServerCommand>, now: Now, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Refused | Phase::Closed => {}
            _ if self.pending.is_some() => self.queued.push_back(QueuedInput::ServerCommand(command)),
            Phase::New => {}
            Phase::Open => self.apply(command, now, effects),
        }
    }

    /// Applies a server command, or begins to.
    pub(super) fn apply(&mut self, command: Arc<ServerCommand>, now: Now, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Open {
            return;
        }
        match &*command {
            ServerCommand::Subscribe(admission) => self.admit(admission, effects),
            ServerCommand::Unsubscribe(Some(channel)) => {
                self.end_subscription(channel, UnsubscribeCode::Server, effects);
            }
            ServerCommand::Unsubscribe(None) => {
                let channels: Vec<ChannelName> =
                    self.subscriptions.iter().map(|(channel, _)| channel.clone()).collect();
                for channel in channels {
                    self.end_subscription(&channel, UnsubscribeCode::Server, effects);
                }
            }
            ServerCommand::RevokeToken(jti) => {
                let by_it = self.subscriptions.iter().filter(|(_, sub)| {
                    sub.token.as_ref().is_some_and(|token| token.jti.as_deref() == Some(jti))
                });
                let channels: Vec<ChannelName> = by_it.map(|(channel, _)| channel.clone()).collect();
                for channel in channels {
                    self.end_subscription(&channel, UnsubscribeCode::Server, effects);
                }
            }
            ServerCommand::Refresh { expiry, info } => self.set_expiry(*expiry, info.as_ref(), now, effects),
        }
        if matches!(self.pending.as_deref(), Some(Pending::LookUp(_))) {
            self.queued.push_front(QueuedInput::ServerCommand(command));
        } else {
            self.lookups.clear();
        }
    }

    fn admit(&mut self, admission: &Admission, effects: &mut Vec<Effect>) {
        let Admission { channel, claim, expires_at, since } = admission;
        if self.subscriptions.contains(channel.as_str()) {
            return;
        }
        if self.subscriptions.len() >= self.context.options.channel_limit {
            return self.close(DisconnectCode::ChannelLimit, effects);
        }
        // No rule needs it now, but a later command on the channel does.
        let resource = match self.resource_of(channel, effects) {
            Ok(Some(resource)) => resource,
            Ok(None) => return,
            Err(_) => ResourceInfo::Unknown,
        };
        let subscription =
            Subscription { server_side: true, expires: *expires_at, ..Subscription::default() }
                .of_resource(resource);
        let since = since.clone().map(|(epoch, offset)| Since { epoch, offset });
        let (pending, join) = self.prepare_subscription(
            channel.clone(),
            subscription,
            claim.clone(),
            RequestedFlags::default(),
            since,
        );
        effects.push(Effect::Join(join));
        self.pending = Some(Box::new(Pending::Admit { pending }));
    }

    /// The subscriber of a subscription that the server began is paused, or could not be created.
    pub(super) fn admitted(
        &mut self,
        pending: PendingSubscription,
        joined: Option<Joined>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(joined) = joined else { return };
        let subscribed = pending.result(&joined, now);
        effects.push(Effect::Send(
            self.push(&Push::Channel(&pending.channel, ChannelPush::Subscribe(&subscribed))),
        ));
        // The push cannot contain recovered events, so they follow as ordinary publications.
        if let Replay::Found(_, missed) = &joined.replay {
            effects.extend(missed.iter().map(|event| {
                Effect::SendReplay(
                    self.push(&Push::Channel(&pending.channel, ChannelPush::Publication(event))),
                )
            }));
        }
        effects.push(Effect::GoLive(pending.channel.clone(), live_from(&joined)));
        if pending.lost && pending.subscription.positioned {
            return self.close(DisconnectCode::InsufficientState, effects);
        }
        self.subscriptions.insert(pending.channel, pending.subscription);
    }

    fn set_expiry(&mut self, expiry: Expiry, info: Option<&Arc<str>>, now: Now, effects: &mut Vec<Effect>) {
        self.timers.expires = match expiry {
            Expiry::Expired => return self.close(DisconnectCode::Expired, effects),
            Expiry::Never => None,
            Expiry::At(end) => Some(end),
        };
        if let Some(info) = info {
            let mut principal = (*self.principal).clone();
            principal.info = Some(info.clone());
            self.principal = Rc::new(principal);
        }
        let ttl = self.timers.expires.map(|end| now.ttl(end));
        effects.push(Effect::Send(self.push(&Push::Refresh { ttl })));
    }
}
