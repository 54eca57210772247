//! What who runs the server tells a connection to do (protocol §12.2): begin or end a subscription,
//! live longer or shorter. Asks no rule, and has nobody to answer: the client hears by pushes. A
//! directive takes its turn behind the commands that came before it.

use std::rc::Rc;
use std::sync::Arc;

use super::clock::Moment;
use super::effect::{Effect, Joined, Replay, Since};
use super::session::Connection;
use super::state::{Pending, Phase, Waiting};
use super::subscribe::{Wanted, live_from};
use super::subscriptions::{Subscription, Wishes};
use crate::domain::access::KnownItem;
use crate::domain::channel::ChannelName;
use crate::domain::directive::{Admission, Directive, Life};
use crate::protocol::code::{DisconnectCode, UnsubscribeCode};
use crate::protocol::push::{OnChannel, Push};

impl Connection {
    /// Who runs the server wants something. Before the connect there is nobody to do it.
    pub fn on_directive(&mut self, directive: Arc<Directive>, now: Moment, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Refused | Phase::Over => {}
            _ if self.pending.is_some() => self.waiting.push_back(Waiting::Directive(directive)),
            Phase::New => {}
            Phase::Open => self.obey(directive, now, effects),
        }
    }

    /// Does it, or begins to.
    pub(super) fn obey(&mut self, directive: Arc<Directive>, now: Moment, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Open {
            return;
        }
        match &*directive {
            Directive::Subscribe(admission) => self.admit(admission, now, effects),
            Directive::Unsubscribe(Some(channel)) => {
                self.end_subscription(channel, UnsubscribeCode::Server, effects);
            }
            Directive::Unsubscribe(None) => {
                let channels: Vec<ChannelName> =
                    self.subscriptions.iter().map(|(channel, _)| channel.clone()).collect();
                for channel in channels {
                    self.end_subscription(&channel, UnsubscribeCode::Server, effects);
                }
            }
            Directive::Refresh { life, info } => self.live_on(*life, info.as_ref(), now, effects),
        }
        if matches!(self.pending.as_deref(), Some(Pending::LookUp(_))) {
            self.waiting.push_front(Waiting::Directive(directive));
        } else {
            self.lookups.clear();
        }
    }

    fn admit(&mut self, admission: &Admission, now: Moment, effects: &mut Vec<Effect>) {
        let Admission { channel, claim, expires_at, since } = admission;
        if self.subscriptions.contains(channel.as_str()) {
            return;
        }
        if self.subscriptions.len() >= self.rules.options.channel_limit {
            return self.close(DisconnectCode::ChannelLimit, effects);
        }
        // No rule looks at it now; a later command on the channel wants to know.
        let item = match self.item_of(channel, effects) {
            Ok(Some(item)) => item,
            Ok(None) => return,
            Err(_) => KnownItem::Unknown,
        };
        let subscription = Subscription {
            server_side: true,
            expires: expires_at.and_then(|end| now.until(end)),
            ..Subscription::default()
        }
        .of_item(item);
        let since = since.clone().map(|(epoch, offset)| Since { epoch, offset });
        let (wanted, join) =
            self.want(channel.clone(), subscription, claim.clone(), Wishes::default(), since);
        effects.push(Effect::Join(join));
        self.pending = Some(Box::new(Pending::Admit { wanted }));
    }

    /// The entry of a subscription that nobody asked for is on hold, or could not be made.
    pub(super) fn admitted(
        &mut self,
        wanted: Wanted,
        joined: Option<Joined>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some(joined) = joined else { return };
        let subscribed = wanted.result(&joined, now);
        effects.push(Effect::Say(self.push(&Push::On(&wanted.channel, OnChannel::Subscribe(&subscribed)))));
        // This push has no room for what was missed: it follows as if it came now.
        if let Replay::Found(_, missed) = &joined.replay {
            effects.extend(missed.iter().map(|event| {
                Effect::SayReplay(self.push(&Push::On(&wanted.channel, OnChannel::Publication(event))))
            }));
        }
        effects.push(Effect::Live(wanted.channel.clone(), live_from(&joined)));
        if wanted.lost && wanted.subscription.positioned {
            return self.close(DisconnectCode::InsufficientState, effects);
        }
        self.subscriptions.insert(wanted.channel, wanted.subscription);
    }

    fn live_on(&mut self, life: Life, info: Option<&Arc<str>>, now: Moment, effects: &mut Vec<Effect>) {
        self.clock.expires = match life {
            Life::Over => return self.close(DisconnectCode::Expired, effects),
            Life::Endless => None,
            Life::Until(end) => now.until(end),
        };
        if let Some(info) = info {
            let mut principal = (*self.principal).clone();
            principal.info = Some(info.clone());
            self.principal = Rc::new(principal);
        }
        let ttl = self.clock.expires.map(|end| now.ttl(end));
        effects.push(Effect::Say(self.push(&Push::Refresh { ttl })));
    }
}
