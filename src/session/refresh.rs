//! New tokens for old (protocol §4.8, §4.9, §10.3): a connection or a subscription lives on. A
//! token can take rights away, so the rule is asked again. Gives nothing to another user.

use std::rc::Rc;

use super::connection::{Connection, VERSION, send_reply};
use super::effect::Effect;
use super::state::CommandResult;
use super::subscriptions::SubscribedBy;
use super::timers::Now;
use crate::domain::access::Action;
use crate::domain::channel::ChannelName;
use crate::protocol::code::{DisconnectCode, ErrorCode, Refusal, TokenUse, UnsubscribeCode};
use crate::protocol::command::{Refresh, SubRefresh};
use crate::protocol::reply::Reply;

impl Connection {
    pub(super) fn refresh(
        &mut self,
        id: u32,
        command: Refresh<'_>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        if self.timers.expires.is_none() {
            return Err(DisconnectCode::BadRequest.into());
        }
        let principal = self.context.keys.authenticate(&command.token, now.wall);
        let principal = principal.map_err(|error| Refusal::of_token(TokenUse::Refresh, error))?;
        self.context.revocations.check(&principal, now.wall).map_err(Refusal::from)?;
        if principal.user != self.principal.user {
            return Err(Refusal::FOREIGN_TOKEN);
        }
        // The client comes back with the new token, and gets the subscriptions that it brings.
        if principal.channels != self.principal.channels {
            return Err(DisconnectCode::InsufficientState.into());
        }
        self.principal = Rc::new(principal);
        self.timers.expires = self.principal.expires_at;
        let ttl = self.timers.expires.map(|end| now.ttl(end));
        send_reply(effects, id, &Reply::Refresh { client: &self.id.to_string(), version: VERSION, ttl });
        for channel in self.no_longer_allowed() {
            self.end_subscription(&channel, UnsubscribeCode::Server, effects);
        }
        Ok(())
    }

    /// Subscriptions that the connection's token does not admit to any more. Those that the server
    /// made are in the token, and those with a token of their own do not depend on it.
    fn no_longer_allowed(&self) -> Vec<ChannelName> {
        let depending = self.subscriptions.iter().filter(|(_, sub)| !sub.server_side && sub.token.is_none());
        let denied = depending.filter(|(channel, sub)| {
            self.may(Action::Subscribe, channel, sub.resource(), false, false).is_err()
        });
        denied.map(|(channel, _)| channel.clone()).collect()
    }

    pub(super) fn sub_refresh(
        &mut self,
        id: u32,
        command: SubRefresh<'_>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        let channel = ChannelName::parse(&command.channel)?;
        let subscription = self.subscriptions.get(channel.as_str()).ok_or(ErrorCode::PermissionDenied)?;
        if command.token.is_empty() {
            return Err(ErrorCode::BadRequest.into());
        }
        if subscription.expires.is_none() {
            return Err(DisconnectCode::BadRequest.into());
        }
        let token = self.subscription_token(&command.token, &channel, TokenUse::SubRefresh, now)?;
        let expires = token.expires_at;
        if let Some(subscription) = self.subscriptions.get_mut(channel.as_str()) {
            subscription.expires = expires;
            subscription.chan_info = token.claim.info;
            subscription.token = Some(Box::new(SubscribedBy { jti: token.jti }));
        }
        send_reply(effects, id, &Reply::SubRefresh { ttl: expires.map(|end| now.ttl(end)) });
        Ok(())
    }
}
