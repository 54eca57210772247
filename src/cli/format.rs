//! Formats an event as one line: short for people, or the unchanged data for programs.

use std::borrow::Cow;

use chrono::{DateTime, TimeZone, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Publication;
use super::terminal::printable;
use crate::domain::channel::ChannelName;

/// How much of the data people see, in characters.
const SHOWN: usize = 160;

/// An event as it is shown.
pub(super) struct DisplayEvent {
    /// Its type; `message` where the namespace gives it none.
    pub(super) kind: String,
    /// In built-in channels the envelope; elsewhere the data with offset, tags and publisher.
    pub(super) data: String,
}

impl DisplayEvent {
    /// An event of `channel`.
    pub(super) fn of(publication: &Publication, channel: &ChannelName) -> Self {
        let data = publication.data.get();
        if channel.is_built_in() {
            let kind = serde_json::from_str(data).ok().and_then(|Kind { kind }| kind);
            let kind = kind.map_or_else(|| "message".to_owned(), Cow::into_owned);
            return Self { kind, data: data.to_owned() };
        }
        let mut fields = Vec::with_capacity(4);
        if publication.offset > 0 {
            fields.push(format!("\"offset\":{}", publication.offset));
        }
        let further = [("data", Some(&publication.data)), ("tags", publication.tags.as_ref())];
        for (key, value) in further.into_iter().chain([("info", publication.info.as_ref())]) {
            fields.extend(value.map(|value| format!("\"{key}\":{}", value.get())));
        }
        Self { kind: "message".to_owned(), data: format!("{{{}}}", fields.join(",")) }
    }
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

/// What a line shows beside the data. Built-in channels have all of it, others only data.
#[derive(Default, Deserialize)]
struct Envelope<'a> {
    at: Option<DateTime<Utc>>,
    #[serde(borrow)]
    repo: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The data alone, on one line whatever breaks it: line feeds can only stand between tokens.
pub(super) fn json(event: &DisplayEvent) -> String {
    event.data.replace(['\n', '\r'], " ")
}

/// Time, type, channel and the beginning of the data. An event that does not say when it was
/// shows `now`; one of an organisation says which repository it is about.
pub(super) fn human<Z: TimeZone>(
    event: &DisplayEvent,
    channel: &ChannelName,
    now: DateTime<Utc>,
    zone: &Z,
) -> String
where
    Z::Offset: std::fmt::Display,
{
    let envelope: Envelope<'_> = serde_json::from_str(&event.data).unwrap_or_default();
    let time = envelope.at.unwrap_or(now).with_timezone(zone).format("%H:%M:%S");
    let place = match envelope.repo {
        Some(repo) if channel.as_str().starts_with("org:") => format!("repo:{repo}"),
        _ => channel.to_string(),
    };
    let data = envelope.data.map_or(event.data.as_str(), RawValue::get);
    printable(&format!("{time}  {:<20}  {place}  {}", event.kind, shortened(data)))
}

fn shortened(data: &str) -> String {
    let one_line = data.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &one_line[..end]),
        None => one_line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(channel: &str, kind: &str, data: &str) -> String {
        let event = DisplayEvent { kind: kind.into(), data: data.into() };
        let now = Utc.with_ymd_and_hms(2026, 7, 1, 23, 59, 58).unwrap();
        human(&event, &ChannelName::parse(channel).unwrap(), now, &Utc)
    }

    #[test]
    fn people_see_time_type_channel_and_data() {
        let data = r#"{"id":"x","type":"scan:complete","at":"2026-07-01T14:03:09.120Z","repo":"acme/api","data":{"n":1}}"#;
        let wanted = "14:03:09  scan:complete         repo:acme/api  {\"n\":1}";
        assert_eq!(line("repo:acme/api", "scan:complete", data), wanted);
        assert_eq!(line("org:acme", "scan:complete", data), wanted);
        assert_eq!(
            line("chat:lobby", "message", r#"{"offset":7,"data":"hi"}"#),
            "23:59:58  message               chat:lobby  \"hi\""
        );
    }

    #[test]
    fn what_is_not_as_expected_is_shown_all_the_same() {
        for (data, shown) in
            [("hello", "hello"), ("7", "7"), (r#"{"at":7}"#, r#"{"at":7}"#), ("a\n b", "a b")]
        {
            assert!(line("chat:a", "message", data).ends_with(&format!("  chat:a  {shown}")), "{data}");
        }
        let long = line("chat:a", "message", &"é".repeat(SHOWN + 1));
        assert!(long.ends_with(&format!("{}…", "é".repeat(SHOWN))));
        assert!(!line("chat:a", "a\x1b[2J", "\"\u{9b}31m\"").contains(char::is_control));
    }

    #[test]
    fn programs_see_the_data_on_one_line() {
        let event = DisplayEvent { kind: "x".into(), data: "{\"a\":\n1}".into() };
        assert_eq!(json(&event), "{\"a\": 1}");
    }
    #[test]
    fn a_publication_looks_as_it_does_to_those_who_poll() {
        let shown = |channel: &str, publication: &str| {
            let publication: Publication = serde_json::from_str(publication).unwrap();
            let DisplayEvent { kind, data } =
                DisplayEvent::of(&publication, &ChannelName::parse(channel).unwrap());
            (kind, data)
        };
        let envelope = r#"{"type":"scan:complete","data":{"n":1}}"#;
        let wanted = ("scan:complete".to_owned(), envelope.to_owned());
        assert_eq!(shown("org:acme", &format!("{{\"data\":{envelope},\"offset\":7}}")), wanted);
        for (publication, data) in [
            (r#"{"data":"hi"}"#, r#"{"data":"hi"}"#),
            (r#"{"data":null,"offset":7}"#, r#"{"offset":7,"data":null}"#),
            (
                r#"{"data":1,"offset":7,"info":{"user":"a"},"tags":{"k":"v"}}"#,
                r#"{"offset":7,"data":1,"tags":{"k":"v"},"info":{"user":"a"}}"#,
            ),
        ] {
            assert_eq!(shown("chat:lobby", publication), ("message".to_owned(), data.to_owned()));
        }
    }
}
