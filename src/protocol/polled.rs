//! An event as polling and SSE show it. In built-in channels that is its data, which carries id,
//! type and time itself; in configured namespaces it is `{offset,data,tags?,info?}`.

use crate::domain::event::Event;

/// Appends `event` as one JSON object.
pub fn write(text: &mut String, built_in: bool, event: &Event) {
    if built_in {
        text.push_str(&event.data);
        return;
    }
    text.push('{');
    if event.offset > 0 {
        text.push_str("\"offset\":");
        text.push_str(&event.offset.to_string());
        text.push(',');
    }
    text.push_str("\"data\":");
    text.push_str(&event.data);
    for (key, value) in [("tags", &event.tags), ("info", &event.info)] {
        if let Some(value) = value {
            text.push_str(",\"");
            text.push_str(key);
            text.push_str("\":");
            text.push_str(value);
        }
    }
    text.push('}');
}
