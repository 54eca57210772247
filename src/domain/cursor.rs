//! A position as a client holds it: one opaque text for SSE, polling and WebSocket recovery
//! (design, invariant 4). Of one channel it is `<epoch>.<offset>`; of several it is base64url
//! (no padding) of the JSON object `{channel: [epoch, offset]}`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::channel::ChannelName;
use super::position::{Epoch, Position};

/// The longest cursor that is looked at, in bytes: room for 32 channels of the longest name,
/// even if JSON escapes each of its characters.
pub const MAX_CURSOR: usize = 32 * 1024;

/// Where a reader is, on one channel or on several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cursor {
    /// On one channel, which the request names.
    One(Position),
    /// On each of several channels.
    Many(BTreeMap<ChannelName, Position>),
}

/// The text is no cursor. Over HTTP: 400 `bad_cursor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is malformed: pass one back exactly as it was given")]
pub struct BadCursor;

impl Cursor {
    /// Reads either form.
    pub fn parse(text: &str) -> Result<Self, BadCursor> {
        if text.len() > MAX_CURSOR {
            return Err(BadCursor);
        }
        if Self::is_of_one_channel(text) {
            return Position::parse(text).map(Self::One).ok_or(BadCursor);
        }
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCursor)?;
        let raw: BTreeMap<String, (String, u64)> = serde_json::from_slice(&json).map_err(|_| BadCursor)?;
        let mut positions = BTreeMap::new();
        for (channel, (epoch, offset)) in raw {
            let channel = ChannelName::parse(&channel).map_err(|_| BadCursor)?;
            let epoch = Epoch::parse(&epoch).ok_or(BadCursor)?;
            if offset > i64::MAX as u64 {
                return Err(BadCursor);
            }
            positions.insert(channel, Position { epoch, offset });
        }
        if positions.is_empty() { Err(BadCursor) } else { Ok(Self::Many(positions)) }
    }

    /// Whether a text has the form of a cursor on one channel: base64url has no dot.
    pub fn is_of_one_channel(text: &str) -> bool {
        text.contains('.')
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(position) => position.fmt(f),
            Self::Many(positions) => {
                let raw: BTreeMap<&str, (&str, u64)> =
                    positions.iter().map(|(c, p)| (c.as_str(), (p.epoch.as_str(), p.offset))).collect();
                let json = serde_json::to_vec(&raw).expect("texts and numbers are always JSON");
                f.write_str(&URL_SAFE_NO_PAD.encode(json))
            }
        }
    }
}
