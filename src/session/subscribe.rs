//! How a subscription begins and ends by command (protocol §4.2, §4.3, §7). Owns the answers to
//! recovery. The access rule decides who may subscribe; the hub reads the log.
//! Invariant: the reply is sent before the subscriber goes live, and after a removed subscriber has ended.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::connection::{Connection, send_reply};
use super::effect::{Effect, Join, Joined, Replay, Since};
use super::pending::{Pending, PendingSubscription, has_recovered, live_from};
use super::state::CommandResult;
use super::subscriptions::{RequestedFlags, SubscribedBy, Subscription, SubscriptionFlags};
use super::timers::Now;
use crate::auth::SubscriptionToken;
use crate::domain::access::{Action, SubClaim};
use crate::domain::channel::ChannelName;
use crate::domain::presence::PresenceInfo;
use crate::protocol::code::{ErrorCode, Refusal, TokenUse, UnsubscribeCode};
use crate::protocol::command::{Subscribe, Unsubscribe};
use crate::protocol::filter::Filter;
use crate::protocol::reply::Reply;

/// Sends the reply or push that begins subscriptions, as a replay if it contains recovered events.
pub(super) fn push_recovered(effects: &mut Vec<Effect>, text: String, has_recovered: bool) {
    effects.push(if has_recovered { Effect::SendReplay(text) } else { Effect::Send(text) });
}

impl Connection {
    pub(super) fn subscribe(
        &mut self,
        id: u32,
        command: Subscribe<'_>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        let channel = ChannelName::parse(&command.channel)?;
        if self.subscriptions.contains(channel.as_str()) {
            return Err(ErrorCode::AlreadySubscribed.into());
        }
        if self.subscriptions.len() >= self.context.options.channel_limit {
            return Err(ErrorCode::LimitExceeded.into());
        }
        let mut token = match command.token.as_ref() {
            "" => None,
            token => Some(self.subscription_token(token, &channel, TokenUse::Subscribe, now)?),
        };
        let Some(resource) = self.resource_of(&channel, effects)? else { return Ok(()) };
        self.may(Action::Subscribe, &channel, &resource, false, token.is_some())?;
        if command.kind != 0 {
            return Err(ErrorCode::PermissionDenied.into());
        }
        let filter = self.filter_of(&channel, command.tf)?;
        let requested = RequestedFlags {
            positioned: command.positioned,
            recoverable: command.recoverable,
            join_leave: command.join_leave,
            may_history: self.may(Action::History, &channel, &resource, true, token.is_some()).is_ok(),
            may_presence: self.may(Action::Presence, &channel, &resource, true, token.is_some()).is_ok(),
            delta: command.delta.is_some(),
            filter,
        };
        let since =
            command.recover.then(|| Since { epoch: command.epoch.to_string(), offset: command.offset });
        let subscription = Subscription {
            token: token.as_mut().map(|token| Box::new(SubscribedBy { jti: token.jti.take() })),
            expires: token.as_ref().and_then(|token| token.expires_at),
            ..Subscription::default()
        }
        .of_resource(resource);
        let claim = token.map(|token| token.claim).unwrap_or_default();
        let (mut pending, mut join) =
            self.prepare_subscription(channel, subscription, claim, requested, since);
        if join.recover.is_none() && join.recoverable {
            join.recover = self.implicit_recovery(&join.channel);
        }
        pending.wants_unrecoverable_error = command.wants_unrecoverable_error();
        effects.push(Effect::Join(join));
        self.pending = Some(Box::new(Pending::Subscribe { id, pending }));
        Ok(())
    }

    /// The filter that the client wants, where the operator lets it have one.
    fn filter_of(
        &self,
        channel: &ChannelName,
        tf: Option<&RawValue>,
    ) -> Result<Option<Arc<Filter>>, Refusal> {
        let Some(tf) = tf else { return Ok(None) };
        let namespaces = self.context.namespaces.load();
        if !namespaces.options_of(channel).is_some_and(|options| options.allow_tags_filter) {
            return Err(ErrorCode::BadRequest.into());
        }
        let filter = Filter::parse(tf.get()).map_err(|_| ErrorCode::BadRequest)?;
        Ok(Some(Arc::new(filter)))
    }

    /// Where every subscription begins with the latest publication, recovery starts at offset 0.
    fn implicit_recovery(&self, channel: &ChannelName) -> Option<Since> {
        let namespaces = self.context.namespaces.load();
        let options = namespaces.options_of(channel).filter(|o| o.is_cache() && o.auto_cache_recover)?;
        options.has_history().then(|| Since { epoch: String::new(), offset: 0 })
    }

    /// A subscription token that is for this channel, user and connection.
    pub(super) fn subscription_token(
        &mut self,
        token: &str,
        channel: &ChannelName,
        used: TokenUse,
        now: Now,
    ) -> Result<SubscriptionToken, Refusal> {
        let token = self.context.keys.subscription(token, now.wall);
        let token = token.map_err(|error| Refusal::of_token(used, error))?;
        self.context.revocations.check_token(token.jti.as_deref(), now.wall)?;
        let ours = token.client.as_ref().is_none_or(|client| *client == self.id.to_string());
        if token.channel == *channel && token.user == self.user() && ours {
            self.uses_subscription_tokens |= token.jti.is_some();
            Ok(token)
        } else {
            Err(Refusal::FOREIGN_TOKEN)
        }
    }

    /// The join that the hub must perform, and the subscription that waits for it. `since` is the client's
    /// position, if it asks for recovery.
    pub(super) fn prepare_subscription(
        &self,
        channel: ChannelName,
        subscription: Subscription,
        claim: SubClaim,
        requested: RequestedFlags,
        since: Option<Since>,
    ) -> (PendingSubscription, Join) {
        let flags = match self.context.namespaces.load().options_of(&channel) {
            Some(options) => SubscriptionFlags::configured(options, claim.overrides, &requested),
            None => SubscriptionFlags::BUILT_IN,
        };
        let seen = flags.presence || flags.announced;
        let presence_info = seen.then(|| PresenceInfo {
            client: self.id,
            principal: self.principal.clone(),
            chan_info: claim.info.clone(),
            listed: flags.presence,
            announced: flags.announced,
        });
        let join = Join {
            channel: channel.clone(),
            recover: since,
            recoverable: flags.recoverable,
            positioned: flags.positioned,
            presence_info,
            receives_join_leave: flags.receives_join_leave,
            delta: flags.delta,
            filter: requested.filter.clone(),
        };
        let subscription =
            Subscription { positioned: flags.positioned, chan_info: claim.info, ..subscription };
        let pending = PendingSubscription {
            channel,
            subscription,
            recoverable: flags.recoverable,
            delta: flags.delta,
            filter: requested.filter,
            data: claim.data,
            wants_unrecoverable_error: false,
            lost: false,
        };
        (pending, join)
    }

    /// The subscriber of a `subscribe` is paused, or could not be made.
    pub(super) fn subscribe_joined(
        &mut self,
        id: u32,
        mut pending: PendingSubscription,
        channel: ChannelName,
        joined: Option<Joined>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut joined) = joined else {
            return self.refuse(id, ErrorCode::Internal.into(), effects);
        };
        // The same name, but one text for all who have it.
        pending.channel = channel;
        if pending.wants_unrecoverable_error && joined.replay == Replay::Lost {
            effects.push(Effect::Leave(pending.channel));
            return self.refuse(id, ErrorCode::UnrecoverablePosition.into(), effects);
        }
        let live = live_from(&joined);
        pending.apply_filter(&mut joined);
        let result = pending.result(&joined, now);
        let mut text = String::new();
        Reply::Subscribe(&result).write(&mut text, id);
        push_recovered(effects, text, has_recovered(&joined));
        effects.push(Effect::GoLive(pending.channel.clone(), live));
        let lost = pending.lost && pending.subscription.positioned;
        self.subscriptions.insert(pending.channel.clone(), pending.subscription);
        if lost {
            self.end_subscription(&pending.channel, UnsubscribeCode::InsufficientState, effects);
        }
    }

    /// `unsubscribe`: not being subscribed is no error, whatever the name.
    pub(super) fn unsubscribe(&mut self, id: u32, command: Unsubscribe<'_>, effects: &mut Vec<Effect>) {
        if let Some(channel) = self.subscriptions.remove(&command.channel) {
            effects.push(Effect::Leave(channel));
        }
        send_reply(effects, id, &Reply::Unsubscribe);
    }
}
