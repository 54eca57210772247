//! `connect` (protocol §4.1, §10.1): who the client is, and the subscriptions that its token
//! brings. All of them begin, or none does. Owns nothing once the reply is said.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::clock::Moment;
use super::effect::{Effect, Joined, Since};
use super::session::{Connection, VERSION};
use super::state::{Pending, Performed, Phase};
use super::subscribe::{Wanted, has_missed, live_from, say_missed};
use super::subscriptions::{Subscription, Wishes};
use super::users::Room;
use crate::domain::access::{Action, KnownItem, Principal};
use crate::domain::channel::ChannelName;
use crate::protocol::code::{DisconnectCode, ErrorCode, Refusal, TokenUse};
use crate::protocol::command::Connect;
use crate::protocol::reply::ConnectResult;

/// A connect that may begin if there is room for it: the channels that it begins with.
#[derive(Debug)]
pub(super) struct Admitted {
    id: u32,
    channels: Vec<(ChannelName, KnownItem, Asked)>,
}

/// A connect whose subscriptions are being joined.
#[derive(Debug)]
pub(super) struct Connecting {
    id: u32,
    subscriptions: Vec<(Wanted, Answer)>,
}

/// Where a client was, if it wants what it missed, and whether it takes differences.
type Asked = (Option<Since>, bool);

/// What became of a join.
#[derive(Debug)]
enum Answer {
    Awaited,
    In(Joined),
    Out,
}

impl Connecting {
    /// Events are missing on a channel before its subscription began.
    pub(super) fn lost(&mut self, channel: &ChannelName) {
        for (wanted, _) in &mut self.subscriptions {
            wanted.lost |= wanted.channel == *channel;
        }
    }
}

impl Connection {
    /// `connect`
    pub(super) fn connect(
        &mut self,
        id: u32,
        command: Connect<'_>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Performed {
        self.principal = Rc::new(self.authenticate(&command.token, now)?);
        let mut asked = self.asked(&command)?;
        let Some(channels) = self.check_server_side(&asked, effects)? else { return Ok(()) };
        let channels = channels.into_iter().map(|(channel, item)| {
            let asked = asked.remove(&channel).unwrap_or_default();
            (channel, item, asked)
        });
        let admitted = Admitted { id, channels: channels.collect() };
        let (counted, claim) = self.rules.users.open(self.user()).ok_or(DisconnectCode::ConnectionLimit)?;
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

    /// Whether there is room on all nodes is known, as far as it can be.
    pub(super) fn connect_claimed(
        &mut self,
        admitted: Admitted,
        room: Room,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let code = match room {
            Room::Fits => return self.connect_admitted(admitted, now, effects),
            Room::Full => DisconnectCode::ConnectionLimit,
            // Later somebody knows.
            Room::InDoubt => DisconnectCode::TooManyRequests,
        };
        self.close(code, effects);
        None
    }

    /// Begins with the subscriptions.
    fn connect_admitted(
        &mut self,
        Admitted { id, channels }: Admitted,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let principal = self.principal.clone();
        let mut subscriptions = Vec::with_capacity(channels.len());
        for (channel, item, (since, delta)) in channels {
            let claim = principal.sub_claim(&channel).cloned().unwrap_or_default();
            let subscription = Subscription { server_side: true, ..Subscription::default() }.of_item(item);
            let wishes = Wishes { delta, ..Wishes::default() };
            let (wanted, join) = self.want(channel, subscription, claim, wishes, since);
            effects.push(Effect::Join(join));
            subscriptions.push((wanted, Answer::Awaited));
        }
        self.connect_going_on(Connecting { id, subscriptions }, now, effects)
    }

    fn authenticate(&self, token: &str, now: Moment) -> Result<Principal, Refusal> {
        let options = &self.rules.options;
        if token.is_empty() && (options.insecure || options.allow_anonymous_connect_without_token) {
            return Ok(Principal::default());
        }
        let principal = if options.insecure {
            self.rules.keys.authenticate_untimed(token)
        } else {
            self.rules.keys.authenticate(token, now.wall)
        };
        let principal = principal.map_err(|error| Refusal::of_token(TokenUse::Connect, error))?;
        self.rules.revocations.check(&principal, now.wall).map_err(Refusal::from)?;
        Ok(principal)
    }

    /// The channels that the client names, with its place in those that it wants to recover. What
    /// it may not have is ignored later; what cannot be is not the protocol.
    fn asked(&self, command: &Connect<'_>) -> Result<BTreeMap<ChannelName, Asked>, Refusal> {
        let mut asked = BTreeMap::new();
        for (name, resume) in &command.subs {
            let channel = ChannelName::parse(name).map_err(|_| DisconnectCode::BadRequest)?;
            if !self.is_declared(&channel) {
                return Err(DisconnectCode::BadRequest.into());
            }
            let since = Since { epoch: resume.epoch.to_string(), offset: resume.offset };
            asked.insert(channel, (resume.recover.then_some(since), resume.delta.is_some()));
        }
        Ok(asked)
    }

    /// The channels of the token, and the user's own one.
    fn server_side(&self) -> BTreeSet<ChannelName> {
        let personal = self.rules.options.personal.as_ref();
        let own = personal.and_then(|own| self.principal.personal_channel(own.namespace.as_deref()));
        self.principal.channels.iter().cloned().chain(own).collect()
    }

    /// The channels that begin with the connection: those of the token, all of which the client must
    /// be allowed to have, and where it cannot subscribe later those it asked for and may have.
    /// Answers what stands behind each. `None`: one is being looked up.
    fn check_server_side(
        &mut self,
        asked: &BTreeMap<ChannelName, Asked>,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<Vec<(ChannelName, KnownItem)>>, Refusal> {
        let channels = self.server_side();
        if !channels.iter().all(|channel| self.is_declared(channel)) {
            return Err(ErrorCode::UnknownChannel.into());
        }
        let others = asked.keys().filter(|channel| self.is_uni() && !channels.contains(*channel));
        let others: Vec<_> = others.cloned().collect();
        if channels.len() + others.len() > self.rules.options.channel_limit {
            return Err(DisconnectCode::ChannelLimit.into());
        }
        let mut admitted = Vec::with_capacity(channels.len() + others.len());
        for channel in channels {
            let Some(item) = self.item_of(&channel, effects)? else { return Ok(None) };
            self.may(Action::Subscribe, &channel, &item, false, false)?;
            admitted.push((channel, item));
        }
        for channel in others {
            let Some(item) = self.item_of(&channel, effects)? else { return Ok(None) };
            if self.may(Action::Subscribe, &channel, &item, false, false).is_ok() {
                admitted.push((channel, item));
            }
        }
        Ok(Some(admitted))
    }

    fn is_declared(&self, channel: &ChannelName) -> bool {
        channel.is_built_in() || self.rules.namespaces.load().options_of(channel).is_some()
    }

    /// The entry of a server-side subscription is on hold, or could not be made.
    pub(super) fn connect_joined(
        &mut self,
        mut connecting: Connecting,
        channel: ChannelName,
        joined: Option<Joined>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        let awaited = |(wanted, answer): &&mut (Wanted, Answer)| {
            wanted.channel == channel && matches!(answer, Answer::Awaited)
        };
        if let Some((wanted, answer)) = connecting.subscriptions.iter_mut().find(awaited) {
            // The same name, but one text for all who have it.
            wanted.channel = channel;
            *answer = joined.map_or(Answer::Out, Answer::In);
        }
        self.connect_going_on(connecting, now, effects)
    }

    /// Waits on, or answers the connect when nothing is awaited any more.
    fn connect_going_on(
        &mut self,
        connecting: Connecting,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) -> Option<Pending> {
        if connecting.subscriptions.iter().any(|(_, answer)| matches!(answer, Answer::Awaited)) {
            return Some(Pending::Connect(connecting));
        }
        let all = connecting.subscriptions.len();
        let joined = connecting.subscriptions.into_iter().filter_map(|(wanted, answer)| match answer {
            Answer::In(joined) => Some((wanted, joined)),
            Answer::Awaited | Answer::Out => None,
        });
        let joined: Vec<_> = joined.collect();
        if joined.iter().any(|(wanted, _)| wanted.lost && wanted.subscription.positioned) {
            self.close(DisconnectCode::InsufficientState, effects);
        } else if joined.len() < all {
            effects.extend(joined.into_iter().map(|(wanted, _)| Effect::Leave(wanted.channel)));
            self.refuse(connecting.id, ErrorCode::Internal.into(), effects);
        } else {
            self.open(connecting.id, joined, now, effects);
        }
        None
    }

    /// Everything is there: the connection is open.
    fn open(&mut self, id: u32, joined: Vec<(Wanted, Joined)>, now: Moment, effects: &mut Vec<Effect>) {
        let interval = self.rules.options.ping_interval;
        self.phase = Phase::Open;
        self.clock.expires = self.principal.expires_at.and_then(|end| now.until(end));
        self.clock.start_pings(now.mono, interval);
        let subs: Vec<_> =
            joined.iter().map(|(wanted, joined)| (&wanted.channel, wanted.result(joined, now))).collect();
        let (session, node) = self.session_and_node();
        let result = ConnectResult {
            client: &self.id.to_string(),
            version: VERSION,
            // Rounded up: clients wait a little longer than this.
            ping: u32::try_from(interval.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
            pong: !interval.is_zero() && !self.is_uni(),
            ttl: self.clock.expires.map(|end| now.ttl(end)),
            subs: &subs,
            session,
            node,
            time: u64::try_from(now.wall.timestamp_millis()).unwrap_or_default(),
            ..ConnectResult::default()
        };
        let has_missed = joined.iter().any(|(_, joined)| has_missed(joined));
        say_missed(effects, self.write_connected(id, &result), has_missed);
        for (wanted, joined) in joined {
            effects.push(Effect::Live(wanted.channel.clone(), live_from(&joined)));
            self.subscriptions.insert(wanted.channel, wanted.subscription);
        }
        let single = self.rules.options.personal.as_ref().is_some_and(|personal| personal.single);
        if single && !self.principal.is_anonymous() {
            effects.push(Effect::EndOlder);
        }
    }
}
