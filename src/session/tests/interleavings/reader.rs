//! The client of these tests: what it was told, and what it must not be told.

use serde_json::Value;

/// What the client knows.
pub(super) struct Reader {
    pub(super) subscribed: bool,
    /// The last offset that it saw.
    pub(super) at: u64,
    pub(super) asked: Option<u64>,
    /// It was told that something is missing; what was before that does not count.
    pub(super) signals: u32,
}

impl Reader {
    pub(super) fn hear(&mut self, message: &Value) {
        if let Some(push) = message.get("push") {
            if let Some(publication) = push.get("pub") {
                let offset = publication["offset"].as_u64().expect("an offset");
                assert!(self.subscribed, "an event outside of the subscription: {message}");
                assert_eq!(offset, self.at + 1, "a gap or a repeat");
                self.at = offset;
            } else {
                assert_eq!(push["unsubscribe"]["code"], 2500, "{message}");
                assert!(self.subscribed);
                self.subscribed = false;
                self.signals += 1;
            }
        } else if let Some(result) = message.get("subscribe") {
            assert!(!self.subscribed);
            self.subscribed = true;
            let asked = self.asked.take().expect("it was asked for");
            if result["recovered"] == true {
                assert_eq!(result["offset"].as_u64().unwrap_or(0), asked);
                for publication in result["publications"].as_array().into_iter().flatten() {
                    assert_eq!(publication["offset"].as_u64(), Some(self.at + 1), "a gap in a replay");
                    self.at += 1;
                }
            } else {
                assert_eq!(result["was_recovering"], true, "a loss without a word: {message}");
                self.at = result["offset"].as_u64().unwrap_or(0);
                self.signals += 1;
            }
        } else {
            assert!(message.get("unsubscribe").is_some(), "{message}");
            self.subscribed = false;
        }
    }
}

/// The messages in what left the outbox: replies as they are, pushes in frames.
pub(super) fn messages(bytes: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = &*text;
    let mut messages = Vec::new();
    while let Some(start) = rest.find("{\"") {
        let mut stream = serde_json::Deserializer::from_str(&rest[start..]).into_iter();
        messages.push(stream.next().expect("an object").expect("JSON"));
        rest = &rest[start + stream.byte_offset()..];
    }
    messages
}
