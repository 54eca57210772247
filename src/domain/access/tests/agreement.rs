//! The rule against a second formulation of it that shares no code: names are taken apart by
//! hand, patterns matched by recursion, and every verdict is a list of reasons. The vocabulary is
//! small, so that claims and channels meet often.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{BUILD, JOB};
use crate::domain::access::*;
use crate::domain::channel::ChannelName;
use crate::domain::options::ChannelOptions;
use crate::domain::pattern::ChannelPattern;
use crate::domain::units::Span;

pub(super) const USERS: [&str; 5] = ["", "42", "43", "ana", "4"];
pub(super) const OWNERS: [&str; 3] = ["acme", "Acme", "other"];
pub(super) const REPOS: [&str; 4] = ["acme/api", "acme/web", "other/one", "Acme/api"];
pub(super) const CHANNELS: [&str; 26] = [
    "repo:acme/api",
    "repo:other/one",
    "repo:Acme/api",
    "repo:acme/apix",
    "org:acme",
    "org:other",
    "org:Acme",
    JOB,
    BUILD,
    "db:orders",
    "#42",
    "#ana",
    "#42,43",
    "ns:#42",
    "ns:#,43",
    "ns:a",
    "ns:dialog#42,43",
    "plain",
    "$plain",
    "$ns:a",
    "$ns:x#42",
    "$#42",
    "x#ana",
    "ns:",
    "#",
    "a#42#43",
];
pub(super) const PATTERNS: [&str; 12] = [
    "*",
    "repo:*",
    "repo:acme/*",
    "*/api",
    "org:acme",
    "job:*",
    "build:*",
    "db:*",
    "ns:*",
    "$*",
    "#*",
    "p*n",
];

fn channels() -> impl Strategy<Value = ChannelName> {
    select(&CHANNELS[..]).prop_map(|text| ChannelName::parse(text).expect(text))
}

fn texts(from: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    subsequence(from, 0..=from.len().min(2)).prop_map(|list| list.into_iter().map(str::to_owned).collect())
}

fn capability() -> impl Strategy<Value = Capability> {
    (subsequence(&PATTERNS[..], 0..=2), any::<[bool; 4]>()).prop_map(|(patterns, bits)| {
        let [subscribe, publish, history, presence] = bits;
        Capability {
            channels: patterns.into_iter().map(ChannelPattern::new).collect(),
            allow: Rights { subscribe, publish, history, presence },
        }
    })
}

fn principal() -> impl Strategy<Value = Principal> {
    let named = prop::collection::btree_set(channels(), 0..=1);
    let caps = prop::collection::vec(capability(), 0..=1);
    (select(&USERS[..]), texts(&OWNERS), texts(&REPOS), 0..8u8, caps, named).prop_map(
        |(user, orgs, repos, admin, caps, channels)| Principal {
            user: user.to_owned(),
            orgs: orgs.into_iter().collect(),
            repos: repos.into_iter().collect(),
            scopes: Scopes { admin: admin == 0, ..Scopes::default() },
            caps: caps.into(),
            channels: channels.into_iter().collect(),
            ..Principal::default()
        },
    )
}

#[allow(clippy::needless_update, reason = "options that the rule does not look at may come")]
fn options() -> impl Strategy<Value = Option<ChannelOptions>> {
    any::<u16>().prop_map(|bits| {
        let bit = |n: u32| bits & (1 << n) != 0;
        (bits % 11 != 0).then(|| ChannelOptions {
            history_size: u32::from(bit(0)),
            history_ttl: Span::secs(u64::from(bits % 5 != 0)),
            presence: bit(1),
            allow_subscribe_for_client: bit(2),
            allow_subscribe_for_anonymous: bit(3),
            allow_publish_for_client: bit(4),
            allow_publish_for_subscriber: bit(5),
            allow_publish_for_anonymous: bit(6),
            allow_history_for_client: bit(7),
            allow_history_for_subscriber: bit(8),
            allow_history_for_anonymous: bit(9),
            allow_presence_for_client: bit(10),
            allow_presence_for_subscriber: bit(11),
            allow_presence_for_anonymous: bit(12),
            allow_user_limited_channels: bit(13),
            ..ChannelOptions::default()
        })
    })
}

fn items() -> impl Strategy<Value = Resource<'static>> {
    let repo = select(&REPOS[..]).prop_map(|repo| Resource::Job { repo: repo.split_once('/') });
    let build = (select(&USERS[..]), prop::option::of(select(&OWNERS[..])))
        .prop_map(|(user, org)| Resource::Build { user, org });
    prop_oneof![3 => repo, 3 => build, 1 => Just(Resource::Job { repo: None }), 1 => Just(Resource::Unknown), 1 => Just(Resource::NotNeeded)]
}

fn actions() -> impl Strategy<Value = Action> {
    select(&[Action::Subscribe, Action::Publish, Action::History, Action::Presence][..])
}

/// `*` as "nothing, or one character and `*` again".
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) if fits(rest, name) => true,
        ([b'*', ..], [_, left @ ..]) => fits(pattern, left),
        ([p, rest @ ..], [n, left @ ..]) if p == n => fits(rest, left),
        _ => false,
    }
}

fn cap(p: &Principal, right: impl Fn(Rights) -> bool, name: &str) -> bool {
    p.caps
        .iter()
        .filter(|cap| right(cap.allow))
        .flat_map(|cap| &cap.channels)
        .any(|pattern| fits(pattern.as_str().as_bytes(), name.as_bytes()))
}

fn is(p: &Principal, user: &str) -> bool {
    !user.is_empty() && p.user == user
}

fn sees(p: &Principal, full_name: &str) -> bool {
    let owner = full_name.split('/').next().unwrap_or_default();
    let channel = format!("repo:{full_name}");
    p.scopes.admin
        || p.orgs.iter().any(|org| org == owner)
        || p.repos.iter().any(|repo| repo == full_name)
        || p.channels.iter().any(|named| named.as_str() == channel)
        || cap(p, |r| r.subscribe, &channel)
}

pub(super) fn naive(p: &Principal, action: Action, name: &str, f: &AccessContext<'_>) -> Result<(), Denied> {
    use Action::{History, Presence, Publish, Subscribe};
    let denied = Err(Denied::Forbidden);
    let named = f.admitted_by_token || p.channels.iter().any(|channel| channel.as_str() == name);
    let right = |r: Rights| match action {
        Subscribe => r.subscribe,
        Publish => r.publish,
        History => r.history,
        Presence => r.presence,
    };

    // Behind a `#` stands a user, whose id may have a colon.
    let parts = name.split_once(':').filter(|_| !name.starts_with('#'));
    let (space, rest) = parts.unwrap_or(("", name));
    if ["repo", "org", "job", "build", "db"].contains(&space) {
        let by_claims = match (space, f.resource) {
            ("repo", _) => sees(p, rest),
            ("org", _) => p.orgs.iter().any(|org| org == rest),
            ("job", Resource::Job { repo: Some((owner, name)) }) => sees(p, &format!("{owner}/{name}")),
            ("build", Resource::Build { user, org }) => {
                is(p, user) || p.orgs.iter().any(|o| Some(o.as_str()) == org)
            }
            ("job", Resource::Job { .. }) | ("db", _) => false,
            _ if action == Presence => return Err(Denied::NotAvailable),
            _ => return denied,
        };
        let subscribes = by_claims || named || p.scopes.admin || cap(p, |r| r.subscribe, name);
        return match action {
            Presence => Err(Denied::NotAvailable),
            Subscribe if subscribes => Ok(()),
            History if subscribes || f.subscribed || cap(p, |r| r.history, name) => Ok(()),
            _ => denied,
        };
    }

    let Some(o) = f.options else { return Err(Denied::UnknownChannel) };
    let off = match action {
        History => o.history_size == 0 || o.history_ttl == Span::secs(0),
        Presence => !o.presence,
        _ => false,
    };
    let (client, subscriber, anonymous) = match action {
        Subscribe => (o.allow_subscribe_for_client, false, o.allow_subscribe_for_anonymous),
        Publish => {
            (o.allow_publish_for_client, o.allow_publish_for_subscriber, o.allow_publish_for_anonymous)
        }
        History => {
            (o.allow_history_for_client, o.allow_history_for_subscriber, o.allow_history_for_anonymous)
        }
        Presence => {
            (o.allow_presence_for_client, o.allow_presence_for_subscriber, o.allow_presence_for_anonymous)
        }
    };
    let signed_in = anonymous || !p.user.is_empty();
    let opened = f.insecure || (client && signed_in) || (subscriber && f.subscribed && signed_in);

    let personal = rest.strip_prefix('#').filter(|user| !user.is_empty() && !user.contains(','));
    if let (Some(user), false) = (personal, name.starts_with('$')) {
        return match action {
            _ if !is(p, user) => denied,
            _ if off => Err(Denied::NotAvailable),
            Publish if !opened && !cap(p, right, name) => denied,
            _ => Ok(()),
        };
    }

    let list = name.rfind('#').filter(|_| o.allow_user_limited_channels).map(|at| &name[at + 1..]);
    let listed = list.map(|users| users.split(',').any(|user| is(p, user)));
    let inside = named || (action != Subscribe && f.subscribed);
    match listed {
        _ if off => Err(Denied::NotAvailable),
        _ if cap(p, right, name) => Ok(()),
        _ if action == Subscribe && named => Ok(()),
        _ if name.starts_with('$') && !inside => denied,
        Some(false) if !inside => denied,
        Some(true) if action == Subscribe => Ok(()),
        _ if opened => Ok(()),
        _ => denied,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_formulations_agree(
        who in principal(), action in actions(), channel in channels(), options in options(),
        resource in items(), [subscribed, admitted_by_token, insecure] in any::<[bool; 3]>(),
    ) {
        let options = options.as_ref();
        let context = AccessContext { options, resource, subscribed, admitted_by_token, insecure };
        let verdict = may(&who, action, &channel, &context);
        prop_assert_eq!(verdict, naive(&who, action, channel.as_str(), &context));
        if channel.is_built_in() && action == Action::Publish {
            prop_assert!(verdict.is_err());
        }
    }

    #[test]
    fn a_default_channel_may_be_subscribed_to(who in principal()) {
        for channel in default_channels(&who) {
            prop_assert_eq!(may(&who, Action::Subscribe, &channel, &AccessContext::default()), Ok(()));
        }
    }

    #[test]
    fn the_matcher_agrees_with_recursion(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
        let quick = ChannelPattern::new(&pattern).matches(&name);
        prop_assert_eq!(quick, fits(pattern.as_bytes(), name.as_bytes()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_name_makes_the_rule_panic(
        who in principal(), action in actions(), text in "(\\$|#|[a-z]{1,5}:)?[ -~]{1,20}", options in options(),
    ) {
        if let Ok(channel) = ChannelName::parse(&text) {
            let _ = may(&who, action, &channel, &AccessContext { options: options.as_ref(), ..AccessContext::default() });
        }
    }
}

#[test]
fn a_hostile_pattern_costs_no_more_than_its_length() {
    let name = "a".repeat(255);
    let pattern = ChannelPattern::new(&"*a".repeat(4_000));
    assert!(!pattern.matches(&name));
    assert!(ChannelPattern::new(&"*a*".repeat(80)).matches(&name));
    assert!(!ChannelPattern::new(&format!("{}b", "*a*".repeat(80))).matches(&name));
}
