//! Server frames of WebSocket (RFC 6455 §5): text, pong and close as bytes. Reading frames is the
//! transport's, by its library; these are written here because the fan-out encodes an event once
//! for all its subscribers.

use actix_http::ws::{CloseCode, CloseReason, OpCode, Parser};
use bytes::{Bytes, BytesMut};

use super::code::Disconnect;

/// Appends a text frame.
pub fn push_text(out: &mut BytesMut, text: &str) {
    Parser::write_message(out, text, OpCode::Text, true, false);
}

/// A text frame.
pub fn text(text: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(text.len() + 10);
    push_text(&mut out, text);
    out.freeze()
}

/// The answer to a protocol ping.
pub fn pong(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 2);
    Parser::write_message(&mut out, payload, OpCode::Pong, true, false);
    out.freeze()
}

/// A close frame with a code of the client protocol (protocol §6.3).
pub fn close(disconnect: &Disconnect) -> Bytes {
    close_with(CloseCode::Other(disconnect.code()), disconnect.reason())
}

/// A close frame with any code.
pub fn close_with(code: CloseCode, reason: &str) -> Bytes {
    let mut out = BytesMut::new();
    Parser::write_close(&mut out, Some(CloseReason { code, description: Some(reason.to_owned()) }), false);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::code::DisconnectCode;

    #[test]
    fn frames_are_the_standards() {
        assert_eq!(text("{}"), Bytes::from_static(b"\x81\x02{}"));
        assert_eq!(text(&"x".repeat(126))[..4], [0x81, 126, 0, 126]);
        assert_eq!(text(&"x".repeat(70_000))[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0x11, 0x70]);
        assert_eq!(pong(b"p"), Bytes::from_static(b"\x8a\x01p"));
        assert_eq!(close(&DisconnectCode::Slow.into()), Bytes::from_static(b"\x88\x06\x0b\xc0slow"));
    }
}
