//! An event: an immutable fact on a channel. Its data is a JSON text that is made once, stored
//! verbatim and never parsed again on its way to a subscriber.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::channel::ChannelName;

/// An instant in UTC; the store keeps microseconds.
pub type Time = DateTime<Utc>;

/// An event that is not committed yet: it has no offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Where it belongs.
    pub channel: ChannelName,
    /// UUID v7. One fact on two channels (`repo:` and `org:`) has one id.
    pub id: Uuid,
    /// Its type, such as `workflow:completed`; `message` in configured namespaces.
    pub kind: Arc<str>,
    /// One JSON value, without raw line feeds.
    pub data: Arc<str>,
    /// A JSON object of texts, if the publisher gave tags.
    pub tags: Option<Arc<str>>,
    /// ClientInfo of the publishing client as JSON, if a client published it.
    pub info: Option<Arc<str>>,
    /// Whether it goes into the log. What does not has no offset and no promise.
    pub kept: bool,
    /// Whether its data may be sent as a delta to the previous event.
    pub delta: bool,
}

impl NewEvent {
    /// A kept event without tags or info.
    pub fn new(channel: ChannelName, id: Uuid, kind: &str, data: Arc<str>) -> Self {
        Self { channel, id, kind: kind.into(), data, tags: None, info: None, kept: true, delta: false }
    }

    /// The event as it stands in the log at `offset`; 0 for one that is not kept.
    pub fn at(&self, offset: u64) -> Event {
        Event {
            offset,
            id: self.id,
            kind: self.kind.clone(),
            data: self.data.clone(),
            tags: self.tags.clone(),
            info: self.info.clone(),
            delta: if self.delta { Delta::May } else { Delta::No },
        }
    }
}

/// A stored event: what [`NewEvent`] becomes when its unit of work commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number in the channel's log, from 1.
    pub offset: u64,
    /// As in [`NewEvent::id`].
    pub id: Uuid,
    /// As in [`NewEvent::kind`].
    pub kind: Arc<str>,
    /// As in [`NewEvent::data`].
    pub data: Arc<str>,
    /// As in [`NewEvent::tags`].
    pub tags: Option<Arc<str>>,
    /// As in [`NewEvent::info`].
    pub info: Option<Arc<str>>,
    /// How its data relates to the event before it. The log does not store this.
    pub delta: Delta,
}

#[cfg(test)]
impl Event {
    /// An event with nothing optional.
    pub(crate) fn plain(offset: u64, data: &str) -> Self {
        let (kind, data) = ("message".into(), data.into());
        Self { offset, id: Uuid::nil(), kind, data, tags: None, info: None, delta: Delta::No }
    }
}

/// How the data of an event relates to the event before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delta {
    #[default]
    No,
    /// It may be sent as a delta.
    May,
    /// It is a delta.
    Is,
}

/// The longest type of an event.
const MAX_TYPE: usize = 64;

/// Whether `kind` may be the type of an event. Types that begin with `stream:` are reserved for the
/// event stream itself.
pub fn is_event_type(kind: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'_' | b'.');
    (1..=MAX_TYPE).contains(&kind.len()) && kind.bytes().all(plain) && !kind.starts_with("stream:")
}

/// Builds the data of built-in channels:
/// `{"id":"<uuid v7>","type":"workflow:completed","at":"<RFC 3339>","repo":"acme/api","data":{…}}`.
/// `repo` is left out when the event is about no repository.
pub fn envelope(id: Uuid, kind: &str, at: Time, repo: Option<&str>, data: &RawValue) -> Arc<str> {
    let mut text = String::with_capacity(data.get().len() + 160);
    text.push_str("{\"id\":\"");
    text.push_str(&id.hyphenated().to_string());
    text.push_str("\",\"type\":");
    push_json(&mut text, kind);
    text.push_str(",\"at\":\"");
    text.push_str(&rfc3339(at));
    text.push('"');
    if let Some(repo) = repo {
        text.push_str(",\"repo\":");
        push_json(&mut text, repo);
    }
    text.push_str(",\"data\":");
    text.extend(data.get().chars().filter(|c| *c != '\n' && *c != '\r'));
    text.push('}');
    text.into()
}

/// The one spelling of an instant on the wire: RFC 3339, UTC, milliseconds.
pub fn rfc3339(at: Time) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn push_json(text: &mut String, value: &str) {
    text.push_str(&serde_json::to_string(value).expect("a text is always JSON"));
}
