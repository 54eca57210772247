//! What the tests of connections share: keys, namespaces, a clock, and the words for a story.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auth::Keys;
use crate::auth::revocations::Revocations;
use crate::domain::access::ResourceInfo;
use crate::domain::channel::ChannelName;
use crate::domain::event::{Event, Time};
use crate::domain::options::{ChannelOptions, Namespaces};
use crate::domain::position::{Epoch, Position};
use crate::domain::units::Span;
use crate::limits::user_connections::UserConnections;
use crate::session::effect::{Effect, Join, Joined, LookedUp, Outcome, Replay};
use crate::session::{Connection, ConnectionOptions, Now, SessionContext};

pub(super) const SECRET: &str = "a secret of the tests";
/// When the stories begin, in seconds since 1970.
pub(super) const NOW: i64 = 1_800_000_000;
pub(super) const ID: Uuid = Uuid::from_u128(7);
/// [`ID`] as others see it.
pub(super) const CLIENT: &str = "00000000-0000-0000-0000-000000000007";

pub(super) fn channel(text: &str) -> ChannelName {
    ChannelName::parse(text).expect("a channel")
}

pub(super) fn position(offset: u64) -> Position {
    Position::new(Epoch::parse("e1").expect("an epoch"), offset)
}

pub(super) fn event(offset: u64) -> Event {
    Event::plain(offset, &format!("{{\"n\":{offset}}}"))
}

/// A subscriber at offset 5 of a client that did not want to recover.
pub(super) fn fresh() -> Option<Joined> {
    Some(Joined { position: Some(position(5)), replay: Replay::NotAsked })
}

/// A subscriber on a channel that keeps nothing.
pub(super) fn unkept() -> Option<Joined> {
    Some(Joined { position: None, replay: Replay::NotAsked })
}

pub(super) fn token(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

pub(super) fn forged() -> String {
    let key = EncodingKey::from_secret(b"another secret");
    encode(&Header::new(Algorithm::HS256), &json!({"sub": "42"}), &key).expect("a token")
}

fn history() -> ChannelOptions {
    ChannelOptions { history_size: 10, history_ttl: Span(Duration::from_secs(300)), ..open() }
}

fn open() -> ChannelOptions {
    ChannelOptions {
        allow_subscribe_for_client: true,
        allow_publish_for_subscriber: true,
        ..ChannelOptions::default()
    }
}

/// `chat` keeps nothing; `kept` recovers; `ask` recovers who asks; `lobby` shows who is there;
/// `shut` admits nobody by itself; without a namespace there are only personal channels.
fn namespaces() -> Namespaces {
    let named = [
        ("chat", open()),
        ("kept", ChannelOptions { force_recovery: true, allow_history_for_subscriber: true, ..history() }),
        ("watched", ChannelOptions { force_positioning: true, ..history() }),
        ("ask", ChannelOptions { allow_recovery: true, allow_positioning: true, ..history() }),
        ("read", ChannelOptions { allow_history_for_subscriber: true, ..history() }),
        ("silent", history()),
        (
            "lobby",
            ChannelOptions {
                presence: true,
                join_leave: true,
                allow_presence_for_subscriber: true,
                ..open()
            },
        ),
        ("loud", ChannelOptions { join_leave: true, force_push_join_leave: true, ..open() }),
        ("shut", ChannelOptions { presence: true, ..ChannelOptions::default() }),
    ];
    Namespaces {
        without: Some(ChannelOptions::default()),
        personal: None,
        named: named.into_iter().map(|(name, options)| (name.to_owned(), options)).collect(),
        ..Namespaces::default()
    }
}

pub(super) fn context(options: ConnectionOptions) -> Arc<SessionContext> {
    context_with(UserConnections::new(2), options)
}

pub(super) fn context_with(users: UserConnections, options: ConnectionOptions) -> Arc<SessionContext> {
    Arc::new(SessionContext {
        keys: Keys::hmac([SECRET], None, None).into(),
        revocations: Revocations::default(),
        namespaces: namespaces().shared(),
        users,
        metrics: Arc::default(),
        options,
    })
}

/// One connection, its clock, and what it did since it was asked last.
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) now: Now,
    pub(super) effects: Vec<Effect>,
    last_id: u32,
}

impl Client {
    /// A client that has said nothing.
    pub(super) fn new() -> Self {
        Self::with(ConnectionOptions::default())
    }

    pub(super) fn with(options: ConnectionOptions) -> Self {
        Self::of(context(options))
    }

    pub(super) fn of(context: Arc<SessionContext>) -> Self {
        let wall = Time::from_timestamp(NOW, 0).expect("a time");
        let now = Now { wall, mono: Instant::now() };
        let connection = Connection::new(context, ID, now, 1.0);
        Self { connection, now, effects: Vec::new(), last_id: 0 }
    }

    /// A client that has connected with these claims, and has no server-side subscriptions.
    pub(super) fn connected(claims: Value) -> Self {
        let mut client = Self::new();
        client.connect(claims);
        client
    }

    /// User 42, connected.
    pub(super) fn ana() -> Self {
        Self::connected(json!({"sub": "42"}))
    }

    pub(super) fn connect(&mut self, claims: Value) {
        let said = self.ask("connect", json!({"token": token(claims)}));
        assert!(said.get("connect").is_some(), "{said}");
    }

    pub(super) fn frame(&mut self, frame: &str) -> &mut Self {
        self.connection.on_frame(frame.to_owned().into(), self.now, &mut self.effects);
        self
    }

    pub(super) fn send(&mut self, method: &str, fields: Value) -> &mut Self {
        self.last_id += 1;
        let command = json!({"id": self.last_id, method: fields});
        self.frame(&command.to_string())
    }

    /// Sends one command that is answered at once by one reply and nothing else.
    pub(super) fn ask(&mut self, method: &str, fields: Value) -> Value {
        self.send(method, fields);
        let mut effects = self.take();
        let handled = effects.pop();
        assert!(matches!(handled, Some(Effect::Handled(_))), "{effects:?} {handled:?}");
        match effects.as_slice() {
            [Effect::Send(text)] => self.reply(text),
            other => panic!("{method}: {other:?}"),
        }
    }

    /// The same for a command that ends the connection.
    pub(super) fn ask_closing(&mut self, method: &str, fields: Value) -> u16 {
        self.send(method, fields);
        self.closed()
    }

    /// The code that the connection ended with, all else being quiet.
    pub(super) fn closed(&mut self) -> u16 {
        assert!(self.connection.is_closed() && self.connection.deadline(self.now).is_none());
        match self.take().as_slice() {
            [Effect::Close(disconnect)] => disconnect.code(),
            other => panic!("{other:?}"),
        }
    }

    /// A reply to the last command, without its id.
    pub(super) fn reply(&self, text: &str) -> Value {
        let mut reply: Value = serde_json::from_str(text).expect("JSON");
        let id = reply.as_object_mut().and_then(|reply| reply.remove("id"));
        assert_eq!(id, Some(json!(self.last_id)), "{text}");
        reply
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) -> &mut Self {
        self.connection.on_outcome(outcome, self.now, &mut self.effects);
        self
    }

    /// What stands behind `name` is `user`'s build, which members of acme may see.
    pub(super) fn is_build_of(&mut self, name: &str, user: &str) -> &mut Self {
        let resource = ResourceInfo::Build { user: user.to_owned(), org: Some("acme".to_owned()) };
        self.looked_up(name, LookedUp::Found(resource))
    }

    pub(super) fn looked_up(&mut self, name: &str, found: LookedUp) -> &mut Self {
        self.outcome(Outcome::LookedUp(channel(name), found))
    }

    pub(super) fn joined(&mut self, name: &str, joined: Option<Joined>) -> &mut Self {
        self.outcome(Outcome::Joined(channel(name), joined))
    }

    pub(super) fn lost(&mut self, name: &str) -> &mut Self {
        self.connection.on_lost(&channel(name), self.now, &mut self.effects);
        self
    }

    /// Subscribes without further flags and returns the reply.
    pub(super) fn subscribe(&mut self, name: &str) -> Value {
        self.subscribe_with(name, json!({}), fresh()).1
    }

    /// Subscribes: what the hub was asked, and the reply.
    pub(super) fn subscribe_with(
        &mut self,
        name: &str,
        requested: Value,
        joined: Option<Joined>,
    ) -> (Join, Value) {
        let mut fields = requested;
        fields["channel"] = json!(name);
        self.send("subscribe", fields);
        let join = match self.take().as_slice() {
            [Effect::Join(join)] => join.clone(),
            other => panic!("{name}: {other:?}"),
        };
        self.joined(name, joined);
        let effects = self.take();
        match effects.as_slice() {
            [Effect::Send(text) | Effect::SendReplay(text), Effect::GoLive(live, _), Effect::Handled(_)] => {
                assert_eq!(live.as_str(), name);
                (join, self.reply(text)["subscribe"].take())
            }
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Unsubscribes from a channel that it is subscribed to.
    pub(super) fn unsubscribe(&mut self, name: &str) {
        self.send("unsubscribe", json!({"channel": name}));
        let story = self.story();
        assert_eq!((story.len(), story[0].as_str()), (3, format!("leave {name}").as_str()));
    }

    /// Everything since the last time.
    pub(super) fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The same in short: what is said as JSON, the rest by name.
    pub(super) fn story(&mut self) -> Vec<String> {
        self.take().iter().map(short).collect()
    }

    /// Time passes until `secs` seconds after now.
    pub(super) fn wait(&mut self, secs: f64) -> &mut Self {
        let secs = Duration::from_secs_f64(secs);
        self.now = Now { wall: self.now.wall + secs, mono: self.now.mono + secs };
        self.connection.on_time(self.now, &mut self.effects);
        self
    }

    /// How long until something is to be done, in seconds.
    pub(super) fn due_in(&self) -> Option<f64> {
        Some(self.connection.deadline(self.now)?.duration_since(self.now.mono).as_secs_f64())
    }
}

pub(super) fn short(effect: &Effect) -> String {
    match effect {
        Effect::Send(text) => text.clone(),
        Effect::SendReplay(text) => format!("replay {text}"),
        Effect::LookUp(channel) => format!("look up {channel}"),
        Effect::Join(join) => format!("join {}", join.channel),
        Effect::GoLive(channel, None) => format!("live {channel}"),
        Effect::GoLive(channel, Some(position)) => format!("live {channel} {position}"),
        Effect::Leave(channel) => format!("leave {channel}"),
        Effect::Publish(event) => format!("publish {}", event.channel),
        Effect::ReadHistory(wish) => format!("history {}", wish.channel),
        Effect::ReadPresence(channel) => format!("presence {channel}"),
        Effect::DisconnectOlder => "end older".to_owned(),
        Effect::Claim(_) => "claim".to_owned(),
        Effect::Handled(_) => "handled".to_owned(),
        Effect::Close(disconnect) => format!("close {}", disconnect.code()),
    }
}

/// `{"error":…}` of a code, its words and its class being `protocol`'s business.
pub(super) fn error(reply: &Value) -> u64 {
    reply["error"]["code"].as_u64().unwrap_or_else(|| panic!("no error: {reply}"))
}
