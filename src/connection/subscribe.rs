//! How a subscription begins and ends by command (protocol §4.2, §4.3, §7). Owns the answers to
//! recovery. The rule decides who may; the hub reads the log.
//! Must hold: the reply stands before the entry goes live, and behind the entry's end.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::clock::Moment;
use super::effect::{Effect, Join, Joined, Replay, Since};
use super::session::{Connection, say};
use super::state::{Pending, Performed};
use super::subscriptions::{Qualities, Subscription, Wishes};
use crate::auth::SubscriptionToken;
use crate::domain::access::{Action, SubClaim};
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::hub::presence::Attendance;
use crate::protocol::code::{ErrorCode, Refusal, TokenUse, UnsubscribeCode};
use crate::protocol::command::{Subscribe, Unsubscribe};
use crate::protocol::filter::Filter;
use crate::protocol::reply::{Recovery, Reply, SubscribeResult};

/// A subscription whose entry is not there yet.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) channel: ChannelName,
    pub(super) subscription: Subscription,
    recoverable: bool,
    /// Data comes as differences.
    delta: bool,
    /// Only publications with such tags.
    filter: Option<Arc<Filter>>,
    /// For the application: one JSON value.
    data: Option<Arc<str>>,
    /// A lost position is an error and no subscription.
    wants_112: bool,
    /// Events were lost before it began.
    pub(super) lost: bool,
}

impl Wanted {
    /// What the client is told.
    pub(super) fn result<'a>(&'a self, joined: &'a Joined, now: Moment) -> SubscribeResult<'a> {
        let head = joined.position.as_ref();
        let (position, recovery) = match &joined.replay {
            Replay::NotAsked => (head, Recovery::NotAsked),
            Replay::Found(position, missed) => (Some(position), Recovery::Recovered(missed)),
            Replay::Lost => (head, Recovery::Lost),
        };
        let position = position.filter(|_| self.subscription.positioned);
        SubscribeResult {
            ttl: self.subscription.expires.map(|expires| now.ttl(expires)),
            recoverable: self.recoverable && position.is_some(),
            positioned: position.is_some(),
            position,
            recovery,
            data: self.data.as_deref(),
            delta: self.delta,
        }
    }

    /// Takes out of the replay what the client does not want.
    fn sift(&self, joined: &mut Joined) {
        if let (Some(filter), Replay::Found(_, missed)) = (&self.filter, &mut joined.replay) {
            missed.retain(|event| filter.wants_event(event));
        }
    }
}

/// Behind which position an entry goes live: that of the last event the reply brought.
pub(super) fn live_from(joined: &Joined) -> Option<Position> {
    match &joined.replay {
        Replay::Found(position, missed) => {
            let offset = missed.last().map_or(position.offset, |event| event.offset);
            Some(Position { offset, epoch: position.epoch.clone() })
        }
        Replay::NotAsked | Replay::Lost => joined.position.clone(),
    }
}

/// Whether a reply brings events, so that it must not count as a client's slowness.
pub(super) fn has_missed(joined: &Joined) -> bool {
    matches!(&joined.replay, Replay::Found(_, missed) if !missed.is_empty())
}

/// Says what begins subscriptions, as a replay if it brings events.
pub(super) fn say_missed(effects: &mut Vec<Effect>, text: String, has_missed: bool) {
    effects.push(if has_missed { Effect::SayReplay(text) } else { Effect::Say(text) });
}

impl Connection {
    /// `subscribe`
    pub(super) fn subscribe(
        &mut self,
        id: u32,
        command: Subscribe<'_>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Performed {
        let channel = ChannelName::parse(&command.channel)?;
        if self.subscriptions.contains(channel.as_str()) {
            return Err(ErrorCode::AlreadySubscribed.into());
        }
        if self.subscriptions.len() >= self.rules.options.channel_limit {
            return Err(ErrorCode::LimitExceeded.into());
        }
        let token = match command.token.as_ref() {
            "" => None,
            token => Some(self.subscription_token(token, &channel, TokenUse::Subscribe, now)?),
        };
        let Some(item) = self.item_of(&channel, effects)? else { return Ok(()) };
        self.may(Action::Subscribe, &channel, &item, false, token.is_some())?;
        if command.kind != 0 {
            return Err(ErrorCode::PermissionDenied.into());
        }
        let filter = self.filter_of(&channel, command.tf)?;
        let wishes = Wishes {
            positioned: command.positioned,
            recoverable: command.recoverable,
            join_leave: command.join_leave,
            may_history: self.may(Action::History, &channel, &item, true, token.is_some()).is_ok(),
            may_presence: self.may(Action::Presence, &channel, &item, true, token.is_some()).is_ok(),
            delta: command.delta.is_some(),
            filter,
        };
        let since =
            command.recover.then(|| Since { epoch: command.epoch.to_string(), offset: command.offset });
        let since = since.or_else(|| self.recovers_anyway(&channel));
        let subscription = Subscription {
            by_token: token.is_some(),
            expires: token.as_ref().and_then(|token| now.until(token.expires_at?)),
            ..Subscription::default()
        }
        .of_item(item);
        let claim = token.map(|token| token.claim).unwrap_or_default();
        let (mut wanted, join) = self.want(channel, subscription, claim, wishes, since);
        wanted.wants_112 = command.wants_112();
        effects.push(Effect::Join(join));
        self.pending = Some(Box::new(Pending::Subscribe { id, wanted }));
        Ok(())
    }

    /// The filter that the client wants, where the operator lets it have one.
    fn filter_of(
        &self,
        channel: &ChannelName,
        tf: Option<&RawValue>,
    ) -> Result<Option<Arc<Filter>>, Refusal> {
        let Some(tf) = tf else { return Ok(None) };
        let namespaces = self.rules.namespaces.load();
        if !namespaces.options_of(channel).is_some_and(|options| options.allow_tags_filter) {
            return Err(ErrorCode::BadRequest.into());
        }
        let filter = Filter::parse(tf.get()).map_err(|_| ErrorCode::BadRequest)?;
        Ok(Some(Arc::new(filter)))
    }

    /// Where every subscription begins with the latest publication: from nowhere.
    fn recovers_anyway(&self, channel: &ChannelName) -> Option<Since> {
        let namespaces = self.rules.namespaces.load();
        let options = namespaces.options_of(channel).filter(|o| o.is_cache() && o.auto_cache_recover)?;
        options.has_history().then(|| Since { epoch: String::new(), offset: 0 })
    }

    /// A subscription token that is for this channel, user and connection.
    pub(super) fn subscription_token(
        &self,
        token: &str,
        channel: &ChannelName,
        used: TokenUse,
        now: Moment,
    ) -> Result<SubscriptionToken, Refusal> {
        let token = self.rules.keys.subscription(token, now.wall);
        let token = token.map_err(|error| Refusal::of_token(used, error))?;
        let ours = token.client.as_ref().is_none_or(|client| *client == self.id.to_string());
        if token.channel == *channel && token.user == self.user() && ours {
            Ok(token)
        } else {
            Err(Refusal::FOREIGN_TOKEN)
        }
    }

    /// What the hub must do for a subscription, and what to remember until it has.
    pub(super) fn want(
        &self,
        channel: ChannelName,
        subscription: Subscription,
        claim: SubClaim,
        wishes: Wishes,
        since: Option<Since>,
    ) -> (Wanted, Join) {
        let qualities = match self.rules.namespaces.load().options_of(&channel) {
            Some(options) => Qualities::configured(options, claim.overrides, &wishes),
            None => Qualities::BUILT_IN,
        };
        let seen = qualities.presence || qualities.announced;
        let attendance = seen.then(|| Attendance {
            client: self.id,
            principal: self.principal.clone(),
            chan_info: claim.info.clone(),
            listed: qualities.presence,
            announced: qualities.announced,
        });
        let join = Join {
            channel: channel.clone(),
            recover: since.filter(|_| qualities.recoverable),
            positioned: qualities.positioned,
            attendance,
            hears_others: qualities.hears_others,
            delta: qualities.delta,
            filter: wishes.filter.clone(),
        };
        let subscription =
            Subscription { positioned: qualities.positioned, chan_info: claim.info, ..subscription };
        let wanted = Wanted {
            channel,
            subscription,
            recoverable: qualities.recoverable,
            delta: qualities.delta,
            filter: wishes.filter,
            data: claim.data,
            wants_112: false,
            lost: false,
        };
        (wanted, join)
    }

    /// The entry of a `subscribe` is on hold, or could not be made.
    pub(super) fn subscribe_joined(
        &mut self,
        id: u32,
        mut wanted: Wanted,
        channel: ChannelName,
        joined: Option<Joined>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut joined) = joined else {
            return self.refuse(id, ErrorCode::Internal.into(), effects);
        };
        // The same name, but one text for all who have it.
        wanted.channel = channel;
        if wanted.wants_112 && joined.replay == Replay::Lost {
            effects.push(Effect::Leave(wanted.channel));
            return self.refuse(id, ErrorCode::UnrecoverablePosition.into(), effects);
        }
        let live = live_from(&joined);
        wanted.sift(&mut joined);
        let result = wanted.result(&joined, now);
        let mut text = String::new();
        Reply::Subscribe(&result).write(&mut text, id);
        say_missed(effects, text, has_missed(&joined));
        effects.push(Effect::Live(wanted.channel.clone(), live));
        let lost = wanted.lost && wanted.subscription.positioned;
        self.subscriptions.insert(wanted.channel.clone(), wanted.subscription);
        if lost {
            self.end_subscription(&wanted.channel, UnsubscribeCode::InsufficientState, effects);
        }
    }

    /// `unsubscribe`: not being subscribed is no error, whatever the name.
    pub(super) fn unsubscribe(&mut self, id: u32, command: Unsubscribe<'_>, effects: &mut Vec<Effect>) {
        if let Some(channel) = self.subscriptions.remove(&command.channel) {
            effects.push(Effect::Leave(channel));
        }
        say(effects, id, &Reply::Unsubscribe);
    }
}
