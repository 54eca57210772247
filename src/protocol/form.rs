//! How messages of the client protocol lie on what carries them, WebSocket in its usual form aside
//! (protocol §3.3 to §3.6): a line, an event, or a frame each. Owns also the last words of a
//! transport that says why it ends. Knows no command and no channel.

use bytes::{Bytes, BytesMut};

use super::code::Disconnect;
use super::push::Push;
use super::websocket;

/// What carries a connection, by the layout of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/connection/http_stream`
    HttpStream,
    /// `/connection/sse`
    Sse,
    /// `/connection/uni_websocket`
    UniWebsocket,
    /// `/connection/uni_http_stream`
    UniHttpStream,
    /// `/connection/uni_sse`
    UniSse,
}

impl Form {
    /// How many there are: [`Form::index`] is below it.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HttpStream, Self::Sse, Self::UniWebsocket, Self::UniHttpStream, Self::UniSse];

    /// Its place in a list of one thing for each.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its section in the config, and its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HttpStream => "http_stream",
            Self::Sse => "sse",
            Self::UniWebsocket => "uni_websocket",
            Self::UniHttpStream => "uni_http_stream",
            Self::UniSse => "uni_sse",
        }
    }

    /// Whether the client only listens: pushes stand bare, and there are no replies (protocol §3.6).
    pub const fn is_uni(self) -> bool {
        matches!(self, Self::UniWebsocket | Self::UniHttpStream | Self::UniSse)
    }

    /// Whether it writes events of the WHATWG's format.
    pub const fn is_sse(self) -> bool {
        matches!(self, Self::Sse | Self::UniSse)
    }

    /// Appends one message: a JSON object without a line feed.
    pub fn add(self, out: &mut BytesMut, message: &str) {
        match self {
            Self::HttpStream | Self::UniHttpStream => {
                out.extend_from_slice(message.as_bytes());
                out.extend_from_slice(b"\n");
            }
            Self::Sse | Self::UniSse => {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(message.as_bytes());
                out.extend_from_slice(b"\n\n");
            }
            Self::UniWebsocket => websocket::push_text(out, message),
        }
    }

    /// One message alone.
    pub fn message(self, message: &str) -> Bytes {
        let mut out = BytesMut::with_capacity(message.len() + 10);
        self.add(&mut out, message);
        out.freeze()
    }

    /// What opens the stream before anything is said: an event stream shows its reader that it is
    /// open by an empty line (protocol §3.4).
    pub const fn opening(self) -> &'static [u8] {
        if self.is_sse() { b"\r\n" } else { b"" }
    }

    /// A push as this form has it.
    pub fn write_push(self, out: &mut String, push: &Push<'_>) {
        if self.is_uni() { push.write_uni(out) } else { push.write(out) }
    }

    /// The final message: why the connection ends (protocol §6.3).
    pub fn disconnect_message(self, disconnect: &Disconnect) -> Bytes {
        let mut text = String::new();
        self.write_push(&mut text, &Push::Disconnect(disconnect));
        let mut out = BytesMut::new();
        self.add(&mut out, &text);
        if self == Self::UniWebsocket {
            out.extend_from_slice(&websocket::close(disconnect));
        }
        out.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::code::DisconnectCode;

    #[test]
    fn each_form_lays_messages_out_in_its_way() {
        let laid = Form::ALL.map(|form| form.message("{\"id\":1}"));
        let expected: [&[u8]; 5] = [
            b"{\"id\":1}\n",
            b"data: {\"id\":1}\n\n",
            b"\x81\x08{\"id\":1}",
            b"{\"id\":1}\n",
            b"data: {\"id\":1}\n\n",
        ];
        assert_eq!(laid, expected.map(Bytes::from_static));
    }

    #[test]
    fn the_last_words_are_a_push_and_a_socket_closes_behind_it() {
        let bye = |form: Form| form.disconnect_message(&DisconnectCode::BadRequest.into());
        let push = r#"{"disconnect":{"code":3501,"reason":"bad request"}}"#;
        assert_eq!(bye(Form::HttpStream), format!("{{\"push\":{push}}}\n"));
        assert_eq!(bye(Form::Sse), format!("data: {{\"push\":{push}}}\n\n"));
        assert_eq!(bye(Form::UniHttpStream), format!("{push}\n"));
        assert_eq!(bye(Form::UniSse), format!("data: {push}\n\n"));
        let mut frames = BytesMut::from(&websocket::text(push)[..]);
        frames.extend_from_slice(&websocket::close(&DisconnectCode::BadRequest.into()));
        assert_eq!(bye(Form::UniWebsocket), frames);
    }

    #[test]
    fn every_form_has_a_place_of_its_own() {
        let places: Vec<usize> = Form::ALL.iter().map(|form| form.index()).collect();
        assert_eq!(places, (0..Form::COUNT).collect::<Vec<_>>());
    }
}
