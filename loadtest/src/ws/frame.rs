//! WebSocket frames as a client needs them: a server's are cut out of whatever bytes have come, a
//! client's are masked. Copies nothing on the way in. Refuses what no gateway sends: masked,
//! fragmented or compressed frames, and lengths beyond reason.

use anyhow::{Result, ensure};

/// More than any frame here should hold.
const MAX_PAYLOAD: u64 = 16 * 1024 * 1024;
/// A client must mask, but nothing between here and there needs to be fooled.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a frame is, by its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Messages, joined by line feeds.
    Text = 0x1,
    /// Never sent in the JSON protocol.
    Binary = 0x2,
    /// The end, with a code and a reason.
    Close = 0x8,
    /// A WebSocket's own ping.
    Ping = 0x9,
    /// A WebSocket's own pong.
    Pong = 0xa,
}

/// The first frame of `input`, its payload and how many bytes it took; none until it is complete.
pub fn split(input: &[u8]) -> Result<Option<(Kind, &[u8], usize)>> {
    let [first, second, ..] = *input else { return Ok(None) };
    let kind = match first {
        0x81 => Kind::Text,
        0x82 => Kind::Binary,
        0x88 => Kind::Close,
        0x89 => Kind::Ping,
        0x8a => Kind::Pong,
        _ => anyhow::bail!("a frame starts with {first:#04x}, which is none that a gateway sends"),
    };
    ensure!(second & 0x80 == 0, "the server masked a frame");
    let Some((head, length)) = head(input)? else { return Ok(None) };
    let end = head + length;
    Ok(input.get(head..end).map(|payload| (kind, payload, end)))
}

/// The lengths of a frame's head, without a mask, and of its payload (RFC 6455, section 5.2).
fn head(input: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(second) = input.get(1) else { return Ok(None) };
    let (head, length) = match second & 0x7f {
        126 => match input.get(2..4) {
            Some(bytes) => (4, u16::from_be_bytes(bytes.try_into()?).into()),
            None => return Ok(None),
        },
        127 => match input.get(2..10) {
            Some(bytes) => (10, u64::from_be_bytes(bytes.try_into()?)),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    ensure!(length <= MAX_PAYLOAD, "a frame of {length} bytes");
    Ok(Some((head, length as usize)))
}

/// Appends the head of a server's text frame of `length` bytes.
pub fn put_text_head(length: usize, out: &mut Vec<u8>) {
    out.push(0x80 | Kind::Text as u8);
    put_length(length, 0, out);
}

/// A client's frame.
pub fn masked(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    out.push(0x80 | kind as u8);
    put_length(payload.len(), 0x80, &mut out);
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// The first frame of a client, unmasked, and how many bytes it took; none until it is complete.
pub fn unmask(input: &[u8]) -> Result<Option<(u8, Vec<u8>, usize)>> {
    let [first, second, ..] = *input else { return Ok(None) };
    ensure!(second & 0x80 != 0, "a client must mask");
    let Some((head, length)) = head(input)? else { return Ok(None) };
    let Some(bytes) = input.get(head..head + 4 + length) else { return Ok(None) };
    let (mask, payload) = bytes.split_at(4);
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok(Some((first & 0x0f, payload, head + 4 + length)))
}

fn put_length(length: usize, flag: u8, out: &mut Vec<u8>) {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(flag | short),
        (_, Ok(medium)) => {
            out.push(flag | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(flag | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_text_head(payload.len(), &mut out);
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_frame_of_any_length_comes_out_as_it_went_in() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 100_000] {
            let payload = vec![b'x'; length];
            let frame = text(&payload);
            let whole = frame.len();
            assert_eq!(split(&frame).unwrap(), Some((Kind::Text, &payload[..], whole)), "{length}");
            assert_eq!(split(&frame[..whole - 1]).unwrap(), None, "{length}: not whole");
        }
    }

    #[test]
    fn frames_are_the_same_wherever_the_bytes_were_cut() {
        let mut bytes = text(b"{}");
        bytes.extend(text(&[b'y'; 300]));
        bytes.extend([0x89, 2, b'h', b'i', 0x88, 2, 0x0b, 0xc0]);
        for cut in 0..=bytes.len() {
            let (mut frames, mut rest) = (Vec::new(), Vec::new());
            for piece in [&bytes[..cut], &bytes[cut..]] {
                rest.extend_from_slice(piece);
                let mut at = 0;
                while let Some((kind, payload, length)) = split(&rest[at..]).unwrap() {
                    frames.push((kind, payload.len()));
                    at += length;
                }
                rest.drain(..at);
            }
            let expected = [(Kind::Text, 2), (Kind::Text, 300), (Kind::Ping, 2), (Kind::Close, 2)];
            assert_eq!((&frames[..], rest.len()), (&expected[..], 0), "{cut}");
        }
    }

    #[test]
    fn what_no_gateway_sends_is_refused() {
        for bytes in
            [&[0x01, 0][..], &[0x80, 0], &[0xc1, 0], &[0x81, 0x80], &[0x81, 127, 1, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert!(split(bytes).is_err(), "{bytes:x?}");
        }
    }

    #[test]
    fn a_masked_frame_is_read_back() {
        for length in [0, 5, 125, 126, 65_535, 65_536] {
            let payload = vec![b'z'; length];
            let frame = masked(Kind::Text, &payload);
            assert_eq!(unmask(&frame).unwrap(), Some((1, payload, frame.len())), "{length}");
            assert_eq!(unmask(&frame[..frame.len() - 1]).unwrap(), None, "{length}: not whole");
        }
        // From RFC 6455, section 5.7.
        assert_eq!(
            masked(Kind::Text, b"Hello"),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]
        );
    }
}
