//! A million pairs of claims and channel, thrown by dice, against the second formulation. Claims
//! and names are made of a few parts, so that they meet often; the options come from namespaces,
//! which are looked up by hand as well.

use super::agreement::{CHANNELS, OWNERS, PATTERNS, REPOS, USERS, naive};
use super::{BUILD, JOB};
use crate::domain::access::*;
use crate::domain::channel::ChannelName;
use crate::domain::options::{ChannelOptions, Namespaces};
use crate::domain::pattern::ChannelPattern;
use crate::domain::units::Span;

const PAIRS: usize = 1_000_000;
/// Pairs until the dice throw another principal, and until they declare other namespaces.
const EACH_WHO: usize = 16;
const EACH_SPACES: usize = 512;
const NAMES: usize = 4_000;

/// SplitMix64: in a debug build the generators of a library take longer than the rule.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.throw() % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn coin(&mut self) -> bool {
        self.one_in(2)
    }

    fn some<T: Copy, C: FromIterator<T>>(&mut self, from: &[T], most: usize) -> C {
        let count = self.below(most + 1);
        (0..count).map(|_| self.one_of(from)).collect()
    }

    fn name(&mut self) -> ChannelName {
        loop {
            let (owner, repo) = (self.one_of(&OWNERS), self.one_of(&REPOS));
            let (user, other) = (self.one_of(&USERS), self.one_of(&USERS));
            let space = self.one_of(&["ns", "other", "none", "$ns", "$other", "$none", ""]);
            let text = match self.below(12) {
                0 => format!("repo:{repo}"),
                1 => format!("org:{owner}"),
                2 => self.one_of(&[JOB, BUILD, "db:orders", "db:users"]).to_owned(),
                3 => format!("#{user}"),
                4 => format!("{space}:#{user}"),
                5 => format!("{space}:x#{user},{other}"),
                6 => format!("{space}:{user}"),
                7 => format!("#{user}:{other}"),
                8 => format!("${user}"),
                9 => self.one_of(&CHANNELS).to_owned(),
                10 => format!("x#{user}"),
                _ => (0..=self.below(8)).map(|_| self.one_of(b"a4$#:,/*") as char).collect(),
            };
            if let Ok(name) = ChannelName::parse(&text) {
                return name;
            }
        }
    }

    fn options(&mut self) -> ChannelOptions {
        ChannelOptions {
            history_size: u32::from(self.coin()),
            history_ttl: Span::secs(u64::from(!self.one_in(5))),
            presence: self.coin(),
            allow_subscribe_for_client: self.coin(),
            allow_subscribe_for_anonymous: self.coin(),
            allow_publish_for_client: self.coin(),
            allow_publish_for_subscriber: self.coin(),
            allow_publish_for_anonymous: self.coin(),
            allow_history_for_client: self.coin(),
            allow_history_for_subscriber: self.coin(),
            allow_history_for_anonymous: self.coin(),
            allow_presence_for_client: self.coin(),
            allow_presence_for_subscriber: self.coin(),
            allow_presence_for_anonymous: self.coin(),
            allow_user_limited_channels: self.coin(),
            ..ChannelOptions::default()
        }
    }

    fn spaces(&mut self) -> Namespaces {
        let named = ["ns", "other"].map(|name| (name.to_owned(), self.options()));
        Namespaces {
            without: (!self.one_in(8)).then(|| self.options()),
            personal: None,
            named: named.into(),
            ..Namespaces::default()
        }
    }

    fn who(&mut self, names: &[ChannelName]) -> Principal {
        let caps = (0..self.below(3)).map(|_| Capability {
            channels: self.some::<&str, Vec<_>>(&PATTERNS, 2).into_iter().map(ChannelPattern::new).collect(),
            allow: self.some::<&str, Vec<_>>(&["sub", "pub", "hst", "prs"], 3).into_iter().collect(),
        });
        let caps = caps.collect();
        let named = (0..self.below(4)).map(|_| names[self.below(names.len())].clone());
        Principal {
            caps,
            channels: named.collect(),
            user: self.one_of(&USERS).to_owned(),
            orgs: self.some::<&str, Vec<_>>(&OWNERS, 2).into_iter().map(str::to_owned).collect(),
            repos: self.some::<&str, Vec<_>>(&REPOS, 2).into_iter().map(str::to_owned).collect(),
            scopes: Scopes { admin: self.one_in(8), scan: self.coin(), publish: self.coin() },
            ..Principal::default()
        }
    }

    fn resource(&mut self) -> Resource<'static> {
        match self.below(9) {
            0 => Resource::NotNeeded,
            1 => Resource::Unknown,
            2 => Resource::Job { repo: None },
            3..6 => Resource::Job { repo: self.one_of(&REPOS).split_once('/') },
            _ => {
                Resource::Build { user: self.one_of(&USERS), org: self.coin().then(|| self.one_of(&OWNERS)) }
            }
        }
    }
}

/// The options of a name, found without the code that finds them.
fn by_hand<'a>(spaces: &'a Namespaces, name: &str) -> Option<&'a ChannelOptions> {
    let bare = name.trim_start_matches('$');
    match bare.find(':') {
        Some(_) if ["repo:", "org:", "job:", "build:", "db:"].iter().any(|own| name.starts_with(own)) => None,
        Some(end) if !name.starts_with('#') => spaces.named.get(&bare[..end]),
        _ => spaces.without.as_ref(),
    }
}

#[test]
fn a_million_pairs_of_claims_and_channel_find_no_difference() {
    let seed: u64 = rand::random();
    let mut dice = Dice(seed);
    let names: Vec<ChannelName> = (0..NAMES).map(|_| dice.name()).collect();
    let (mut who, mut spaces, mut allowed) = (Principal::default(), Namespaces::default(), 0_usize);
    for pair in 0..PAIRS {
        if pair % EACH_WHO == 0 {
            who = dice.who(&names);
        }
        if pair % EACH_SPACES == 0 {
            spaces = dice.spaces();
        }
        let channel = &names[dice.below(NAMES)];
        let options = spaces.options_of(channel);
        let context = AccessContext {
            options,
            resource: dice.resource(),
            subscribed: dice.one_in(3),
            admitted_by_token: dice.one_in(5),
            insecure: dice.one_in(8),
        };
        let action = dice.one_of(&[Action::Subscribe, Action::Publish, Action::History, Action::Presence]);
        let told = || format!("{action:?} {channel} {context:?} {who:?}, seed {seed}");
        assert_eq!(options, by_hand(&spaces, channel.as_str()), "{}", told());
        let verdict = may(&who, action, channel, &context);
        assert_eq!(verdict, naive(&who, action, channel.as_str(), &context), "{}", told());
        allowed += usize::from(verdict.is_ok());
    }
    // Dice that never or always allow compare nothing.
    assert!((PAIRS / 10..PAIRS * 9 / 10).contains(&allowed), "{allowed} were allowed, seed {seed}");
}
