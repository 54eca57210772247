//! Loses single messages of Redis on their way to a node: finds where each reply ends, and which of them
//! announces something on a channel. Everything else passes unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use memchr::memmem;
use redis_protocol::resp2;
use redis_protocol::resp3::decode::complete;
use redis_protocol::resp3::types::{OwnedFrame, Resp3Frame as _};
use testkit::proxy::Filter;

/// What the Redis channels of the gateway's channels have in their name.
const CHANNEL: &[u8] = b":c:";

/// How many messages are still to be lost, and how many were.
#[derive(Debug, Default)]
pub struct Losses {
    wanted: AtomicU64,
    lost: AtomicU64,
}

/// Passes on what Redis sends on one connection.
pub struct MessageFilter {
    pending: Vec<u8>,
    losses: Arc<Losses>,
}

impl Losses {
    /// So many of the next messages are to be lost.
    pub fn want(&self, messages: u64) {
        self.wanted.store(messages, Ordering::Relaxed);
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        let one_less = |wanted: u64| wanted.checked_sub(1);
        let taken = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
        self.lost.fetch_add(taken.into(), Ordering::Relaxed);
        taken
    }
}

impl MessageFilter {
    pub fn new(losses: Arc<Losses>) -> Self {
        Self { pending: Vec::new(), losses }
    }
}

impl Filter for MessageFilter {
    fn rewrite(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        self.pending.extend_from_slice(input);
        let (mut at, mut out) = (0, Vec::with_capacity(self.pending.len()));
        while let Some((reply, length)) = decode(&self.pending[at..])? {
            if !(is_announcement(&reply) && self.losses.take()) {
                out.extend_from_slice(&self.pending[at..at + length]);
            }
            at += length;
        }
        self.pending.drain(..at);
        Ok(out)
    }
}

/// The reply at the start of `input` and its length, once all of it is there, in either version of the
/// protocol.
fn decode(input: &[u8]) -> Result<Option<(OwnedFrame, usize)>> {
    match resp2::decode::decode(input) {
        Ok(reply) => Ok(reply.map(|(frame, length)| (frame.into_resp3(), length))),
        Err(_) => Ok(complete::decode(input)?),
    }
}

fn is_announcement(reply: &OwnedFrame) -> bool {
    let (OwnedFrame::Array { data, .. } | OwnedFrame::Push { data, .. }) = reply else { return false };
    // In front of these the decoder may put what kind of push it is.
    let [.., kind, channel, _] = &data[..] else { return false };
    kind.as_bytes() == Some(b"message")
        && channel.as_bytes().is_some_and(|name| memmem::find(name, CHANNEL).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "+OK\r\n:3\r\n$-1\r\n*-1\r\n%1\r\n+proto\r\n:3\r\n$2\r\na\n\r\n>3\r\n$9\r\nsubscribe\r\n\
                          $5\r\np:c:a\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$9\r\np:control\r\n$3\r\n:c:\r\n";

    #[test]
    fn single_announcements_are_lost_and_nothing_else() {
        for kind in ["*", ">"] {
            let message = |data: &str| format!("{kind}3\r\n$7\r\nmessage\r\n$5\r\np:c:a\r\n$1\r\n{data}\r\n");
            let (first, second) = (message("1"), message("2"));
            let sent = [OTHERS, &first, &second, OTHERS].concat();
            for piece in [1, 7, sent.len()] {
                let losses = Arc::new(Losses::default());
                let mut filter = MessageFilter::new(losses.clone());
                losses.want(1);
                let out: Vec<u8> =
                    sent.as_bytes().chunks(piece).flat_map(|piece| filter.rewrite(piece).unwrap()).collect();
                assert_eq!(String::from_utf8(out).unwrap(), [OTHERS, &second, OTHERS].concat());
                assert_eq!(losses.lost(), 1);
            }
        }
        assert!(MessageFilter::new(Arc::default()).rewrite(b"what\r\n").is_err());
    }
}
