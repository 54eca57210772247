//! As much of the protocol of Redis as it takes to lose one message on its way to a node: where each
//! reply ends, and which of them announces something on a channel. Everything else passes unchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use memchr::memmem;

/// What names of channels have in them.
const CHANNEL: &[u8] = b":c:";

/// How many messages are still to be lost, and how many were.
#[derive(Debug, Default)]
pub struct Losses {
    wanted: AtomicU64,
    lost: AtomicU64,
}

/// Passes on what Redis says on one connection.
pub struct Tap {
    pending: Vec<u8>,
    losses: Arc<Losses>,
}

impl Losses {
    /// So many of the next messages are to be lost.
    pub fn want(&self, messages: u64) {
        self.wanted.store(messages, Ordering::Relaxed);
    }

    /// How many were lost until now.
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

impl Tap {
    /// On a new connection.
    pub fn new(losses: Arc<Losses>) -> Self {
        Self { pending: Vec::new(), losses }
    }

    /// What to pass on instead of `input`.
    pub fn rewrite(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        self.pending.extend_from_slice(input);
        let (mut at, mut out) = (0, Vec::with_capacity(self.pending.len()));
        while let Some(length) = length(&self.pending[at..])? {
            let reply = &self.pending[at..at + length];
            if !(is_announcement(reply) && self.losses.take()) {
                out.extend_from_slice(reply);
            }
            at += length;
        }
        self.pending.drain(..at);
        Ok(out)
    }
}

fn is_announcement(reply: &[u8]) -> bool {
    let Some(rest) = reply.get(1..).filter(|_| matches!(reply[0], b'*' | b'>')) else { return false };
    let Some(rest) = rest.strip_prefix(b"3\r\n$7\r\nmessage\r\n$") else { return false };
    // The name of the channel: its length, and itself.
    let mut lines = rest.splitn(3, |byte| *byte == b'\n');
    lines.next().is_some() && lines.next().is_some_and(|name| memmem::find(name, CHANNEL).is_some())
}

/// The length of the reply at the start of `input`, once all of it is there.
fn length(input: &[u8]) -> Result<Option<usize>> {
    let Some(end) = memmem::find(input, b"\r\n") else { return Ok(None) };
    let (kind, line, mut length) = (input[0], &input[1..end], end + 2);
    let count = || -> Result<i64> {
        let number = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
        number.with_context(|| format!("{:?} is no length", String::from_utf8_lossy(line)))
    };
    match kind {
        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
        b'$' | b'!' | b'=' => {
            if let Ok(bytes) = usize::try_from(count()?) {
                length += bytes + 2;
            }
        }
        b'*' | b'>' | b'~' | b'%' | b'|' => {
            let values = if matches!(kind, b'%' | b'|') { 2 * count()? } else { count()? };
            for _ in 0..values {
                match self::length(input.get(length..).unwrap_or_default())? {
                    Some(value) => length += value,
                    None => return Ok(None),
                }
            }
        }
        kind => bail!("{:?} begins no reply", char::from(kind)),
    }
    Ok((input.len() >= length).then_some(length))
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
            let said = [OTHERS, &first, &second, OTHERS].concat();
            for piece in [1, 7, said.len()] {
                let losses = Arc::new(Losses::default());
                let mut tap = Tap::new(losses.clone());
                losses.want(1);
                let out: Vec<u8> =
                    said.as_bytes().chunks(piece).flat_map(|piece| tap.rewrite(piece).unwrap()).collect();
                assert_eq!(String::from_utf8(out).unwrap(), [OTHERS, &second, OTHERS].concat());
                assert_eq!(losses.lost(), 1);
            }
        }
        assert!(Tap::new(Arc::default()).rewrite(b"what\r\n").is_err());
    }
}
