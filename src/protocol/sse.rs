//! Server-sent events (WHATWG HTML, section 9.2): the frames of `/api/events/stream`.

use crate::domain::channel::ChannelName;
use crate::domain::event::Event;
use crate::domain::position::Position;
use crate::protocol::polled;

/// Keeps proxies and the reader's time-out at rest.
pub const PING: &str = ": ping\n\n";

/// Appends the frame of one event; `id` is the cursor that stands behind it.
pub fn write_event(text: &mut String, built_in: bool, event: &Event, id: Option<&str>) {
    text.push_str("event: ");
    // A type comes from our own list or from the API with a checked alphabet: it has no line break.
    text.push_str(if built_in { &event.kind } else { "message" });
    write_id(text, id);
    text.push_str("\ndata: ");
    polled::write(text, built_in, event);
    text.push_str("\n\n");
}

/// The first frame: how long to wait before coming back, and where the stream begins, so that a
/// reader who leaves before the first event misses nothing. A frame without data raises no event.
pub fn opening(retry_ms: u32, id: Option<&str>) -> String {
    let mut text = format!("retry: {retry_ms}");
    write_id(&mut text, id);
    text.push_str("\n\n");
    text
}

/// `stream:reset`: the reader's cursor of `channel` names a place that is gone. The stream goes on
/// live; what is retained can be read from `oldest`.
pub fn reset(channel: &ChannelName, oldest: &Position, head: &Position, id: Option<&str>) -> String {
    let mut text = String::from("event: stream:reset");
    write_id(&mut text, id);
    let data = serde_json::json!({
        "channel": channel.as_str(), "oldest": oldest.to_string(), "head": head.to_string(),
    });
    text.push_str(&format!("\ndata: {data}\n\n"));
    text
}

/// `stream:expired`: the token's life is over; come back with a new one.
pub const EXPIRED: &str = "event: stream:expired\ndata: {}\n\n";

/// `stream:closing`: the server goes away; come back at once.
pub const CLOSING: &str = "event: stream:closing\ndata: {}\n\n";

fn write_id(text: &mut String, id: Option<&str>) {
    if let Some(id) = id {
        text.push_str("\nid: ");
        text.push_str(id);
    }
}
