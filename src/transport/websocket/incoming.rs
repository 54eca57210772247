//! What a client sends: bytes from the socket as far as the client has credit, and messages from
//! fragments. The library under the actor takes bytes until there are none before it reads a
//! frame, so the credit is what bounds its buffer: one message and its header, given back as
//! messages are handled. It also looks at a length only when it has the whole frame, which it never
//! has of one that is longer than the credit: so lengths are checked here.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use actix_http::ws::Item;
use actix_web::error::PayloadError;
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
    waiting: RefCell<Option<Waker>>,
}

impl Credit {
    /// Enough for the largest message, and for a ping between its parts.
    pub(super) fn new(largest_message: usize) -> Rc<Self> {
        let ping = LONGEST_CONTROL as usize + LONGEST_HEADER;
        Rc::new(Self {
            left: Cell::new(largest_message + LONGEST_HEADER + ping),
            waiting: RefCell::default(),
        })
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
        self.give(header_length(payload as u64) + 4);
    }
}

/// Bytes of a header with this length, without the mask.
fn header_length(payload: u64) -> usize {
    match payload {
        0..126 => 2,
        126..65_536 => 4,
        _ => 10,
    }
}

/// The bytes of a socket, as far as there is credit. Ends where the socket ends, for whatever reason.
pub(super) struct Incoming {
    outbox: Rc<Outbox>,
    /// What came with the request.
    first: Bytes,
    credit: Rc<Credit>,
    turn: usize,
    lengths: Lengths,
}

impl Incoming {
    pub(super) fn new(outbox: Rc<Outbox>, first: Bytes, credit: Rc<Credit>, largest_message: usize) -> Self {
        let lengths = Lengths { largest: largest_message as u64, ..Lengths::default() };
        Self { outbox, first, credit, turn: TURN, lengths }
    }

    fn take(&mut self, bytes: &[u8]) -> Poll<Option<Result<Bytes, PayloadError>>> {
        self.credit.left.set(self.credit.left.get() - bytes.len());
        self.turn = self.turn.saturating_sub(bytes.len());
        Poll::Ready(Some(Ok(self.lengths.check(bytes))))
    }
}

/// Reads the lengths of frames as their bytes pass.
#[derive(Default)]
struct Lengths {
    largest: u64,
    /// The parts so far of the message under way.
    message: u64,
    /// Bytes of the frame under way that are not its header's.
    rest: u64,
    /// A header that is not whole yet: up to its length, without the mask.
    header: [u8; 10],
    have: usize,
    /// A frame was too long: nothing more passes.
    over: bool,
}

impl Lengths {
    /// A header with a length that is none, so that the library refuses it at once as too long.
    const TOO_LONG: [u8; 10] = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

    /// A header of a kind that is none.
    const MALFORMED: [u8; 2] = [0x8f, 0x80];

    /// What of `bytes` goes on: all of it, headers only when they are whole. A header that cannot
    /// be becomes one that is refused, behind everything that came before it.
    fn check(&mut self, mut bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.have + bytes.len());
        while !self.over && !bytes.is_empty() {
            if self.rest > 0 {
                let most = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
                out.extend_from_slice(&bytes[..most]);
                (self.rest, bytes) = (self.rest - most as u64, &bytes[most..]);
                continue;
            }
            (self.header[self.have], bytes) = (bytes[0], &bytes[1..]);
            self.have += 1;
            let Some(length) = length_in(&self.header[..self.have]) else { continue };
            if let Some(instead) = self.refuse(length) {
                self.over = true;
                out.extend_from_slice(instead);
                break;
            }
            out.extend_from_slice(&self.header[..self.have]);
            let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
            (self.rest, self.have) = (length + mask, 0);
        }
        out.freeze()
    }

    /// What goes on in place of a header that cannot be.
    fn refuse(&mut self, length: u64) -> Option<&'static [u8]> {
        let kind = self.header[0] & 0x0f;
        // A length takes as few bytes as it can (RFC 6455 §5.2): the credit is given back by it.
        if self.have != header_length(length) || (kind >= 8 && length > LONGEST_CONTROL) {
            return Some(&Self::MALFORMED);
        }
        self.message = match kind {
            0 => self.message.saturating_add(length),
            1..8 => length,
            _ => return None,
        };
        (self.message > self.largest).then_some(&Self::TOO_LONG)
    }
}

/// The length of the payload, once the header has it (RFC 6455 §5.2).
fn length_in(header: &[u8]) -> Option<u64> {
    match header.get(1)? & 0x7f {
        126 => Some(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?).into()),
        127 => Some(u64::from_be_bytes(header.get(2..10)?.try_into().ok()?)),
        short => Some(short.into()),
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
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
            if this.first.is_empty() {
                this.first = Bytes::new();
            }
            return this.take(&bytes);
        }
        let Some(wire) = this.outbox.wire() else { return Poll::Ready(None) };
        let mut buffer = [0; READ];
        let most = most.min(READ);
        loop {
            match wire.try_read(&mut buffer[..most]) {
                Ok(0) => return Poll::Ready(None),
                Ok(count) => return this.take(&buffer[..count]),
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
    fn bytes_pass_as_they_are_up_to_a_frame_that_is_too_long() {
        let largest = 1_000;
        let frame = |length: usize| {
            let mut header = vec![0x81, 0xfe];
            header.extend(u16::try_from(length).unwrap().to_be_bytes());
            header.extend(vec![7; 4 + length]);
            header
        };
        let good = [&frame(1_000)[..], b"\x81\x80mask", b"\x89\x81maskx", b"\x81\x00", &frame(126)].concat();
        let bad = [&good[..], &frame(1_001), b"\x81\x80mask"].concat();
        for piece in [1, 2, 3, 5, 7, 64, 10_000] {
            let passed = |bytes: &[u8]| {
                let mut lengths = Lengths { largest, ..Lengths::default() };
                bytes.chunks(piece).flat_map(|chunk| lengths.check(chunk)).collect::<Vec<u8>>()
            };
            assert_eq!(passed(&good), good);
            assert_eq!(passed(&bad), [&good[..], &Lengths::TOO_LONG].concat());
        }
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

    trait Slice {
        fn slice(&self, range: impl std::slice::SliceIndex<[u8], Output = [u8]>) -> Bytes;
    }

    impl Slice for [u8] {
        fn slice(&self, range: impl std::slice::SliceIndex<[u8], Output = [u8]>) -> Bytes {
            Bytes::copy_from_slice(&self[range])
        }
    }
}
