//! A wrong server, made of the right one and a layer that lies: events on their way to subscribers
//! are dropped, repeated, put in another order or held back, inside WebSocket frames, server-sent
//! events, lines and pages alike; and a door answers before anything was committed. The checker must
//! convict each.

use anyhow::Result;
use clap::ValueEnum;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::framing::{Body, Head};
use crate::ws::frame::{self, Kind};

/// Every so many events there is a lie.
const EVERY: u64 = 7;

/// What is wrong with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lie {
    /// An event is left out.
    Drop,
    /// An event is sent twice.
    Repeat,
    /// An event is sent after the next one.
    Reorder,
    /// From some event on nothing is sent, for longer than anybody waits.
    Delay,
    /// A publisher is answered 2xx, and nothing was committed.
    Forget,
    /// Nodes do not hear each other, and do not look into the log either.
    Deaf,
}

/// Rewrites what a server says on one connection.
pub struct Liar {
    stage: Stage,
    lies: Lies,
}

enum Stage {
    /// The answer's head is not complete.
    Head(Vec<u8>),
    /// WebSocket frames, the last one perhaps incomplete.
    Socket(Vec<u8>),
    /// Events or lines in chunks, what ends each, and what is decoded and not complete.
    Units(Body, &'static [u8], Vec<u8>),
    /// Nothing to lie about, but a page of a poll may follow.
    Pages(Vec<u8>),
    /// Nothing to lie about ever.
    Plain,
}

struct Lies {
    lie: Lie,
    seen: u64,
    held: Option<Vec<u8>>,
}

impl Liar {
    /// One that tells this lie.
    pub fn new(lie: Lie) -> Self {
        Self { stage: Stage::Head(Vec::new()), lies: Lies { lie, seen: 0, held: None } }
    }

    /// What to pass on instead of `input`.
    pub fn rewrite(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(input.len() + 64);
        match &mut self.stage {
            Stage::Head(pending) => {
                pending.extend_from_slice(input);
                let Some((head, length)) = Head::parse(pending)? else { return Ok(out) };
                let rest = pending.split_off(length);
                out.append(pending);
                let end: &[u8] =
                    if memmem::find(&out, b"text/event-stream").is_some() { b"\n\n" } else { b"\n" };
                self.stage = match head.body {
                    _ if head.status == 101 => Stage::Socket(Vec::new()),
                    Body::Chunked(_) => Stage::Units(head.body, end, Vec::new()),
                    Body::Length(_) => Stage::Pages(std::mem::take(&mut out)),
                    _ => Stage::Plain,
                };
                out.extend(self.rewrite(&rest)?);
            }
            Stage::Socket(pending) => {
                pending.extend_from_slice(input);
                let mut at = 0;
                while let Some((kind, payload, length)) = frame::split(&pending[at..])? {
                    if kind == Kind::Text {
                        self.lies.text_frame(payload, &mut out);
                    } else {
                        out.extend_from_slice(&pending[at..at + length]);
                    }
                    at += length;
                }
                pending.drain(..at);
            }
            Stage::Units(body, end, pending) => {
                body.take(input, pending)?;
                let mut said = Vec::new();
                while let Some(at) = memmem::find(pending, end) {
                    let unit: Vec<u8> = pending.drain(..at + end.len()).collect();
                    let is_event = is_event(&unit);
                    self.lies.tell(unit, is_event, |unit| said.extend_from_slice(unit));
                }
                if body.is_done() {
                    said.append(pending);
                }
                if !said.is_empty() {
                    out.extend_from_slice(format!("{:x}\r\n", said.len()).as_bytes());
                    out.extend_from_slice(&said);
                    out.extend_from_slice(b"\r\n");
                }
                if body.is_done() {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
            }
            Stage::Pages(pending) => {
                pending.extend_from_slice(input);
                while let Some((head, length)) = Head::parse(pending)? {
                    let Body::Length(body) = head.body else {
                        out.append(pending);
                        self.stage = Stage::Plain;
                        break;
                    };
                    let end = length + usize::try_from(body)?;
                    let Some(body) = pending.get(length..end) else { break };
                    self.lies.page(&pending[..length], body, &mut out);
                    pending.drain(..end);
                }
            }
            Stage::Plain => out.extend_from_slice(input),
        }
        Ok(out)
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

impl Lies {
    fn text_frame(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        let mut said: Vec<u8> = Vec::new();
        for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.tell(line.to_vec(), is_event(line), |line| {
                if !said.is_empty() {
                    said.push(b'\n');
                }
                said.extend_from_slice(line);
            });
        }
        if !said.is_empty() {
            frame::put_text_head(said.len(), out);
            out.extend_from_slice(&said);
        }
    }

    fn page(&mut self, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
        let page: Option<Page<'_>> = serde_json::from_slice(body).ok();
        let rest = memmem::rfind(body, b"],\"cursor\":");
        let (Some(page), Some(rest)) = (page, rest) else {
            out.extend_from_slice(head);
            return out.extend_from_slice(body);
        };
        let mut said: Vec<u8> = Vec::new();
        for event in page.events {
            self.tell(event.get().as_bytes().to_vec(), true, |event| {
                said.extend_from_slice(if said.is_empty() { b"" } else { b"," });
                said.extend_from_slice(event);
            });
        }
        let body = [b"{\"events\":[", &*said, &body[rest..]].concat();
        for line in head.split_inclusive(|byte| *byte == b'\n') {
            if line.to_ascii_lowercase().starts_with(b"content-length:") {
                out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
            } else {
                out.extend_from_slice(line);
            }
        }
        out.extend_from_slice(&body);
    }

    fn tell(&mut self, unit: Vec<u8>, is_event: bool, mut say: impl FnMut(&[u8])) {
        if !is_event {
            return say(&unit);
        }
        self.seen += 1;
        let now = self.seen.is_multiple_of(EVERY);
        match self.lie {
            Lie::Drop if now => {}
            Lie::Repeat if now => {
                say(&unit);
                say(&unit);
            }
            Lie::Reorder if now => self.held = Some(unit),
            Lie::Delay if self.seen > EVERY => {}
            _ => {
                say(&unit);
                if let Some(held) = self.held.take() {
                    say(&held);
                }
            }
        }
    }
}

/// Whether a line or a block carries an event: a publication of the client protocol, or an event of
/// `/api/events/stream`, where all else that has an id says what became of the stream.
fn is_event(unit: &[u8]) -> bool {
    let has = |words: &[u8]| memmem::find(unit, words).is_some();
    let message = unit.trim_ascii_start();
    let message = message.strip_prefix(b"data: ").unwrap_or(message);
    if message.starts_with(b"{") {
        let pushed = message.starts_with(b"{\"push\":") || message.starts_with(b"{\"channel\":");
        return pushed && has(b"\"pub\":");
    }
    has(b"\nid: ") && has(b"\ndata: ") && !has(b"event: stream:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(number: u32) -> String {
        format!("{{\"push\":{{\"channel\":\"a:b\",\"pub\":{{\"data\":{number},\"offset\":{number}}}}}}}")
    }

    fn over_socket(lie: Lie) -> Vec<u32> {
        let mut liar = Liar::new(lie);
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec();
        for pair in [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]] {
            let text = pair.map(push).join("\n");
            frame::put_text_head(text.len(), &mut bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
        let out: Vec<u8> = bytes.chunks(11).flat_map(|piece| liar.rewrite(piece).unwrap()).collect();
        let (_, length) = Head::parse(&out).unwrap().unwrap();
        let (mut at, mut numbers) = (length, Vec::new());
        while let Some((_, payload, length)) = frame::split(&out[at..]).unwrap() {
            for line in payload.split(|byte| *byte == b'\n') {
                let value: serde_json::Value = serde_json::from_slice(line).unwrap();
                numbers.push(value["push"]["pub"]["offset"].as_u64().unwrap() as u32);
            }
            at += length;
        }
        assert_eq!(at, out.len());
        numbers
    }

    /// What is left of a stream of this kind, cut anywhere.
    fn over_chunks(lie: Lie, kind: &str, text: &str) -> Vec<u8> {
        let mut liar = Liar::new(lie);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut bytes = head.into_bytes();
        for piece in text.as_bytes().chunks(17) {
            bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(b"\r\n");
        }
        let out: Vec<u8> = bytes.chunks(13).flat_map(|piece| liar.rewrite(piece).unwrap()).collect();
        let (mut head, length) = Head::parse(&out).unwrap().unwrap();
        let mut body = Vec::new();
        head.body.take(&out[length..], &mut body).unwrap();
        body
    }

    fn over_events(lie: Lie) -> Vec<u32> {
        let mut text = "retry: 1\n\n: ping\n\n".to_owned();
        text.extend((1..=10).map(|n| format!("event: message\nid: e.{n}\ndata: {n}\n\n")));
        let mut body = over_chunks(lie, "text/event-stream; charset=utf-8", &text);
        let messages = crate::sse::Parser::default().take(&mut body);
        messages.iter().map(|message| message.data.parse().unwrap()).collect()
    }

    fn offsets<'a>(messages: impl Iterator<Item = &'a str>) -> Vec<u32> {
        let offset = |message: &str| {
            let message: serde_json::Value = serde_json::from_str(message).unwrap();
            let push = message.get("push").unwrap_or(&message);
            push["pub"]["offset"].as_u64().map(|offset| offset as u32)
        };
        messages.filter_map(offset).collect()
    }

    fn over_sse(lie: Lie) -> Vec<u32> {
        let mut text = "\r\ndata: {\"id\":1,\"connect\":{}}\n\ndata: {}\n\n".to_owned();
        text.extend((1..=10).map(|n| format!("data: {}\n\n", push(n))));
        let mut body = over_chunks(lie, "text/event-stream; charset=utf-8", &text);
        let messages = crate::sse::Parser::default().take(&mut body);
        assert_eq!(messages[0].data, "{\"id\":1,\"connect\":{}}");
        offsets(messages.iter().map(|message| &*message.data))
    }

    fn over_lines(lie: Lie) -> Vec<u32> {
        let mut text = "{\"connect\":{\"subs\":{}}}\n".to_owned();
        text.extend(
            (1..=10).map(|n| format!("{{\"channel\":\"a:b\",\"pub\":{{\"data\":{n},\"offset\":{n}}}}}\n")),
        );
        let body = over_chunks(lie, "application/json", &text);
        offsets(std::str::from_utf8(&body).unwrap().lines())
    }

    #[test]
    fn each_lie_is_told_on_every_transport() {
        for (lie, heard) in [
            (Lie::Drop, vec![1, 2, 3, 4, 5, 6, 8, 9, 10]),
            (Lie::Repeat, vec![1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10]),
            (Lie::Reorder, vec![1, 2, 3, 4, 5, 6, 8, 7, 9, 10]),
            (Lie::Delay, vec![1, 2, 3, 4, 5, 6, 7]),
        ] {
            assert_eq!(over_socket(lie), heard, "{lie:?}");
            for over in [over_events, over_sse, over_lines] {
                assert_eq!(over(lie), heard, "{lie:?}");
            }
        }
    }

    #[test]
    fn pages_lie_too_and_are_as_long_as_they_say() {
        let body = "{\"events\":[1,2,3,4,5,6,7,8],\"cursor\":\"e.8\",\"hasNext\":false}";
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nx: y\r\n\r\n{body}", body.len());
        for (lie, events) in [(Lie::Drop, "1,2,3,4,5,6,8"), (Lie::Repeat, "1,2,3,4,5,6,7,7,8")] {
            let mut liar = Liar::new(lie);
            let out: Vec<u8> =
                answer.as_bytes().chunks(7).flat_map(|piece| liar.rewrite(piece).unwrap()).collect();
            let (mut head, length) = Head::parse(&out).unwrap().unwrap();
            let mut said = Vec::new();
            assert_eq!(head.body.take(&out[length..], &mut said).unwrap(), out.len() - length);
            assert!(head.body.is_done());
            let expected = body.replace("1,2,3,4,5,6,7,8", events);
            assert_eq!(String::from_utf8(said).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_stream_is_left_alone() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 404 x\r\n\r\n";
        let mut liar = Liar::new(Lie::Drop);
        let out: Vec<u8> = answer.chunks(5).flat_map(|piece| liar.rewrite(piece).unwrap()).collect();
        assert_eq!(out, answer);
    }
}
