//! The messages between nodes, as text: one JSON value, such as
//! `{"appended":{"channel":…,"epoch":…,"events":[…]}}`. `packet` says who sent it, and in which version:
//! within one, fields may be added; unknown ones are ignored.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::announcement::{Announcement, Content, PresenceChange};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Epoch;
use crate::protocol::json::{Object, push_list, push_object, push_raw, push_text};

/// Bytes of data in one message, unless a single event has more. Redis disconnects a subscriber that
/// has 32 MB unread.
const MAX_MESSAGE_BYTES: usize = 512 << 10;

/// Overhead of a message, in bytes.
const MESSAGE_OVERHEAD: usize = 256;

/// A message to other nodes.
#[derive(Debug, Clone)]
pub(super) enum BusMessage {
    Appended(Announcement),
    PresenceChanged(ChannelName, PresenceChange),
    /// There may be new events in the logs of these channels.
    Check(Vec<ChannelName>),
    /// There may be new events in any log.
    CheckAll,
    /// A message for the layer above the bus, at all nodes or at one.
    Direct(Option<Uuid>, Box<str>),
    /// To oneself: whether Redis still delivers.
    Ping,
}

/// Why a packet is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// It is of another version.
    Version,
    Malformed,
    /// No node that shares a secret with this one has made it.
    Forged,
    /// It is too old to be trusted, or the clocks of the nodes differ too much.
    Stale,
}

impl BusMessage {
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        push_object(&mut out, |body| match self {
            BusMessage::Appended(announcement) => push_object(body.key("appended"), |object| {
                object.always_text("channel", announcement.channel.as_str());
                let events = match &announcement.content {
                    Content::Logged { epoch, events } => {
                        object.always_text("epoch", epoch.as_str());
                        events
                    }
                    Content::Ephemeral(events) => events,
                };
                push_list(object.key("events"), events, |out, event| {
                    push_object(out, |o| write_event(o, event))
                });
            }),
            BusMessage::PresenceChanged(channel, change) => {
                push_object(body.key("presence_changed"), |object| {
                    object.always_text("channel", channel.as_str());
                    object.flag("joined", change.joined);
                    object.raw("info", Some(&change.info));
                })
            }
            BusMessage::Check(channels) => {
                push_list(body.key("check"), channels, |out, channel| push_text(out, channel.as_str()));
            }
            BusMessage::CheckAll => body.key("check_all").push_str("{}"),
            BusMessage::Direct(to, text) => push_object(body.key("direct"), |object| {
                if let Some(to) = to {
                    object.always_text("to", &to.to_string());
                }
                push_raw(object.key("text"), text);
            }),
            BusMessage::Ping => body.key("ping").push_str("{}"),
        });
        out
    }
}

impl BusMessage {
    /// How much of the queue it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let event = |event: &Event| event.data.len() + MESSAGE_OVERHEAD;
        MESSAGE_OVERHEAD
            + match self {
                Self::Appended(announcement) => match &announcement.content {
                    Content::Logged { events, .. } | Content::Ephemeral(events) => {
                        events.iter().map(event).sum()
                    }
                },
                Self::PresenceChanged(_, change) => change.info.len(),
                Self::Direct(_, text) => text.len(),
                Self::Check(_) | Self::CheckAll | Self::Ping => 0,
            }
    }

    /// Whether it announces events of the log, which are not lost with the message.
    pub(super) fn is_logged(&self) -> bool {
        matches!(self, Self::Appended(Announcement { content: Content::Logged { .. }, .. }))
    }

    /// Its texts: several, if its events are large.
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::Appended(Announcement { channel, content: Content::Logged { epoch, events }, .. })
                if !is_small(events) =>
            {
                let part = |events: &[Event]| {
                    let content = Content::Logged { epoch: epoch.clone(), events: events.to_vec() };
                    let channel = channel.clone();
                    Self::Appended(Announcement { channel, content, accepted: None }).text()
                };
                chunks(events).map(part).collect()
            }
            message => vec![message.text()],
        }
    }

    /// Reads a text; `None` if it is no message.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str::<Body<'_>>(text).ok()?.into_message()
    }
}

fn write_event(object: &mut Object<'_>, event: &Event) {
    object.number("offset", event.offset);
    object.always_text("id", &event.id.to_string());
    object.always_text("kind", &event.kind);
    object.raw("data", Some(&event.data));
    object.raw("tags", event.tags.as_deref());
    object.raw("info", event.info.as_deref());
    object.flag("delta", event.delta == Delta::May);
}

/// Whether these events fit into one message.
fn is_small(events: &[Event]) -> bool {
    events.len() == 1 || events.iter().map(|event| event.data.len()).sum::<usize>() <= MAX_MESSAGE_BYTES
}

/// Splits events so that each message stays small.
fn chunks(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.data.len();
            bytes <= MAX_MESSAGE_BYTES
        };
        let fitting = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (some, more) = rest.split_at(fitting);
        rest = more;
        (!some.is_empty()).then_some(some)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body<'t> {
    #[serde(borrow)]
    Appended(Appended<'t>),
    #[serde(borrow)]
    PresenceChanged(PresenceChanged<'t>),
    Check(Vec<ChannelName>),
    CheckAll {},
    #[serde(borrow)]
    Direct(Direct<'t>),
    Ping {},
}

#[derive(Deserialize)]
struct Appended<'t> {
    channel: ChannelName,
    epoch: Option<String>,
    #[serde(borrow)]
    events: Vec<WireEvent<'t>>,
}

#[derive(Deserialize)]
struct WireEvent<'t> {
    #[serde(default)]
    offset: u64,
    id: Uuid,
    kind: String,
    #[serde(borrow)]
    data: &'t RawValue,
    #[serde(borrow)]
    tags: Option<&'t RawValue>,
    #[serde(borrow)]
    info: Option<&'t RawValue>,
    #[serde(default)]
    delta: bool,
}

#[derive(Deserialize)]
struct PresenceChanged<'t> {
    channel: ChannelName,
    #[serde(default)]
    joined: bool,
    #[serde(borrow)]
    info: &'t RawValue,
}

#[derive(Deserialize)]
struct Direct<'t> {
    to: Option<Uuid>,
    #[serde(borrow)]
    text: &'t RawValue,
}

impl Body<'_> {
    fn into_message(self) -> Option<BusMessage> {
        Some(match self {
            Self::Appended(Appended { channel, epoch, events }) => {
                let events: Vec<Event> = events.into_iter().map(WireEvent::event).collect();
                let content = match epoch {
                    Some(epoch) => {
                        let joined = |pair: &[Event]| pair[1].offset == pair[0].offset.wrapping_add(1);
                        let whole = events.first()?.offset > 0 && events.windows(2).all(joined);
                        Content::Logged { epoch: Epoch::parse(&epoch).filter(|_| whole)?, events }
                    }
                    None => Content::Ephemeral(events),
                };
                BusMessage::Appended(Announcement { channel, content, accepted: None })
            }
            Self::PresenceChanged(PresenceChanged { channel, joined, info }) => {
                BusMessage::PresenceChanged(channel, PresenceChange { joined, info: info.get().into() })
            }
            Self::Check(channels) => BusMessage::Check(channels),
            Self::CheckAll {} => BusMessage::CheckAll,
            Self::Direct(Direct { to, text }) => BusMessage::Direct(to, text.get().into()),
            Self::Ping {} => BusMessage::Ping,
        })
    }
}

impl WireEvent<'_> {
    fn event(self) -> Event {
        Event {
            offset: self.offset,
            id: self.id,
            kind: self.kind.into(),
            data: self.data.get().into(),
            tags: self.tags.map(|tags| tags.get().into()),
            info: self.info.map(|info| info.get().into()),
            delta: if self.delta { Delta::May } else { Delta::No },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(offset: u64) -> Event {
        let tags = Some(r#"{"t":"1"}"#.into());
        Event {
            id: Uuid::from_u128(u128::from(offset)),
            kind: "a \"kind\"".into(),
            tags,
            delta: Delta::May,
            ..Event::plain(offset, r#"{"b": 1.50,"a":"é\u0000"}"#)
        }
    }

    fn round_trip(message: BusMessage) -> BusMessage {
        BusMessage::parse(&message.text()).expect("what was written can be read")
    }

    fn announced(content: Content) -> BusMessage {
        let channel = ChannelName::parse("news:\"x\"").unwrap();
        BusMessage::Appended(Announcement { channel, content, accepted: None })
    }

    #[test]
    fn events_arrive_as_they_were_sent_to_the_byte() {
        let epoch = Epoch::parse("e-1").unwrap();
        let message = round_trip(announced(Content::Logged { epoch, events: vec![event(3), event(4)] }));
        let BusMessage::Appended(Announcement {
            channel, content: Content::Logged { epoch, events }, ..
        }) = message
        else {
            panic!("{message:?}")
        };
        assert_eq!((channel.as_str(), epoch.as_str()), ("news:\"x\"", "e-1"));
        assert_eq!(events, [event(3), event(4)]);
        let BusMessage::Appended(Announcement { content: Content::Ephemeral(events), .. }) =
            round_trip(announced(Content::Ephemeral(vec![event(0)])))
        else {
            panic!("not kept")
        };
        assert_eq!(events, [event(0)]);
    }

    #[test]
    fn everything_else_arrives_too() {
        let change = PresenceChange { joined: true, info: r#"{"user":"ana"}"#.into() };
        let channel = ChannelName::parse("news").unwrap();
        match round_trip(BusMessage::PresenceChanged(channel.clone(), change.clone())) {
            BusMessage::PresenceChanged(where_, what) => {
                assert_eq!((where_, what), (channel.clone(), change))
            }
            other => panic!("{other:?}"),
        }
        match round_trip(BusMessage::Check(vec![channel.clone()])) {
            BusMessage::Check(channels) => assert_eq!(channels, [channel]),
            other => panic!("{other:?}"),
        }
        let to = Some(Uuid::from_u128(5));
        match round_trip(BusMessage::Direct(to, r#"{"request":[1, 2]}"#.into())) {
            BusMessage::Direct(whom, text) => assert_eq!((whom, &*text), (to, r#"{"request":[1, 2]}"#)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(round_trip(BusMessage::CheckAll), BusMessage::CheckAll));
        assert!(matches!(round_trip(BusMessage::Ping), BusMessage::Ping));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let id = Uuid::nil();
        let event = |offset: u64| format!(r#"{{"offset":{offset},"id":"{id}","kind":"k","data":1}}"#);
        let appended =
            |events: String| format!(r#"{{"appended":{{"channel":"a","epoch":"e","events":[{events}]}}}}"#);
        assert!(BusMessage::parse(&appended(event(1))).is_some());
        let bad = [
            String::new(),
            "hello".into(),
            "{}".into(),
            r#"{"sing":{}}"#.into(),
            appended(String::new()),
            appended(event(0)),
            appended(format!("{},{}", event(1), event(3))),
        ];
        for text in bad {
            assert!(BusMessage::parse(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn many_large_events_go_in_several_messages() {
        let event = |offset: u64, bytes: usize| Event::plain(offset, &"1".repeat(bytes));
        let offsets = |events: &[Event]| -> Vec<Vec<u64>> {
            chunks(events).map(|some| some.iter().map(|event| event.offset).collect()).collect()
        };
        let large = [
            event(1, MAX_MESSAGE_BYTES / 2),
            event(2, MAX_MESSAGE_BYTES / 2),
            event(3, 1),
            event(4, 2 * MAX_MESSAGE_BYTES),
            event(5, 9),
        ];
        assert_eq!(offsets(&large), [vec![1, 2], vec![3], vec![4], vec![5]]);
        assert!(offsets(&[]).is_empty());
    }
}
