//! Reads the messages of a client from its socket, as far as it has credit. The length of a frame is
//! checked as soon as its header is complete, before the payload is buffered. Between two messages no
//! buffer is kept, because most clients send something once and then only receive for hours.

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
/// Bytes that are read before other connections of the thread get their turn.
const READ_BUDGET: usize = 64 * 1024;
/// The size of one read, in bytes.
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

    /// This many bytes were handled.
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

/// A frame or message of a client that the actor has to handle.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClientFrame {
    /// A message; its length is given back as credit when it is handled.
    Text(ByteString),
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    /// The client closes the connection.
    Close,
}

/// What is wrong with what a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadMessage {
    /// Longer than allowed.
    TooLong,
    /// The text is not UTF-8.
    NotText,
    /// Binary, which this server does not speak.
    Binary,
    /// Not a valid WebSocket frame.
    Malformed,
}

/// The messages of a client. The stream ends when the socket does, for whatever reason, and yields
/// nothing more after a bad message.
pub(super) struct Incoming {
    outbox: Rc<Outbox>,
    credit: Rc<Credit>,
    budget: usize,
    failed: bool,
    messages: Messages,
    /// What came with the request and has not been read yet.
    first: Option<Box<BytesMut>>,
}

impl Incoming {
    /// `first` came with the request.
    pub(super) fn new(outbox: Rc<Outbox>, first: BytesMut, credit: Rc<Credit>, largest: usize) -> Self {
        let first = (!first.is_empty()).then(|| Box::new(first));
        Self { outbox, credit, budget: READ_BUDGET, failed: false, messages: Messages::new(largest), first }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.credit.take(bytes.len());
        self.budget -= bytes.len();
        self.messages.bytes.extend_from_slice(bytes);
    }
}

impl Stream for Incoming {
    type Item = Result<ClientFrame, BadMessage>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Pending;
        }
        loop {
            match this.messages.next(&this.credit) {
                Ok(None) => {}
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Err(bad) => {
                    this.failed = true;
                    return Poll::Ready(Some(Err(bad)));
                }
            }
            let left = this.credit.left.get();
            if left == 0 {
                this.credit.waiting.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            if this.budget == 0 {
                this.budget = READ_BUDGET;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let most = left.min(this.budget).min(READ);
            if let Some(mut first) = this.first.take() {
                this.take(&first.split_to(most.min(first.len())));
                this.first = Some(first).filter(|rest| !rest.is_empty());
                continue;
            }
            let Some(wire) = this.outbox.upgraded_socket() else { return Poll::Ready(None) };
            let mut buffer = [0; READ];
            match wire.try_read(&mut buffer[..most]) {
                Ok(0) => return Poll::Ready(None),
                Ok(count) => this.take(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    this.budget = READ_BUDGET;
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

/// Decodes messages. The library parses the frames, but their limits are checked here, because the
/// library checks the length only when it has the whole frame.
struct Messages {
    /// The bytes of an incomplete frame.
    bytes: BytesMut,
    codec: Codec,
    /// The parts of a fragmented message that have arrived so far.
    parts: Option<Box<BytesMut>>,
    largest: usize,
}

impl Messages {
    fn new(largest: usize) -> Self {
        let codec = Codec::new().max_size(largest.max(LONGEST_CONTROL as usize));
        Self { bytes: BytesMut::new(), codec, parts: None, largest }
    }

    /// The next message, if it is complete. Returns the credit of everything but message payloads.
    fn next(&mut self, credit: &Credit) -> Result<Option<ClientFrame>, BadMessage> {
        while let Some(header) = Header::read(&self.bytes) {
            let whole = self.check(&header)?;
            if self.bytes.len() < whole {
                break;
            }
            let frame = self.codec.decode(&mut self.bytes).map_err(|_| BadMessage::Malformed)?;
            if self.bytes.is_empty() {
                // An empty buffer would still keep the memory that it shares with the frame alive.
                self.bytes = BytesMut::new();
            }
            credit.give(if header.is_control() { whole } else { whole - header.length as usize });
            match frame {
                Some(Frame::Text(text)) => return text_frame(text).map(Some),
                Some(Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_))) => {
                    return Err(BadMessage::Binary);
                }
                Some(Frame::Continuation(Item::FirstText(part) | Item::Continue(part))) => {
                    self.parts.get_or_insert_default().extend_from_slice(&part);
                }
                Some(Frame::Continuation(Item::Last(part))) => {
                    let mut text = self.parts.take().unwrap_or_default();
                    text.extend_from_slice(&part);
                    return text_frame(text.freeze()).map(Some);
                }
                Some(Frame::Ping(payload)) => return Ok(Some(ClientFrame::Ping(payload))),
                Some(Frame::Close(_)) => return Ok(Some(ClientFrame::Close)),
                Some(Frame::Pong(_)) | None => {}
            }
        }
        Ok(None)
    }

    /// The size of the whole frame, if such a frame is allowed.
    fn check(&self, header: &Header) -> Result<usize, BadMessage> {
        let data = match header.kind() {
            _ if header.first & 0x70 != 0 || !header.masked => return Err(BadMessage::Malformed),
            // The length must use the shortest encoding (RFC 6455 §5.2).
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

fn text_frame(text: Bytes) -> Result<ClientFrame, BadMessage> {
    ByteString::try_from(text).map(ClientFrame::Text).map_err(|_| BadMessage::NotText)
}

/// The header of a frame (RFC 6455 §5.2).
struct Header {
    first: u8,
    masked: bool,
    /// The size of the header, without the mask.
    bytes: usize,
    /// The size of the payload.
    length: u64,
}

impl Header {
    /// The header at the start of `bytes`, if it is complete up to the mask.
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

    /// The size of the whole masked frame; only for lengths that are allowed.
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

    /// The messages in `bytes`, which arrive in pieces, and how much credit they have used.
    fn read_all(bytes: &[u8], piece: usize) -> (Vec<Result<ClientFrame, BadMessage>>, usize) {
        let mut messages = Messages::new(LARGEST);
        let (credit, mut frames) = (Credit::new(LARGEST), Vec::new());
        let full = credit.left.get();
        'pieces: for piece in bytes.chunks(piece) {
            credit.take(piece.len());
            messages.bytes.extend_from_slice(piece);
            while let Some(next) = messages.next(&credit).transpose() {
                let over = next.is_err();
                frames.push(next);
                if over {
                    break 'pieces;
                }
            }
            assert!(!messages.bytes.is_empty() || messages.bytes.capacity() == 0, "nothing is kept");
        }
        (frames, full - credit.left.get())
    }

    fn text(text: &str) -> Result<ClientFrame, BadMessage> {
        Ok(ClientFrame::Text(text.to_owned().into()))
    }

    #[test]
    fn messages_are_read_in_whatever_pieces_they_come() {
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
            Ok(ClientFrame::Ping(Bytes::from("ping"))),
            Ok(ClientFrame::Ping(Bytes::new())),
            text("{\"ä\"}"),
            Ok(ClientFrame::Close),
        ];
        for piece in [1, 2, 3, 5, 7, 64, 10_000] {
            let (frames, cost) = read_all(&bytes, piece);
            assert_eq!(frames, expected);
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
                assert_eq!(read_all(&bytes, piece).0, [text("good"), Err(expected)], "{what}");
            }
        }
    }
}
