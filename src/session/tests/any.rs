//! Any commands, outcomes, losses and times in any order: what must hold whatever happens.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::support::*;
use crate::domain::access::ResourceInfo;
use crate::session::effect::{Effect, Joined, LookedUp, Outcome, Published, Replay, Stored};
use crate::session::{ConnectionOptions, Now};

/// What the connection's token brings.
const SERVER_SIDE: [&str; 3] = ["build:0195d3a0-0000-7000-8000-000000000001", "kept:b", "lobby:c"];
const BUILD: &str = "build:0195d3a0-0000-7000-8000-000000000002";
const CHANNELS: [&str; 7] = ["chat:a", "kept:b", "lobby:c", "repo:acme/api", BUILD, "shut:d", "nope:e"];

/// What happens to a connection.
#[derive(Debug, Clone)]
enum Input {
    /// A frame of these lines.
    Frame(Vec<Line>),
    /// An effect that is under way ends, well or badly.
    Outcome(u8),
    /// An outcome that nobody asked for.
    Stray(u8),
    Lost(usize),
    Wait(u16),
}

#[derive(Debug, Clone)]
enum Line {
    Command(&'static str, usize, u8),
    Pong,
    Text(String),
}

fn lines() -> impl Strategy<Value = Line> {
    let methods = prop::sample::select(vec![
        "subscribe",
        "subscribe",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "rpc",
        "refresh",
        "sub_refresh",
        "ping",
    ]);
    prop_oneof![
        20 => (methods, 0..CHANNELS.len(), any::<u8>()).prop_map(|(name, at, how)| Line::Command(name, at, how)),
        3 => Just(Line::Pong),
        1 => "[ {}\"a-z:,0-9]{0,12}".prop_map(Line::Text),
    ]
}

fn inputs() -> impl Strategy<Value = Input> {
    prop_oneof![
        6 => prop::collection::vec(lines(), 1..5).prop_map(Input::Frame),
        8 => any::<u8>().prop_map(Input::Outcome),
        1 => any::<u8>().prop_map(Input::Stray),
        1 => (0..CHANNELS.len()).prop_map(Input::Lost),
        2 => (0..9_000_u16).prop_map(Input::Wait),
    ]
}

fn fields(method: &str, name: &str, how: u8) -> Value {
    let sub_token = |exp: i64| token(json!({"sub": "42", "channel": name, "exp": NOW + exp}));
    match (method, how % 5) {
        ("subscribe", 0) => json!({"channel": name, "token": sub_token(3)}),
        ("subscribe", 1) => json!({"channel": name, "recover": true, "offset": 3, "flag": how & 2}),
        ("sub_refresh", _) => json!({"channel": name, "token": sub_token(i64::from(how % 50))}),
        ("refresh", _) => {
            json!({"token": token(json!({"sub": "42", "exp": NOW + 50, "channels": SERVER_SIDE, "orgs": ["acme"]}))})
        }
        _ => json!({"channel": name, "data": how}),
    }
}

fn joined(how: u8) -> Option<Joined> {
    let missed = || vec![event(4), event(5)];
    match how % 5 {
        0 => None,
        1 => unkept(),
        2 => Some(Joined { position: Some(position(5)), replay: Replay::Lost }),
        3 => Some(Joined { position: Some(position(5)), replay: Replay::Found(position(3), missed()) }),
        _ => fresh(),
    }
}

/// The world around a connection, which checks every effect.
struct World {
    client: Client,
    /// Ids without a reply yet, in order.
    unanswered: VecDeque<u64>,
    /// Effects that are under way.
    under_way: VecDeque<Effect>,
    /// Subscribers by channel: whether they are live, or paused.
    subscribers: BTreeMap<String, bool>,
    unhandled: VecDeque<usize>,
    over: bool,
    last_id: u64,
}

impl World {
    fn new() -> Self {
        let options = ConnectionOptions { channel_limit: 4, ..ConnectionOptions::default() };
        let mut world = Self {
            client: Client::with(options),
            unanswered: VecDeque::new(),
            under_way: VecDeque::new(),
            subscribers: BTreeMap::new(),
            unhandled: VecDeque::new(),
            over: false,
            last_id: 1,
        };
        let claims = json!({"sub": "42", "exp": NOW + 20, "channels": SERVER_SIDE, "orgs": ["acme"]});
        world.frame(json!({"id": 1, "connect": {"token": token(claims)}}).to_string(), &[1]);
        world
    }

    fn frame(&mut self, text: String, ids: &[u64]) {
        self.unanswered.extend(ids);
        self.unhandled.push_back(text.len());
        self.client.frame(&text);
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Frame(lines) => {
                let mut ids = Vec::new();
                let mut line = |line| match line {
                    Line::Command(method, at, how) => {
                        self.last_id += 1;
                        ids.push(self.last_id);
                        json!({"id": self.last_id, method: fields(method, CHANNELS[at], how)}).to_string()
                    }
                    Line::Pong => "{}".to_owned(),
                    Line::Text(text) => text,
                };
                let lines: Vec<_> = lines.into_iter().map(&mut line).collect();
                self.frame(lines.join("\n"), &ids);
            }
            Input::Outcome(how) => self.finish(how),
            Input::Stray(how) => {
                // One of a kind that is not awaited.
                let outcome = match self.under_way.front() {
                    Some(Effect::Publish(_)) => Outcome::Presence(vec![]),
                    _ if how.is_multiple_of(2) => Outcome::Published(Published::Done),
                    _ => Outcome::Joined(channel("chat:never"), joined(how)),
                };
                self.client.outcome(outcome);
            }
            Input::Lost(at) => {
                self.client.lost(CHANNELS[at]);
            }
            Input::Wait(millis) => {
                self.client.wait(f64::from(millis) / 1000.0);
            }
        }
        self.check();
    }

    fn finish(&mut self, how: u8) {
        let any = usize::from(how >> 4) % self.under_way.len().max(1);
        let outcome = match self.under_way.remove(any) {
            None => return,
            Some(Effect::LookUp(channel)) => {
                let found = match how % 8 {
                    0 => LookedUp::Unavailable,
                    1 => LookedUp::Found(ResourceInfo::Unknown),
                    _ => LookedUp::Found(ResourceInfo::Build { user: "42".into(), org: None }),
                };
                Outcome::LookedUp(channel, found)
            }
            Some(Effect::Join(join)) => {
                let joined = joined(how);
                if joined.is_some() {
                    self.subscribers.insert(join.channel.to_string(), false);
                }
                Outcome::Joined(join.channel, joined)
            }
            Some(Effect::Publish(_)) => Outcome::Published(if how.is_multiple_of(4) {
                Published::Unavailable
            } else {
                Published::Done
            }),
            Some(Effect::ReadHistory(_)) => Outcome::History(match how % 3 {
                0 => Stored::Unavailable,
                1 => Stored::OtherEpoch,
                _ => Stored::Events(vec![event(4)], position(5)),
            }),
            Some(Effect::ReadPresence(_)) => Outcome::Presence(vec![]),
            Some(other) => panic!("{other:?} is not asynchronous"),
        };
        self.client.outcome(outcome);
    }

    fn check(&mut self) {
        for effect in self.client.take() {
            assert!(!self.over, "after the end: {effect:?}");
            match effect {
                Effect::Send(text) | Effect::SendReplay(text) => self.check_message(&text),
                Effect::GoLive(channel, _) => {
                    let subscriber = self.subscribers.insert(channel.to_string(), true);
                    assert_eq!(subscriber, Some(false), "{channel} goes live from hold");
                }
                Effect::Leave(channel) => {
                    assert!(
                        self.subscribers.remove(channel.as_str()).is_some(),
                        "{channel} is there to leave"
                    );
                }
                Effect::DisconnectOlder => panic!("nobody is alone here"),
                Effect::Claim(_) => panic!("there is no other node"),
                Effect::Handled(bytes) => assert_eq!(self.unhandled.pop_front(), Some(bytes)),
                Effect::Close(_) => self.over = true,
                Effect::LookUp(_)
                | Effect::Join(_)
                | Effect::Publish(_)
                | Effect::ReadHistory(_)
                | Effect::ReadPresence(_) => {
                    let connecting = !self.is_answered() && matches!(effect, Effect::Join(_));
                    assert!(self.under_way.is_empty() || connecting, "one at a time: {effect:?}");
                    self.under_way.push_back(effect);
                }
            }
        }
        assert_eq!(self.over, self.client.connection.is_closed());
        assert_eq!(self.over || !self.under_way.is_empty() && !self.is_answered(), self.deadline().is_none());
    }

    /// Whether the connect is.
    fn is_answered(&self) -> bool {
        self.unanswered.front() != Some(&1)
    }

    fn deadline(&self) -> Option<std::time::Instant> {
        self.client.connection.deadline(self.client.now)
    }

    fn check_message(&mut self, text: &str) {
        assert!(!text.contains('\n'), "{text}");
        let message: Value = serde_json::from_str(text).expect("JSON");
        if let Some(id) = message["id"].as_u64() {
            assert_eq!(self.unanswered.pop_front(), Some(id), "{text}");
        } else if let Some(channel) = message["push"]["channel"].as_str() {
            assert!(!self.subscribers.contains_key(channel), "a subscriber outlives {text}");
        } else {
            assert_eq!(text, "{}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_promises_hold(inputs in prop::collection::vec(inputs(), 0..60)) {
        let mut world = World::new();
        world.check();
        for input in inputs {
            world.input(input);
        }
        // Everything that is under way ends; what was asked is then answered.
        while !world.under_way.is_empty() {
            world.finish(4);
            world.check();
        }
        prop_assert!(world.over || world.unhandled.is_empty());
        let refused = world.client.connection.user().is_empty();
        prop_assert!(world.over || refused || world.unanswered.is_empty(), "{:?}", world.unanswered);
        prop_assert!(world.subscribers.values().all(|live| *live) || world.over);
    }

    #[test]
    fn no_frame_and_no_time_breaks_a_connection(
        frames in prop::collection::vec(("[ -~\n]{0,80}", 0..u64::MAX), 0..8),
    ) {
        let mut client = Client::ana();
        for (frame, millis) in frames {
            client.frame(&frame);
            let later = Duration::from_millis(millis >> 24);
            client.now = Now { wall: client.now.wall, mono: client.now.mono + later };
            client.connection.on_time(client.now, &mut client.effects);
            client.connection.deadline(client.now);
        }
    }
}
