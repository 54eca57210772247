//! Reads server-sent events (WHATWG HTML, section 9.2) from bytes that arrive in any pieces.
//! Plain data, no sockets. Must hold: the same bytes give the same events however they are cut,
//! and never more than [`MAX_EVENT`] bytes of an unfinished event are held.

use std::time::Duration;

/// The most bytes that one event may have. Far above what a gateway accepts.
pub(super) const MAX_EVENT: usize = 16 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// Its `event:`; `message` if there was none.
    pub(super) kind: String,
    /// Its `data:` lines, with line feeds between them.
    pub(super) data: String,
    /// The last `id:` of the stream up to this event.
    pub(super) id: Option<String>,
}

/// An event has more than [`MAX_EVENT`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {} MiB", MAX_EVENT >> 20)]
pub(super) struct TooLong;

/// One stream, from its first byte on.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    line: Vec<u8>,
    /// The last byte was a carriage return, which ended a line: a line feed now belongs to it.
    after_cr: bool,
    past_first_line: bool,
    kind: String,
    data: String,
    has_data: bool,
    /// What `id:` said, to take effect with the blank line.
    next_id: Option<String>,
    id: Option<String>,
    retry: Option<Duration>,
}

impl SseParser {
    /// The `id:` of the last block that is complete, with an event or without.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// How long to wait before coming back, if the stream said so.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Takes the next bytes and appends the events that they complete to `events`.
    pub(super) fn push(&mut self, mut bytes: &[u8], events: &mut Vec<SseEvent>) -> Result<(), TooLong> {
        if let ([first, rest @ ..], true) = (bytes, self.after_cr) {
            self.after_cr = false;
            if *first == b'\n' {
                bytes = rest;
            }
        }
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.hold(&bytes[..end])?;
            events.extend(self.end_line());
            let is_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            match bytes.first() {
                Some(b'\n') if is_cr => bytes = &bytes[1..],
                None if is_cr => self.after_cr = true,
                _ => {}
            }
        }
        self.hold(bytes)
    }

    fn hold(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        let id = self.next_id.as_ref().map_or(0, String::len);
        if self.line.len() + piece.len() + self.data.len() + self.kind.len() + id > MAX_EVENT {
            return Err(TooLong);
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        let first = !std::mem::replace(&mut self.past_first_line, true);
        let bytes = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| first).unwrap_or(&line);
        if bytes.is_empty() {
            return self.end_block();
        }
        let text = String::from_utf8_lossy(bytes);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value));
        None
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.next_id = Some(value.to_owned()),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            // A comment has an empty name; others mean nothing yet.
            _ => {}
        }
    }

    fn end_block(&mut self) -> Option<SseEvent> {
        if let Some(id) = self.next_id.take() {
            self.id = Some(id).filter(|id| !id.is_empty());
        }
        let kind = std::mem::take(&mut self.kind);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        let kind = if kind.is_empty() { "message".to_owned() } else { kind };
        Some(SseEvent { kind, data, id: self.id.clone() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(kind: &str, data: &str, id: Option<&str>) -> SseEvent {
        SseEvent { kind: kind.into(), data: data.into(), id: id.map(Into::into) }
    }

    fn read(text: &str) -> Vec<SseEvent> {
        let mut events = Vec::new();
        SseParser::default().push(text.as_bytes(), &mut events).expect("short enough");
        events
    }

    #[test]
    fn an_event_has_a_type_data_and_an_id() {
        let text = "event: workflow:completed\nid: k.7\ndata: {\"a\":1}\n\ndata:b\n\n";
        let (first, second) = (
            event("workflow:completed", "{\"a\":1}", Some("k.7")),
            // The id stays until another one comes.
            event("message", "b", Some("k.7")),
        );
        assert_eq!(read(text), [first, second]);
    }

    #[test]
    fn all_three_line_ends_are_line_ends() {
        let lines = ["event: a", "data: 1", "data: 2", "", ": ping", "", "data: 3", "", ""];
        let wanted = [event("a", "1\n2", None), event("message", "3", None)];
        for end in ["\n", "\r\n", "\r"] {
            assert_eq!(read(&lines.join(end)), wanted, "{end:?}");
        }
        assert_eq!(read("data: 1\r\ndata: 2\rdata: 3\n\r\n"), [event("message", "1\n2\n3", None)]);
    }

    #[test]
    fn the_details_are_as_the_standard_says() {
        assert_eq!(read("\u{feff}data: x\n\n"), [event("message", "x", None)]);
        assert_eq!(read("data:  two spaces\n\n"), [event("message", " two spaces", None)]);
        assert_eq!(read("data\n\n"), [event("message", "", None)]);
        assert_eq!(read("data\ndata\n\n"), [event("message", "\n", None)]);
        assert_eq!(read("event: forgotten\n\ndata: x\n\n"), [event("message", "x", None)]);
        assert_eq!(read("Data: x\nother: y\n:data: z\n\n"), []);
        assert_eq!(read("id: a\0b\ndata: x\n\n"), [event("message", "x", None)]);
        assert_eq!(read("data: unfinished\n"), []);
    }

    #[test]
    fn an_opening_without_data_counts_for_the_position_once_it_is_complete() {
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        parser.push(b"retry: 3000\nid: k.5\n", &mut events).unwrap();
        assert_eq!((parser.last_id(), parser.retry()), (None, Some(Duration::from_secs(3))));
        parser.push(b"\nretry: soon\nid\n", &mut events).unwrap();
        assert_eq!((parser.last_id(), parser.retry()), (Some("k.5"), Some(Duration::from_secs(3))));
        parser.push(b"\n", &mut events).unwrap();
        assert_eq!((parser.last_id(), events.as_slice()), (None, [].as_slice()));
    }

    #[test]
    fn memory_is_bounded_over_lines_and_within_one() {
        let piece = vec![b'x'; MAX_EVENT / 4];
        let (mut parser, mut events) = (SseParser::default(), Vec::new());
        let endless = (0..6).try_for_each(|_| parser.push(&piece, &mut events));
        assert_eq!(endless, Err(TooLong));

        let (mut parser, line) = (SseParser::default(), [b"data:", piece.as_slice(), b"\n"].concat());
        let many = (0..6).try_for_each(|_| parser.push(&line, &mut events));
        assert_eq!(many, Err(TooLong));

        let (mut parser, whole) = (SseParser::default(), [line.as_slice(), b"\n"].concat());
        (0..6).try_for_each(|_| parser.push(&whole, &mut events)).expect("each of them is short");
        assert_eq!(events.len(), 6);
    }

    /// Texts that look like streams, and now and then like nothing.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let words: &[&[u8]] = &[
            b"data",
            b"event",
            b"id",
            b"retry",
            b":",
            b": ",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\r\r",
            b"7",
            b"x",
            b"\xef\xbb\xbf",
            "é".as_bytes(),
            b"\xff",
            b"\0",
        ];
        prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.concat())
    }

    /// The standard, read slowly: all of it at once, line ends first.
    fn by_the_book(bytes: &[u8]) -> (Vec<SseEvent>, Option<String>) {
        let text = String::from_utf8_lossy(bytes);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut last_id) = (Vec::new(), String::new());
        let (mut id, mut kind, mut data) = (String::new(), String::new(), String::new());
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if line.is_empty() {
                last_id.clone_from(&id);
                if !data.is_empty() {
                    let kind = if kind.is_empty() { "message" } else { &kind };
                    let last_id = Some(last_id.as_str()).filter(|id| !id.is_empty());
                    events.push(event(kind, &data[..data.len() - 1], last_id));
                }
                (kind, data) = (String::new(), String::new());
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => kind = value.to_owned(),
                "data" => data += &format!("{value}\n"),
                "id" if !value.contains('\0') => id = value.to_owned(),
                _ => {}
            }
        }
        (events, Some(last_id).filter(|id| !id.is_empty()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

        #[test]
        fn any_cuts_give_what_the_standard_says(bytes in stream(), cuts: Vec<prop::sample::Index>) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut parser, mut events) = (SseParser::default(), Vec::new());
            for pair in cuts.windows(2) {
                prop_assert_eq!(parser.push(&bytes[pair[0]..pair[1]], &mut events), Ok(()));
            }
            let (wanted, last_id) = by_the_book(&bytes);
            prop_assert_eq!(events, wanted);
            prop_assert_eq!(parser.last_id(), last_id.as_deref());
        }
    }
}
