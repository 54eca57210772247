//! The messages between nodes, as text: a line that every version understands, and one JSON value.
//!
//! > `1 <node> <number>` LF `{"appended":{"channel":…,"epoch":…,"events":[…]}}`
//!
//! The number is the sender's own and identifies duplicates. A message of another version is not
//! read: on the topic of a channel it means that the log must be checked, elsewhere it is ignored.
//! Fields may be added within a version; unknown ones are ignored.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::announcement::{Announcement, Content, PresenceChange};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Epoch;
use crate::protocol::json::{Object, push_list, push_object, push_raw, push_text};

/// The version that is sent and understood.
const VERSION: &str = "1";

/// Bytes of data in one message, unless a single event has more. Redis disconnects a subscriber that
/// has 32 MB unread.
const MAX_MESSAGE_BYTES: usize = 512 << 10;

/// Overhead of a message, in bytes.
const MESSAGE_OVERHEAD: usize = 256;
/// A message with its sender.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) from: Uuid,
    /// The sender's number of the message.
    pub(super) number: u64,
    pub(super) message: BusMessage,
}

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

/// Why a text cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecodeError {
    Version,
    Malformed,
}

impl BusMessage {
    /// Encodes the message number `number` of the node `from`.
    pub(super) fn encode(&self, from: Uuid, number: u64) -> String {
        let mut out = format!("{VERSION} {} {number}\n", from.simple());
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

    /// The message number `number` of the node `from`, in several parts if its events are large.
    pub(super) fn encode_in_parts(&self, from: Uuid, number: u64) -> Vec<String> {
        match self {
            Self::Appended(Announcement { channel, content: Content::Logged { epoch, events }, .. })
                if !is_small(events) =>
            {
                let part = |events: &[Event]| {
                    let content = Content::Logged { epoch: epoch.clone(), events: events.to_vec() };
                    let channel = channel.clone();
                    Self::Appended(Announcement { channel, content, accepted: None }).encode(from, number)
                };
                chunks(events).map(part).collect()
            }
            message => vec![message.encode(from, number)],
        }
    }
}

impl Envelope {
    pub(super) fn decode(text: &str) -> Result<Self, DecodeError> {
        let (head, body) = text.split_once('\n').ok_or(DecodeError::Malformed)?;
        let mut head = head.split(' ');
        match head.next() {
            Some(VERSION) => {}
            Some(other) if !other.is_empty() && other.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(DecodeError::Version);
            }
            _ => return Err(DecodeError::Malformed),
        }
        let from = head.next().and_then(|from| Uuid::parse_str(from).ok()).ok_or(DecodeError::Malformed)?;
        let number = head.next().and_then(|number| number.parse().ok()).ok_or(DecodeError::Malformed)?;
        let body: Body<'_> = serde_json::from_str(body).map_err(|_| DecodeError::Malformed)?;
        Ok(Self { from, number, message: body.into_message().ok_or(DecodeError::Malformed)? })
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

    fn round_trip(message: BusMessage) -> Envelope {
        Envelope::decode(&message.encode(Uuid::from_u128(7), 9)).expect("what was encoded can be decoded")
    }

    fn announced(content: Content) -> BusMessage {
        let channel = ChannelName::parse("news:\"x\"").unwrap();
        BusMessage::Appended(Announcement { channel, content, accepted: None })
    }

    #[test]
    fn events_arrive_as_they_were_sent_to_the_byte() {
        let epoch = Epoch::parse("e-1").unwrap();
        let envelope = round_trip(announced(Content::Logged { epoch, events: vec![event(3), event(4)] }));
        assert_eq!((envelope.from, envelope.number), (Uuid::from_u128(7), 9));
        let BusMessage::Appended(Announcement {
            channel, content: Content::Logged { epoch, events }, ..
        }) = envelope.message
        else {
            panic!("{envelope:?}")
        };
        assert_eq!((channel.as_str(), epoch.as_str()), ("news:\"x\"", "e-1"));
        assert_eq!(events, [event(3), event(4)]);
        let BusMessage::Appended(Announcement { content: Content::Ephemeral(events), .. }) =
            round_trip(announced(Content::Ephemeral(vec![event(0)]))).message
        else {
            panic!("not kept")
        };
        assert_eq!(events, [event(0)]);
    }

    #[test]
    fn everything_else_arrives_too() {
        let change = PresenceChange { joined: true, info: r#"{"user":"ana"}"#.into() };
        let channel = ChannelName::parse("news").unwrap();
        match round_trip(BusMessage::PresenceChanged(channel.clone(), change.clone())).message {
            BusMessage::PresenceChanged(where_, what) => {
                assert_eq!((where_, what), (channel.clone(), change))
            }
            other => panic!("{other:?}"),
        }
        match round_trip(BusMessage::Check(vec![channel.clone()])).message {
            BusMessage::Check(channels) => assert_eq!(channels, [channel]),
            other => panic!("{other:?}"),
        }
        let to = Some(Uuid::from_u128(5));
        match round_trip(BusMessage::Direct(to, r#"{"request":[1, 2]}"#.into())).message {
            BusMessage::Direct(whom, text) => assert_eq!((whom, &*text), (to, r#"{"request":[1, 2]}"#)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(round_trip(BusMessage::CheckAll).message, BusMessage::CheckAll));
        assert!(matches!(round_trip(BusMessage::Ping).message, BusMessage::Ping));
    }

    #[test]
    fn malformed_messages_are_refused() {
        let id = Uuid::nil();
        let event = |offset: u64| format!(r#"{{"offset":{offset},"id":"{id}","kind":"k","data":1}}"#);
        let appended = |events: String| {
            format!(r#"1 {id} 1{}{{"appended":{{"channel":"a","epoch":"e","events":[{events}]}}}}"#, '\n')
        };
        assert!(Envelope::decode(&appended(event(1))).is_ok());
        let newer = format!("2 {id} 1 more\nanything");
        assert_eq!(Envelope::decode(&newer).unwrap_err(), DecodeError::Version);
        let bad = [
            String::new(),
            "\n".into(),
            "hello".into(),
            format!("1 {id} 1\n"),
            format!("1 {id} x\n{{\"ping\":{{}}}}"),
            "1 nobody 1\n{\"ping\":{}}".into(),
            appended(String::new()),
            appended(event(0)),
            appended(format!("{},{}", event(1), event(3))),
        ];
        for text in bad {
            assert_eq!(Envelope::decode(&text).map(|_| ()), Err(DecodeError::Malformed), "{text}");
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
