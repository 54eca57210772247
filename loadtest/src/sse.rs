//! Server-sent events out of bytes: lines become messages, comments vanish, and a message cut
//! anywhere is kept until its empty line. Follows the HTML standard's parser, without the byte
//! order mark and without `\r` alone as a line end, which no sane server sends.

/// One message of the stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Message {
    /// `id:`, empty if none was given.
    pub id: String,
    /// `event:`, empty for the default.
    pub event: String,
    /// The `data:` lines, joined by line feeds.
    pub data: String,
}

/// What has come of the message that is not complete.
#[derive(Debug, Default)]
pub struct Parser {
    pending: Message,
    has_data: bool,
}

impl Parser {
    /// Takes whole lines from the front of `input`, leaves the rest, and gives what is complete.
    pub fn take(&mut self, input: &mut Vec<u8>) -> Vec<Message> {
        let Some(end) = input.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        let text: Vec<u8> = input.drain(..=end).collect();
        let mut messages = Vec::new();
        for line in text[..end].split(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            messages.extend(self.line(&String::from_utf8_lossy(line)));
        }
        messages
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.pending);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.pending.id = value.into(),
            "event" => self.pending.event = value.into(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.pending.data.push('\n');
                }
                self.pending.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_wherever_the_bytes_were_cut() {
        let text = b": ping\n\nretry: 5\n\nid: e.1\nevent: workflow:completed\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\nid: 3";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let mut input = text[..cut].to_vec();
            let mut messages = parser.take(&mut input);
            input.extend_from_slice(&text[cut..]);
            messages.extend(parser.take(&mut input));
            let message = |id: &str, event: &str, data: &str| Message {
                id: id.into(),
                event: event.into(),
                data: data.into(),
            };
            let expected = [message("e.1", "workflow:completed", "{\"a\":1}"), message("", "", "x\ny")];
            assert_eq!(messages, expected, "{cut}");
            assert_eq!(input, b"id: 3", "an unfinished line waits");
        }
    }
}
