//! An event as polling and SSE show it. In built-in channels that is its data, which carries id,
//! type and time itself; in configured namespaces it is `{offset,data,tags?,info?}`.

use crate::domain::channel::ChannelName;
use crate::domain::event::Event;

/// Appends `event` as one JSON object.
pub fn write(text: &mut String, built_in: bool, event: &Event) {
    if built_in {
        text.push_str(&event.data);
        return;
    }
    text.push('{');
    write_fields(text, event);
}

/// Appends `event` of one of several channels, as `{channel,offset,data,tags?,info?}` whatever the channel.
pub fn write_with_channel(text: &mut String, channel: &ChannelName, event: &Event) {
    text.push_str("{\"channel\":");
    text.push_str(&serde_json::to_string(channel.as_str()).expect("a text is always JSON"));
    text.push(',');
    write_fields(text, event);
}

fn write_fields(text: &mut String, event: &Event) {
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
