//! What one subscriber saw of one channel, in the order in which it saw it: sixteen bytes an entry.
//! It records and does not judge; the data of an event is kept as a hash, and its transport in the
//! entry of the connection.

use std::fmt;
use std::hash::{DefaultHasher, Hasher as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `/connection/websocket`.
    WebSocket,
    /// `/connection/http_stream` with posts.
    HttpStream,
    /// `/connection/sse` with posts.
    Sse,
    /// `/connection/uni_websocket`.
    UniWebSocket,
    /// `/connection/uni_http_stream`.
    UniHttpStream,
    /// `/connection/uni_sse`.
    UniSse,
    /// `/api/events/stream`.
    Events,
    /// `/api/events`.
    Poll,
}

impl Transport {
    pub const ALL: [Self; 8] = [
        Self::WebSocket,
        Self::HttpStream,
        Self::Sse,
        Self::UniWebSocket,
        Self::UniHttpStream,
        Self::UniSse,
        Self::Events,
        Self::Poll,
    ];

    /// Those on which events come by themselves.
    pub fn pushing() -> Vec<Self> {
        Self::ALL.into_iter().filter(|transport| *transport != Self::Poll).collect()
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WebSocket => "websocket",
            Self::HttpStream => "http_stream",
            Self::Sse => "sse",
            Self::UniWebSocket => "uni_websocket",
            Self::UniHttpStream => "uni_http_stream",
            Self::UniSse => "uni_sse",
            Self::Events => "events",
            Self::Poll => "polling",
        })
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally([u64; Transport::ALL.len()]);

impl Tally {
    pub fn count(&mut self, transport: Transport) {
        self.0[transport as usize] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    pub fn each(&self) -> impl Iterator<Item = (Transport, u64)> {
        Transport::ALL.into_iter().zip(self.0)
    }
}

/// Hash of the data of an event, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub u64);

impl Digest {
    pub fn of(data: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(data.as_bytes());
        Self(hasher.finish())
    }
}

/// One thing that happened to a subscriber on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A connection began, with the cursor as it was.
    Connected(Transport),
    Event {
        offset: u32,
        digest: Digest,
    },
    /// The server said that it goes on behind `head`, and not where the subscriber was.
    Signal {
        /// The last offset that it will not send.
        head: u32,
    },
    /// An event was read by cursor, from a range that a signal had left out.
    Read {
        offset: u32,
        digest: Digest,
    },
    /// Reading by cursor was answered that everything up to `to` is gone (410).
    Gone {
        /// The last offset that is gone.
        to: u32,
        /// The head at that time.
        head: u32,
    },
    /// The server said that the channel has another history from here on, under this epoch.
    #[expect(clippy::box_collection, reason = "an entry stays at sixteen bytes")]
    EpochChanged(Box<String>),
    /// The server did what it never should: a refusal, another epoch, a message that makes no sense.
    #[expect(clippy::box_collection, reason = "an entry stays at sixteen bytes")]
    Unexpected(Box<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_sixteen_bytes() {
        assert_eq!(size_of::<Entry>(), 16);
    }
}
