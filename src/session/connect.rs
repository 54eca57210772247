//! `connect` (protocol §4.1, §10.1): who the client is, and the subscriptions that its token
//! brings. Either all of them begin, or none does.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::connection::{Connection, VERSION};
use super::effect::{Effect, Joined, Since};
use super::pending::{
    Admitted, Connecting, JoinState, Pending, PendingSubscription, RequestedRecovery, has_recovered,
    live_from,
};
use super::state::{CommandResult, Phase};
use super::subscribe::push_recovered;
use super::subscriptions::{RequestedFlags, Subscription};
use super::timers::Now;
use crate::domain::access::{Action, Principal, ResourceInfo};
use crate::domain::channel::ChannelName;
use crate::limits::user_connections::Capacity;
use crate::protocol::code::{DisconnectCode, ErrorCode, Refusal, TokenUse};
use crate::protocol::command::Connect;
use crate::protocol::reply::ConnectResult;

impl Connection {
    pub(super) fn connect(
        &mut self,
        id: u32,
        command: Connect<'_>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> CommandResult {
        self.principal = Rc::new(self.authenticate(&command.token, now)?);
        let mut requested = self.requested_recovery(&command)?;
        let Some(channels) = self.check_server_side(&requested, effects)? else { return Ok(()) };
        let channels = channels.into_iter().map(|(channel, resource)| {
            let requested = requested.remove(&channel).unwrap_or_default();
            (channel, resource, requested)
        });
        let admitted = Admitted { id, channels: channels.collect() };
        let (counted, claim) = self.context.users.open(self.user()).ok_or(DisconnectCode::ConnectionLimit)?;
        self.counted = Some(counted);
        let pending = match claim {
            None => self.connect_admitted(admitted, now, effects),
            Some(claim) => {
                effects.push(Effect::Claim(claim));
                Some(Pending::Claim(admitted))
            }
        };
        self.pending = pending.map(Box::new);
        Ok(())
    }

    /// The limit of the user's connections has been checked across all nodes.
    pub(super) fn connect_claimed(
        &mut self,
        admitted: Admitted,
        capacity: Capacity,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let code = match capacity {
            Capacity::Available => return self.connect_admitted(admitted, now, effects),
            Capacity::Exceeded => DisconnectCode::ConnectionLimit,
            // The client may try again later.
            Capacity::Unknown => DisconnectCode::TooManyRequests,
        };
        self.close(code, effects);
        None
    }

    /// Begins with the subscriptions.
    fn connect_admitted(
        &mut self,
        Admitted { id, channels }: Admitted,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let principal = self.principal.clone();
        let mut subscriptions = Vec::with_capacity(channels.len());
        for (channel, resource, (since, delta)) in channels {
            let claim = principal.sub_claim(&channel).cloned().unwrap_or_default();
            let subscription =
                Subscription { server_side: true, ..Subscription::default() }.of_resource(resource);
            let requested = RequestedFlags { delta, ..RequestedFlags::default() };
            let (pending, join) = self.prepare_subscription(channel, subscription, claim, requested, since);
            effects.push(Effect::Join(join));
            subscriptions.push((pending, JoinState::Pending));
        }
        self.continue_connect(Connecting { id, subscriptions }, now, effects)
    }

    fn authenticate(&self, token: &str, now: Now) -> Result<Principal, Refusal> {
        let options = &self.context.options;
        if token.is_empty() && (options.insecure || options.allow_anonymous_connect_without_token) {
            return Ok(Principal::default());
        }
        let principal = if options.insecure {
            self.context.keys.authenticate_untimed(token)
        } else {
            self.context.keys.authenticate(token, now.wall)
        };
        let principal = principal.map_err(|error| Refusal::of_token(TokenUse::Connect, error))?;
        self.context.revocations.check(&principal, now.wall).map_err(Refusal::from)?;
        Ok(principal)
    }

    /// The channels that the client names, with its place in those that it wants to recover. What
    /// it may not have is ignored later; what cannot be is not the protocol.
    fn requested_recovery(
        &self,
        command: &Connect<'_>,
    ) -> Result<BTreeMap<ChannelName, RequestedRecovery>, Refusal> {
        let mut requested = BTreeMap::new();
        for (name, resume) in &command.subs {
            let channel = ChannelName::parse(name).map_err(|_| DisconnectCode::BadRequest)?;
            if !self.is_declared(&channel) {
                return Err(DisconnectCode::BadRequest.into());
            }
            let since = Since { epoch: resume.epoch.to_string(), offset: resume.offset };
            requested.insert(channel, (resume.recover.then_some(since), resume.delta.is_some()));
        }
        Ok(requested)
    }

    /// The channels of the token, and the user's own one.
    fn server_side(&self) -> BTreeSet<ChannelName> {
        let personal = self.context.options.personal.as_ref();
        let own = personal.and_then(|own| self.principal.personal_channel(own.namespace.as_deref()));
        self.principal.channels.iter().cloned().chain(own).collect()
    }

    /// The channels that begin with the connection: those of the token, all of which the client must
    /// be allowed to have, and where it cannot subscribe later those it asked for and may have.
    /// Answers what stands behind each. `None`: one is being looked up.
    fn check_server_side(
        &mut self,
        requested: &BTreeMap<ChannelName, RequestedRecovery>,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Vec<(ChannelName, ResourceInfo)>>, Refusal> {
        let channels = self.server_side();
        if !channels.iter().all(|channel| self.is_declared(channel)) {
            return Err(ErrorCode::UnknownChannel.into());
        }
        let others = requested.keys().filter(|channel| self.is_uni() && !channels.contains(*channel));
        let others: Vec<_> = others.cloned().collect();
        if channels.len() + others.len() > self.context.options.channel_limit {
            return Err(DisconnectCode::ChannelLimit.into());
        }
        let mut admitted = Vec::with_capacity(channels.len() + others.len());
        for channel in channels {
            let Some(resource) = self.resource_of(&channel, effects)? else { return Ok(None) };
            self.may(Action::Subscribe, &channel, &resource, false, false)?;
            admitted.push((channel, resource));
        }
        for channel in others {
            let Some(resource) = self.resource_of(&channel, effects)? else { return Ok(None) };
            if self.may(Action::Subscribe, &channel, &resource, false, false).is_ok() {
                admitted.push((channel, resource));
            }
        }
        Ok(Some(admitted))
    }

    fn is_declared(&self, channel: &ChannelName) -> bool {
        channel.is_built_in() || self.context.namespaces.load().options_of(channel).is_some()
    }

    /// The subscriber of a server-side subscription is paused, or could not be made.
    pub(super) fn connect_joined(
        &mut self,
        mut connecting: Connecting,
        channel: ChannelName,
        joined: Option<Joined>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let awaited = |(pending, state): &&mut (PendingSubscription, JoinState)| {
            pending.channel == channel && matches!(state, JoinState::Pending)
        };
        if let Some((pending, state)) = connecting.subscriptions.iter_mut().find(awaited) {
            // The same name, but one text for all who have it.
            pending.channel = channel;
            *state = joined.map_or(JoinState::Failed, JoinState::Joined);
        }
        self.continue_connect(connecting, now, effects)
    }

    /// Keeps waiting while joins are pending, then answers the connect.
    fn continue_connect(
        &mut self,
        connecting: Connecting,
        now: Now,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        if connecting.subscriptions.iter().any(|(_, state)| matches!(state, JoinState::Pending)) {
            return Some(Pending::Connect(connecting));
        }
        let all = connecting.subscriptions.len();
        let joined = connecting.subscriptions.into_iter().filter_map(|(pending, state)| match state {
            JoinState::Joined(joined) => Some((pending, joined)),
            JoinState::Pending | JoinState::Failed => None,
        });
        let joined: Vec<_> = joined.collect();
        if joined.iter().any(|(pending, _)| pending.lost && pending.subscription.positioned) {
            self.close(DisconnectCode::InsufficientState, effects);
        } else if joined.len() < all {
            effects.extend(joined.into_iter().map(|(pending, _)| Effect::Leave(pending.channel)));
            self.refuse(connecting.id, ErrorCode::Internal.into(), effects);
        } else {
            self.open(connecting.id, joined, now, effects);
        }
        None
    }

    /// All joins succeeded: the connection is open.
    fn open(
        &mut self,
        id: u32,
        joined: Vec<(PendingSubscription, Joined)>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let interval = self.context.options.ping_interval;
        self.phase = Phase::Open;
        self.timers.expires = self.principal.expires_at;
        self.timers.start_pings(now.mono, interval);
        let subs: Vec<_> =
            joined.iter().map(|(pending, joined)| (&pending.channel, pending.result(joined, now))).collect();
        let (session, node) = self.session_and_node();
        let result = ConnectResult {
            client: &self.id.to_string(),
            version: VERSION,
            // Rounded up: clients wait a little longer than this.
            ping: u32::try_from(interval.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
            pong: !interval.is_zero() && !self.is_uni(),
            ttl: self.timers.expires.map(|end| now.ttl(end)),
            subs: &subs,
            session,
            node,
            time: u64::try_from(now.wall.timestamp_millis()).unwrap_or_default(),
            ..ConnectResult::default()
        };
        let has_recovered = joined.iter().any(|(_, joined)| has_recovered(joined));
        push_recovered(effects, self.write_connected(id, &result), has_recovered);
        for (pending, joined) in joined {
            effects.push(Effect::GoLive(pending.channel.clone(), live_from(&joined)));
            self.subscriptions.insert(pending.channel, pending.subscription);
        }
        let single = self.context.options.personal.as_ref().is_some_and(|personal| personal.single);
        if single && !self.principal.is_anonymous() {
            effects.push(Effect::DisconnectOlder);
        }
    }
}
