//! Where one is in a channel's log. An offset alone means nothing: the epoch says in which
//! history it counts, and two histories never share an epoch (design, invariant 2).

use std::cmp::Ordering;
use std::sync::Arc;

/// The longest epoch, in bytes.
pub const MAX_EPOCH: usize = 40;

/// The name of one history of a channel: 1 to [`MAX_EPOCH`] letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// Takes `text` as an epoch, if it has the right characters.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=MAX_EPOCH).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        (fits && plain).then(|| Self(text.into()))
    }

    /// The epoch as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A place in a channel's log: everything up to and including `offset` lies behind it.
/// Offset 0 is before the first event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, derive_more::Display)]
#[display("{epoch}.{offset}")]
pub struct Position {
    /// The history in which `offset` counts.
    pub epoch: Epoch,
    /// Events are numbered 1, 2, 3 … without a hole.
    pub offset: u64,
}

impl Position {
    /// A place in the history `epoch`.
    pub fn new(epoch: Epoch, offset: u64) -> Self {
        Self { epoch, offset }
    }

    /// Reads `<epoch>.<offset>`. The offset has no sign, no leading zero and fits `i64`,
    /// because both stores count in signed 64 bits.
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, offset) = text.split_once('.')?;
        Some(Self { epoch: Epoch::parse(epoch)?, offset: parse_offset(offset)? })
    }
}

/// Offsets compare within one history; places in two histories have no order.
impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.epoch == other.epoch).then(|| self.offset.cmp(&other.offset))
    }
}

/// A canonical decimal offset.
pub fn parse_offset(text: &str) -> Option<u64> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    let offset: u64 = if canonical { text.parse().ok()? } else { return None };
    (offset <= i64::MAX as u64).then_some(offset)
}
