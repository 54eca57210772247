//! What nodes say to each other, as text: a line that every version understands, and one JSON value.
//!
//! > `1 <node> <number>` LF `{"appended":{"channel":…,"epoch":…,"events":[…]}}`
//!
//! The number is the sender's own and tells what came twice. A version other than ours is not read:
//! on a channel's name it means that there is something in the log, elsewhere nothing. Fields may
//! be added within a version; unknown ones are passed over.

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Announcement, Content, Movement};
use crate::domain::channel::ChannelName;
use crate::domain::event::{Delta, Event};
use crate::domain::position::Epoch;
use crate::protocol::json::{Object, push_list, push_object, push_raw, push_text};

/// The version that is said and understood.
const VERSION: &str = "1";

/// Something that was said.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: Uuid,
    /// Counts what the sender has said.
    pub(super) number: u64,
    pub(super) said: Said,
}

/// What was said.
#[derive(Debug, Clone)]
pub(super) enum Said {
    Appended(Announcement),
    Moved(ChannelName, Movement),
    /// There may be something new in these logs.
    Check(Vec<ChannelName>),
    /// In any log.
    CheckAll,
    /// Something for whoever is above the bus, at all nodes or at one.
    Told(Option<Uuid>, Box<str>),
    /// To oneself: whether Redis still hears and says.
    Ping,
}

/// Why a text is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is of another version.
    Version,
    /// It is not what a node says.
    Malformed,
}

impl Said {
    /// The text of it, as the node `from` says it under `number`.
    pub(super) fn write(&self, from: Uuid, number: u64) -> String {
        let mut out = format!("{VERSION} {} {number}\n", from.simple());
        push_object(&mut out, |body| match self {
            Said::Appended(announcement) => push_object(body.key("appended"), |object| {
                object.always_text("channel", announcement.channel.as_str());
                let events = match &announcement.content {
                    Content::Logged { epoch, events } => {
                        object.always_text("epoch", epoch.as_str());
                        events
                    }
                    Content::Ephemeral(events) => events,
                };
                push_list(object.key("events"), events, |out, event| push_object(out, |o| fill(o, event)));
            }),
            Said::Moved(channel, movement) => push_object(body.key("moved"), |object| {
                object.always_text("channel", channel.as_str());
                object.flag("came", movement.came);
                object.raw("info", Some(&movement.info));
            }),
            Said::Check(channels) => {
                push_list(body.key("check"), channels, |out, channel| push_text(out, channel.as_str()));
            }
            Said::CheckAll => body.key("check_all").push_str("{}"),
            Said::Told(to, text) => push_object(body.key("told"), |object| {
                if let Some(to) = to {
                    object.always_text("to", &to.to_string());
                }
                push_raw(object.key("text"), text);
            }),
            Said::Ping => body.key("ping").push_str("{}"),
        });
        out
    }
}

impl Packet {
    pub(super) fn read(text: &str) -> Result<Self, Unread> {
        let (head, body) = text.split_once('\n').ok_or(Unread::Malformed)?;
        let mut head = head.split(' ');
        match head.next() {
            Some(VERSION) => {}
            Some(other) if !other.is_empty() && other.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(Unread::Version);
            }
            _ => return Err(Unread::Malformed),
        }
        let from = head.next().and_then(|from| Uuid::parse_str(from).ok()).ok_or(Unread::Malformed)?;
        let number = head.next().and_then(|number| number.parse().ok()).ok_or(Unread::Malformed)?;
        let body: Body<'_> = serde_json::from_str(body).map_err(|_| Unread::Malformed)?;
        Ok(Self { from, number, said: body.said().ok_or(Unread::Malformed)? })
    }
}

fn fill(object: &mut Object<'_>, event: &Event) {
    object.number("offset", event.offset);
    object.always_text("id", &event.id.to_string());
    object.always_text("kind", &event.kind);
    object.raw("data", Some(&event.data));
    object.raw("tags", event.tags.as_deref());
    object.raw("info", event.info.as_deref());
    object.flag("delta", event.delta == Delta::May);
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body<'t> {
    #[serde(borrow)]
    Appended(Appended<'t>),
    #[serde(borrow)]
    Moved(Moved<'t>),
    Check(Vec<ChannelName>),
    CheckAll {},
    #[serde(borrow)]
    Told(Told<'t>),
    Ping {},
}

#[derive(Deserialize)]
struct Appended<'t> {
    channel: ChannelName,
    epoch: Option<String>,
    #[serde(borrow)]
    events: Vec<Line<'t>>,
}

#[derive(Deserialize)]
struct Line<'t> {
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
struct Moved<'t> {
    channel: ChannelName,
    #[serde(default)]
    came: bool,
    #[serde(borrow)]
    info: &'t RawValue,
}

#[derive(Deserialize)]
struct Told<'t> {
    to: Option<Uuid>,
    #[serde(borrow)]
    text: &'t RawValue,
}

impl Body<'_> {
    fn said(self) -> Option<Said> {
        Some(match self {
            Self::Appended(Appended { channel, epoch, events }) => {
                let events: Vec<Event> = events.into_iter().map(Line::event).collect();
                let content = match epoch {
                    Some(epoch) => {
                        let joined = |pair: &[Event]| pair[1].offset == pair[0].offset.wrapping_add(1);
                        let whole = events.first()?.offset > 0 && events.windows(2).all(joined);
                        Content::Logged { epoch: Epoch::parse(&epoch).filter(|_| whole)?, events }
                    }
                    None => Content::Ephemeral(events),
                };
                Said::Appended(Announcement { channel, content, accepted: None })
            }
            Self::Moved(Moved { channel, came, info }) => {
                Said::Moved(channel, Movement { came, info: info.get().into() })
            }
            Self::Check(channels) => Said::Check(channels),
            Self::CheckAll {} => Said::CheckAll,
            Self::Told(Told { to, text }) => Said::Told(to, text.get().into()),
            Self::Ping {} => Said::Ping,
        })
    }
}

impl Line<'_> {
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
        Event {
            offset,
            id: Uuid::from_u128(u128::from(offset)),
            kind: "a \"kind\"".into(),
            data: r#"{"b": 1.50,"a":"é\u0000"}"#.into(),
            tags: Some(r#"{"t":"1"}"#.into()),
            info: None,
            delta: Delta::May,
        }
    }

    fn again(said: Said) -> Packet {
        Packet::read(&said.write(Uuid::from_u128(7), 9)).expect("what is said is understood")
    }

    fn announced(content: Content) -> Said {
        let channel = ChannelName::parse("news:\"x\"").unwrap();
        Said::Appended(Announcement { channel, content, accepted: None })
    }

    #[test]
    fn events_arrive_as_they_were_sent_to_the_byte() {
        let epoch = Epoch::parse("e-1").unwrap();
        let packet = again(announced(Content::Logged { epoch, events: vec![event(3), event(4)] }));
        assert_eq!((packet.from, packet.number), (Uuid::from_u128(7), 9));
        let Said::Appended(Announcement { channel, content: Content::Logged { epoch, events }, .. }) =
            packet.said
        else {
            panic!("{packet:?}")
        };
        assert_eq!((channel.as_str(), epoch.as_str()), ("news:\"x\"", "e-1"));
        assert_eq!(events, [event(3), event(4)]);
        let Said::Appended(Announcement { content: Content::Ephemeral(events), .. }) =
            again(announced(Content::Ephemeral(vec![event(0)]))).said
        else {
            panic!("not kept")
        };
        assert_eq!(events, [event(0)]);
    }

    #[test]
    fn everything_else_arrives_too() {
        let movement = Movement { came: true, info: r#"{"user":"ana"}"#.into() };
        let channel = ChannelName::parse("news").unwrap();
        match again(Said::Moved(channel.clone(), movement.clone())).said {
            Said::Moved(where_, what) => assert_eq!((where_, what), (channel.clone(), movement)),
            other => panic!("{other:?}"),
        }
        match again(Said::Check(vec![channel.clone()])).said {
            Said::Check(channels) => assert_eq!(channels, [channel]),
            other => panic!("{other:?}"),
        }
        let to = Some(Uuid::from_u128(5));
        match again(Said::Told(to, r#"{"ask":[1, 2]}"#.into())).said {
            Said::Told(whom, text) => assert_eq!((whom, &*text), (to, r#"{"ask":[1, 2]}"#)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(again(Said::CheckAll).said, Said::CheckAll));
        assert!(matches!(again(Said::Ping).said, Said::Ping));
    }

    #[test]
    fn what_no_node_says_is_not_understood() {
        let id = Uuid::nil();
        let event = |offset: u64| format!(r#"{{"offset":{offset},"id":"{id}","kind":"k","data":1}}"#);
        let appended = |events: String| {
            format!(r#"1 {id} 1{}{{"appended":{{"channel":"a","epoch":"e","events":[{events}]}}}}"#, '\n')
        };
        assert!(Packet::read(&appended(event(1))).is_ok());
        let newer = format!("2 {id} 1 more\nanything");
        assert_eq!(Packet::read(&newer).unwrap_err(), Unread::Version);
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
            assert_eq!(Packet::read(&text).map(|_| ()), Err(Unread::Malformed), "{text}");
        }
    }
}
