//! What a client sends: messages, from the bytes of its socket as far as it has credit. A length is
//! checked as soon as a header says it, before anything behind it is kept; and between two messages
//! nothing is kept at all, because most clients say something once and then listen for hours.

use std::cell::Cell;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_codec::Decoder as _;
use actix_http::ws::{Codec, Item};
use actix_web_actors::ws::Frame;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::Stream;

use crate::hub::outbox::Outbox;

/// The longest header of a client's frame (RFC 6455 §5.2).
const LONGEST_HEADER: usize = 14;
/// The longest payload of a ping and its like (RFC 6455 §5.5).
const LONGEST_CONTROL: u64 = 125;
/// Bytes that are taken before other connections of the thread get their turn.
const TURN: usize = 64 * 1024;
/// Bytes of one read.
const READ: usize = 4096;

/// How many bytes a client may send before we have handled something.
pub(super) struct Credit {
    left: Cell<usize>,
    waiting: Cell<Option<Waker>>,
}

impl Credit {
    /// Enough for the largest message, and for a ping between its parts.
    pub(super) fn new(largest_message: usize) -> Rc<Self> {
        let ping = LONGEST_CONTROL as usize + LONGEST_HEADER;
        let left = Cell::new(largest_message + LONGEST_HEADER + ping);
        Rc::new(Self { left, waiting: Cell::default() })
    }

    /// So many bytes were handled.
    pub(super) fn give(&self, bytes: usize) {
        self.left.set(self.left.get() + bytes);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    fn take(&self, bytes: usize) {
        self.left.set(self.left.get().saturating_sub(bytes));
    }
}

/// Something that a client said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A message; its length is given back as credit when it is handled.
    Text(ByteString),
    /// To be answered with the same.
    Ping(Bytes),
    /// It closes.
    Close,
}

/// What is wrong with what a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadMessage {
    /// Longer than allowed.
    TooLong,
    /// No UTF-8.
    NotText,
    /// Binary, which this server does not speak.
    Binary,
    /// No frame of WebSocket.
    Malformed,
}

/// What a client says. Ends where the socket ends, for whatever reason, and says nothing more after
/// something bad.
pub(super) struct Incoming {
    outbox: Rc<Outbox>,
    credit: Rc<Credit>,
    turn: usize,
    over: bool,
    messages: Messages,
    /// What came with the request and is not taken yet.
    first: Option<Box<BytesMut>>,
}

impl Incoming {
    /// `first` came with the request.
    pub(super) fn new(outbox: Rc<Outbox>, first: BytesMut, credit: Rc<Credit>, largest: usize) -> Self {
        let first = (!first.is_empty()).then(|| Box::new(first));
        Self { outbox, credit, turn: TURN, over: false, messages: Messages::new(largest), first }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.credit.take(bytes.len());
        self.turn -= bytes.len();
        self.messages.bytes.extend_from_slice(bytes);
    }
}

impl Stream for Incoming {
    type Item = Result<Said, BadMessage>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.over {
            return Poll::Pending;
        }
        loop {
            match this.messages.next(&this.credit) {
                Ok(None) => {}
                Ok(Some(said)) => return Poll::Ready(Some(Ok(said))),
                Err(bad) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(bad)));
                }
            }
            let left = this.credit.left.get();
            if left == 0 {
                this.credit.waiting.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            if this.turn == 0 {
                this.turn = TURN;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let most = left.min(this.turn).min(READ);
            if let Some(mut first) = this.first.take() {
                this.take(&first.split_to(most.min(first.len())));
                this.first = Some(first).filter(|rest| !rest.is_empty());
                continue;
            }
            let Some(wire) = this.outbox.wire() else { return Poll::Ready(None) };
            let mut buffer = [0; READ];
            match wire.try_read(&mut buffer[..most]) {
                Ok(0) => return Poll::Ready(None),
                Ok(count) => this.take(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    this.turn = TURN;
                    match wire.poll_read_ready(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(None),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Err(_) => return Poll::Ready(None),
            }
        }
    }
}

/// Messages from bytes. The frames are the library's to take apart; what they may be like is
/// checked here, because it looks at a length only when it has the whole frame.
struct Messages {
    /// What is not a whole frame yet.
    bytes: BytesMut,
    codec: Codec,
    /// The parts so far of a message that comes in parts.
    parts: Option<Box<BytesMut>>,
    largest: usize,
}

impl Messages {
    fn new(largest: usize) -> Self {
        let codec = Codec::new().max_size(largest.max(LONGEST_CONTROL as usize));
        Self { bytes: BytesMut::new(), codec, parts: None, largest }
    }

    /// The next message, if all of it has come. Gives back the credit for what is not a message's.
    fn next(&mut self, credit: &Credit) -> Result<Option<Said>, BadMessage> {
        while let Some(header) = Header::read(&self.bytes) {
            let whole = self.check(&header)?;
            if self.bytes.len() < whole {
                break;
            }
            let frame = self.codec.decode(&mut self.bytes).map_err(|_| BadMessage::Malformed)?;
            if self.bytes.is_empty() {
                // Or it would keep the memory that it shares with the frame.
                self.bytes = BytesMut::new();
            }
            credit.give(if header.is_control() { whole } else { whole - header.length as usize });
            match frame {
                Some(Frame::Text(text)) => return said(text).map(Some),
                Some(Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_))) => {
                    return Err(BadMessage::Binary);
                }
                Some(Frame::Continuation(Item::FirstText(part) | Item::Continue(part))) => {
                    self.parts.get_or_insert_default().extend_from_slice(&part);
                }
                Some(Frame::Continuation(Item::Last(part))) => {
                    let mut text = self.parts.take().unwrap_or_default();
                    text.extend_from_slice(&part);
                    return said(text.freeze()).map(Some);
                }
                Some(Frame::Ping(payload)) => return Ok(Some(Said::Ping(payload))),
                Some(Frame::Close(_)) => return Ok(Some(Said::Close)),
                Some(Frame::Pong(_)) | None => {}
            }
        }
        Ok(None)
    }

    /// The bytes of the whole frame, if there may be one like this.
    fn check(&self, header: &Header) -> Result<usize, BadMessage> {
        let data = match header.kind() {
            _ if header.first & 0x70 != 0 || !header.masked => return Err(BadMessage::Malformed),
            // A length takes as few bytes as it can (RFC 6455 §5.2).
            _ if header.bytes != shortest_header(header.length) => return Err(BadMessage::Malformed),
            0 => self.parts.as_ref().map_or(0, |parts| parts.len()) as u64,
            1 | 2 => 0,
            8..=10 if header.length <= LONGEST_CONTROL => return Ok(header.whole()),
            _ => return Err(BadMessage::Malformed),
        };
        match data.saturating_add(header.length) <= self.largest as u64 {
            true => Ok(header.whole()),
            false => Err(BadMessage::TooLong),
        }
    }
}

fn said(text: Bytes) -> Result<Said, BadMessage> {
    ByteString::try_from(text).map(Said::Text).map_err(|_| BadMessage::NotText)
}

/// What a frame begins with (RFC 6455 §5.2).
struct Header {
    first: u8,
    masked: bool,
    /// Its own bytes, without the mask.
    bytes: usize,
    /// Bytes of the payload.
    length: u64,
}

impl Header {
    /// The header at the front of `bytes`, if it is whole up to the mask.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let (own, length) = match second & 0x7f {
            126 => (4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into()),
            127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
            short => (2, short.into()),
        };
        Some(Self { first, masked: second & 0x80 != 0, bytes: own, length })
    }

    fn kind(&self) -> u8 {
        self.first & 0x0f
    }

    fn is_control(&self) -> bool {
        self.kind() >= 8
    }

    /// Bytes of the whole masked frame; only for lengths that are allowed.
    fn whole(&self) -> usize {
        self.bytes + 4 + self.length as usize
    }
}

fn shortest_header(length: u64) -> usize {
    match length {
        0..126 => 2,
        126..65_536 => 4,
        _ => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = 1_000;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0xfe);
                frame.extend(u16::try_from(long).unwrap().to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// All that is said by `bytes`, which come in pieces; and how much credit that has cost.
    fn hear(bytes: &[u8], piece: usize) -> (Vec<Result<Said, BadMessage>>, usize) {
        let mut messages = Messages::new(LARGEST);
        let (credit, mut heard) = (Credit::new(LARGEST), Vec::new());
        let full = credit.left.get();
        'pieces: for piece in bytes.chunks(piece) {
            credit.take(piece.len());
            messages.bytes.extend_from_slice(piece);
            while let Some(next) = messages.next(&credit).transpose() {
                let over = next.is_err();
                heard.push(next);
                if over {
                    break 'pieces;
                }
            }
            assert!(!messages.bytes.is_empty() || messages.bytes.capacity() == 0, "nothing is kept");
        }
        (heard, full - credit.left.get())
    }

    fn text(text: &str) -> Result<Said, BadMessage> {
        Ok(Said::Text(text.to_owned().into()))
    }

    #[test]
    fn messages_are_heard_in_whatever_pieces_they_come() {
        let largest = "x".repeat(LARGEST);
        let bytes = [
            frame(0x81, largest.as_bytes()),
            frame(0x81, b""),
            frame(0x89, b"ping"),
            frame(0x8a, b"pong"),
            frame(0x01, &"{\"ä".as_bytes()[..3]),
            frame(0x89, b""),
            frame(0x00, &"{\"ä".as_bytes()[3..]),
            frame(0x80, b"\"}"),
            frame(0x88, b""),
        ]
        .concat();
        let expected = [
            text(&largest),
            text(""),
            Ok(Said::Ping(Bytes::from("ping"))),
            Ok(Said::Ping(Bytes::new())),
            text("{\"ä\"}"),
            Ok(Said::Close),
        ];
        for piece in [1, 2, 3, 5, 7, 64, 10_000] {
            let (heard, cost) = hear(&bytes, piece);
            assert_eq!(heard, expected);
            assert_eq!(cost, largest.len() + 6, "what is not handled yet: the text of the messages");
        }
    }

    #[test]
    fn bad_frames_are_refused_behind_what_came_before() {
        let header = |first: u8, length: u16| [&[first, 0xfe][..], &length.to_be_bytes()].concat();
        let cases = [
            ("too long", header(0x81, 1_001), BadMessage::TooLong),
            (
                "too long in parts",
                [frame(0x01, &[b'x'; 600]), header(0x00, 401)].concat(),
                BadMessage::TooLong,
            ),
            ("no length", vec![0x81, 0xff, 255, 255, 255, 255, 255, 255, 255, 255], BadMessage::TooLong),
            ("a longer header than needed", header(0x81, 125), BadMessage::Malformed),
            ("reserved bits", frame(0xc1, b"x"), BadMessage::Malformed),
            ("of no kind", frame(0x83, b"x"), BadMessage::Malformed),
            ("not masked", vec![0x81, 0x01, b'x'], BadMessage::Malformed),
            ("a long ping", header(0x89, 126), BadMessage::Malformed),
            ("a ping in parts", frame(0x09, b"x"), BadMessage::Malformed),
            ("a last part alone", frame(0x80, b"x"), BadMessage::Malformed),
            ("a text within another", [frame(0x01, b"x"), frame(0x81, b"x")].concat(), BadMessage::Malformed),
            ("binary", frame(0x82, b"x"), BadMessage::Binary),
            ("binary in parts", frame(0x02, b"x"), BadMessage::Binary),
            ("no text", frame(0x81, b"\xff"), BadMessage::NotText),
        ];
        for (what, bad, expected) in cases {
            let bytes = [&frame(0x81, b"good")[..], &bad, &frame(0x81, b"unheard")].concat();
            for piece in [1, 3, 10_000] {
                assert_eq!(hear(&bytes, piece).0, [text("good"), Err(expected)], "{what}");
            }
        }
    }
}
