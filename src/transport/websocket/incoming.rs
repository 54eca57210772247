//! What a client sends: bytes from the socket as far as the client has credit, and messages from
//! fragments. The library under the actor takes bytes until there are none before it reads a
//! frame, so the credit is what bounds its buffer: one message and its header, given back as
//! messages are handled. A message for which the credit can never suffice is ended at its header.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_http::ws::Item;
use actix_rt::net::TcpStream;
use actix_web::error::PayloadError;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use futures_util::Stream;

/// The longest header of a client's frame (RFC 6455 §5.2).
const LONGEST_HEADER: usize = 14;
/// Bytes that are taken before other connections of the thread get their turn.
const TURN: usize = 64 * 1024;
/// Bytes of one read.
const READ: usize = 4096;

/// How many bytes a client may send before we have handled something.
pub(super) struct Credit {
    left: Cell<usize>,
    waiting: RefCell<Option<Waker>>,
}

impl Credit {
    /// Enough for the largest message.
    pub(super) fn new(largest_message: usize) -> Rc<Self> {
        Rc::new(Self { left: Cell::new(largest_message + LONGEST_HEADER), waiting: RefCell::default() })
    }

    /// So many bytes of payload were handled.
    pub(super) fn give(&self, payload: usize) {
        self.left.set(self.left.get() + payload);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// The header of a frame with this payload was handled.
    pub(super) fn give_header(&self, payload: usize) {
        let length = match payload {
            0..126 => 0,
            126..65_536 => 2,
            _ => 8,
        };
        self.give(2 + 4 + length);
    }
}

/// A header that the codec refuses as too long as soon as it sees it: its length is no length.
const TOO_LONG: [u8; 10] = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Looks at the lengths of frames as they come. The codec would look at one only when the whole
/// frame is there, and the credit for a frame that is too long never comes.
struct Lengths {
    largest: u64,
    /// A header that is not whole; held back until it is.
    header: [u8; 10],
    held: usize,
    /// Bytes to come that are no header.
    left: u64,
    /// Length of the unfinished message so far.
    message: u64,
    too_long: bool,
}

impl Lengths {
    fn new(largest: usize) -> Self {
        let largest = largest.try_into().unwrap_or(u64::MAX);
        Self { largest, header: [0; 10], held: 0, left: 0, message: 0, too_long: false }
    }

    /// What the codec shall see of `bytes`. Nothing follows a message that is too long.
    fn pass(&mut self, mut bytes: &[u8]) -> Bytes {
        let mut passed = BytesMut::with_capacity(self.held + bytes.len());
        while !bytes.is_empty() && !self.too_long {
            if self.left == 0 {
                self.header[self.held] = bytes[0];
                self.held += 1;
                bytes = &bytes[1..];
                self.judge(&mut passed);
            } else {
                let count = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                passed.extend_from_slice(&bytes[..count]);
                self.left -= count as u64;
                bytes = &bytes[count..];
            }
        }
        passed.freeze()
    }

    /// Passes the header on once it is whole (RFC 6455 §5.2).
    fn judge(&mut self, passed: &mut BytesMut) {
        let header = &self.header[..self.held];
        let [first, second, length @ ..] = header else { return };
        let length = match (second & 0x7f, length) {
            (126, [a, b]) => u64::from(u16::from_be_bytes([*a, *b])),
            (127, [a, b, c, d, e, f, g, h]) => u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
            (126 | 127, _) => return,
            (short, _) => short.into(),
        };
        let (is_last, is_control, is_masked) = (first & 0x80 != 0, first & 0x08 != 0, second & 0x80 != 0);
        let message = if is_control { length } else { self.message.saturating_add(length) };
        if message > self.largest {
            self.too_long = true;
            passed.extend_from_slice(&TOO_LONG);
            return;
        }
        if !is_control {
            self.message = if is_last { 0 } else { message };
        }
        self.left = length + if is_masked { 4 } else { 0 };
        passed.extend_from_slice(header);
        self.held = 0;
    }
}

/// The bytes of a socket, as far as there is credit. Ends where the socket ends, for whatever reason.
pub(super) struct Incoming {
    stream: Rc<TcpStream>,
    /// What came with the request.
    first: Bytes,
    credit: Rc<Credit>,
    lengths: Lengths,
    turn: usize,
}

impl Incoming {
    pub(super) fn new(stream: Rc<TcpStream>, first: Bytes, credit: Rc<Credit>, largest: usize) -> Self {
        Self { stream, first, credit, lengths: Lengths::new(largest), turn: TURN }
    }

    fn take(&mut self, bytes: &[u8]) -> Poll<Option<Result<Bytes, PayloadError>>> {
        self.credit.left.set(self.credit.left.get() - bytes.len());
        self.turn = self.turn.saturating_sub(bytes.len());
        Poll::Ready(Some(Ok(self.lengths.pass(bytes))))
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.lengths.too_long {
            return Poll::Pending;
        }
        let most = this.credit.left.get().min(this.turn);
        if most == 0 {
            if this.credit.left.get() > 0 {
                this.turn = TURN;
                cx.waker().wake_by_ref();
            } else {
                *this.credit.waiting.borrow_mut() = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        if !this.first.is_empty() {
            let bytes = this.first.split_to(this.first.len().min(most));
            return this.take(&bytes);
        }
        let mut buffer = [0; READ];
        let most = most.min(READ);
        loop {
            match this.stream.try_read(&mut buffer[..most]) {
                Ok(0) => return Poll::Ready(None),
                Ok(count) => return this.take(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    this.turn = TURN;
                    match this.stream.poll_read_ready(cx) {
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

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadMessage {
    /// Longer than allowed.
    TooLong,
    /// No UTF-8.
    NotText,
    /// Binary, which this server does not speak.
    Binary,
}

/// A message that comes in fragments.
#[derive(Default)]
pub(super) struct Fragments(Option<BytesMut>);

impl Fragments {
    /// Takes a fragment; answers the message with the last one.
    pub(super) fn add(&mut self, item: Item, largest: usize) -> Result<Option<ByteString>, BadMessage> {
        let (bytes, last) = match item {
            Item::FirstBinary(_) => return Err(BadMessage::Binary),
            Item::FirstText(bytes) | Item::Continue(bytes) => (bytes, false),
            Item::Last(bytes) => (bytes, true),
        };
        let whole = self.0.get_or_insert_default();
        if whole.len() + bytes.len() > largest {
            return Err(BadMessage::TooLong);
        }
        whole.extend_from_slice(&bytes);
        if !last {
            return Ok(None);
        }
        let whole = self.0.take().unwrap_or_default().freeze();
        ByteString::try_from(whole).map(Some).map_err(|_| BadMessage::NotText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(fragments: &mut Fragments, item: Item) -> Result<Option<ByteString>, BadMessage> {
        fragments.add(item, 8)
    }

    #[test]
    fn fragments_become_one_message() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, Item::FirstText("{\"ä".as_bytes().slice(..3))), Ok(None));
        assert_eq!(add(&mut fragments, Item::Continue("{\"ä".as_bytes().slice(3..))), Ok(None));
        assert_eq!(add(&mut fragments, Item::Last(Bytes::from("\"}"))), Ok(Some("{\"ä\"}".into())));
        assert_eq!(add(&mut fragments, Item::FirstText(Bytes::from("12345678"))), Ok(None), "a new one");
        assert_eq!(add(&mut fragments, Item::Last(Bytes::new())), Ok(Some("12345678".into())));
    }

    #[test]
    fn their_sum_is_what_may_not_be_too_long() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, Item::FirstText(Bytes::from("12345678"))), Ok(None));
        assert_eq!(add(&mut fragments, Item::Continue(Bytes::from("9"))), Err(BadMessage::TooLong));
    }

    #[test]
    fn only_whole_text_is_taken() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, Item::FirstBinary(Bytes::new())), Err(BadMessage::Binary));
        assert_eq!(add(&mut fragments, Item::FirstText(Bytes::from_static(b"\xff"))), Ok(None));
        assert_eq!(add(&mut fragments, Item::Last(Bytes::new())), Err(BadMessage::NotText));
    }

    /// A masked frame; its payload is zeros.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match length {
            0..126 => frame.push(0x80 | length as u8),
            126..65_536 => {
                frame.push(0xfe);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(0xff);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + 4 + length, 0);
        frame
    }

    /// What is passed on of `frames`, in pieces of any size the same.
    fn passed(frames: &[Vec<u8>]) -> Vec<u8> {
        let bytes = frames.concat();
        let in_pieces = |size: usize| {
            let mut lengths = Lengths::new(70_000);
            bytes.chunks(size).flat_map(|piece| lengths.pass(piece)).collect::<Vec<u8>>()
        };
        let whole = in_pieces(bytes.len());
        for size in [1, 2, 3, 7, 4096] {
            assert!(in_pieces(size) == whole, "pieces of {size}");
        }
        whole
    }

    #[test]
    fn what_is_not_too_long_passes_as_it_is() {
        let (text, more, last, ping) = (0x81, 0x01, 0x80, 0x89);
        let frames = [
            frame(text, 0),
            frame(text, 125),
            frame(text, 126),
            frame(text, 65_535),
            frame(text, 70_000),
            frame(more, 35_000),
            frame(ping, 125),
            frame(last, 35_000),
            frame(text, 70_000),
        ];
        assert!(passed(&frames) == frames.concat());
    }

    #[test]
    fn a_message_that_is_too_long_ends_at_its_header() {
        let (text, more, last, ping) = (0x81, 0x01, 0x80, 0x89);
        for long in [frame(text, 70_001), frame(ping, 70_001), vec![0x81, 0xff, 0, 1, 0, 0, 0, 0, 0, 0]] {
            let before = frame(text, 5);
            assert_eq!(passed(&[before.clone(), long, frame(text, 5)]), [before, TOO_LONG.into()].concat());
        }
        let parts = [frame(more, 35_000), frame(last, 35_001)];
        assert!(passed(&parts) == [parts[0].clone(), TOO_LONG.into()].concat());
        let refused = actix_http::ws::Parser::parse(&mut TOO_LONG[..].into(), true, 70_000);
        assert!(matches!(refused, Err(actix_http::ws::ProtocolError::Overflow)), "the codec sees it at once");
    }

    trait Slice {
        fn slice(&self, range: impl std::slice::SliceIndex<[u8], Output = [u8]>) -> Bytes;
    }

    impl Slice for [u8] {
        fn slice(&self, range: impl std::slice::SliceIndex<[u8], Output = [u8]>) -> Bytes {
            Bytes::copy_from_slice(&self[range])
        }
    }
}
