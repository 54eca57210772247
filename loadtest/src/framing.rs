//! How HTTP/1.1 answers are framed: the head, and a body by length, in chunks, or up to the close.
//! Plain values fed with bytes as they come, however they were cut. Only as strict as a load tool
//! needs; what it cannot frame is an error, never a guess.

use anyhow::{Context, Result, bail, ensure};

/// More than any sensible answer's head.
const MAX_HEAD: usize = 64 * 1024;

/// The status line and the headers that matter here.
#[derive(Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// The body that follows.
    pub body: Body,
    /// The connection takes no further request.
    pub close: bool,
}

/// A body on its way in.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes to come.
    Length(u64),
    /// Chunks to come.
    Chunked(Chunk),
    /// Everything until the peer closes.
    UntilClose,
}

/// Where in the chunked coding the next byte belongs.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the line with the size: its digits so far, and whether extensions have begun.
    Size { value: u64, digits: u8, extension: bool },
    /// In data, with so many bytes left.
    Data(u64),
    /// In the line end after the data.
    DataEnd,
    /// In the trailers, with so many bytes on the current line.
    Trailer(usize),
    /// After the last.
    Done,
}

const NEXT_SIZE: Chunk = Chunk::Size { value: 0, digits: 0, extension: false };

impl Head {
    /// Reads a head from the start of `input`: none yet, or it and its length.
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") else {
            ensure!(input.len() <= MAX_HEAD, "the answer's head has no end");
            return Ok(None);
        };
        let text = std::str::from_utf8(&input[..end]).context("the answer's head is not text")?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let version = first.split(' ').next().unwrap_or_default();
        ensure!(matches!(version, "HTTP/1.1" | "HTTP/1.0"), "not HTTP/1: {first:?}");
        let status: u16 = first
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status in {first:?}"))?;

        let mut length = None;
        let mut chunked = false;
        let mut close = version == "HTTP/1.0";
        for line in lines {
            let (name, value) = line.split_once(':').with_context(|| format!("no header: {line:?}"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse().with_context(|| format!("no length: {value:?}"))?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                ensure!(value.eq_ignore_ascii_case("chunked"), "unknown coding {value:?}");
                chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                close = value.eq_ignore_ascii_case("close");
            }
        }
        let empty = matches!(status, 100..=199 | 204 | 304);
        let body = match length {
            _ if empty => Body::Length(0),
            _ if chunked => Body::Chunked(NEXT_SIZE),
            Some(length) => Body::Length(length),
            None => Body::UntilClose,
        };
        let close = close || body == Body::UntilClose;
        Ok(Some((Self { status, body, close }, end + 4)))
    }
}

impl Body {
    /// All of it has been taken.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Moves what `input` holds of the body to `out`, and says how many bytes of input that took.
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        match self {
            Self::Length(left) => Ok(take_data(left, input, out)),
            Self::UntilClose => {
                out.extend_from_slice(input);
                Ok(input.len())
            }
            Self::Chunked(chunk) => {
                let mut used = 0;
                while used < input.len() && *chunk != Chunk::Done {
                    used += chunk.step(&input[used..], out)?;
                }
                Ok(used)
            }
        }
    }
}

impl Chunk {
    /// Takes one byte, or as much data as there is. `input` is not empty.
    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let byte = input[0];
        match self {
            Self::Size { value, digits, extension } => match byte {
                b'\n' => {
                    ensure!(*digits > 0, "a chunk without a size");
                    *self = if *value == 0 { Self::Trailer(0) } else { Self::Data(*value) };
                }
                b'\r' => {}
                b';' => *extension = true,
                _ if *extension => {}
                _ => {
                    let digit = (byte as char).to_digit(16).context("a chunk's size is not hexadecimal")?;
                    ensure!(*digits < 15, "a chunk is too long");
                    *value = *value * 16 + u64::from(digit);
                    *digits += 1;
                }
            },
            Self::Data(left) => {
                let used = take_data(left, input, out);
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                return Ok(used);
            }
            Self::DataEnd => match byte {
                b'\r' => {}
                b'\n' => *self = NEXT_SIZE,
                _ => bail!("a chunk is longer than its size"),
            },
            Self::Trailer(on_line) => match byte {
                b'\n' if *on_line == 0 => *self = Self::Done,
                b'\n' => *on_line = 0,
                b'\r' => {}
                _ => *on_line += 1,
            },
            Self::Done => return Ok(0),
        }
        Ok(1)
    }
}

fn take_data(left: &mut u64, input: &[u8], out: &mut Vec<u8>) -> usize {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    out.extend_from_slice(&input[..count]);
    *left -= count as u64;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"4\r\nWiki\r\nA;name=v\r\npedia in\r\n\r\n0\r\nX-Sum: 1\r\n\r\nHTTP";

    fn head(text: &str) -> Head {
        let (head, length) = Head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_head_says_how_its_body_ends() {
        let sized = head("HTTP/1.1 202 Accepted\r\ncontent-length: 17\r\nX: y\r\n\r\n");
        assert_eq!((sized.status, &sized.body, sized.close), (202, &Body::Length(17), false));
        let chunked = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!((chunked.body, chunked.close), (Body::Chunked(NEXT_SIZE), false));
        let open = head("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!((open.body, open.close), (Body::UntilClose, true));
        let none = head("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\nConnection: close\r\n\r\n");
        assert_eq!((none.body, none.close), (Body::Length(0), true));
    }

    #[test]
    fn a_head_may_come_in_pieces_but_must_be_one() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
        for cut in 0..text.len() - 1 {
            assert!(Head::parse(&text[..cut]).unwrap().is_none(), "{cut}");
        }
        for bad in
            ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"]
        {
            assert!(Head::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Head::parse(&[b'a'; MAX_HEAD + 1]).is_err());
    }

    #[test]
    fn chunks_are_joined_wherever_they_were_cut() {
        for cut in 0..=CHUNKED.len() {
            let mut body = Body::Chunked(NEXT_SIZE);
            let mut out = Vec::new();
            let mut used = 0;
            for end in [cut, CHUNKED.len()] {
                used += body.take(&CHUNKED[used..end.max(used)], &mut out).unwrap();
            }
            assert!(body.is_done(), "{cut}");
            assert_eq!(out, b"Wikipedia in\r\n");
            assert_eq!(&CHUNKED[used..], b"HTTP", "the next answer is left alone");
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for bad in ["x\r\n", "\r\n", "1\r\nab", "ffffffffffffffff\r\n"] {
            assert!(Body::Chunked(NEXT_SIZE).take(bad.as_bytes(), &mut Vec::new()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_length_is_exact() {
        let (mut body, mut out) = (Body::Length(3), Vec::new());
        assert_eq!(body.take(b"ab", &mut out).unwrap(), 2);
        assert!(!body.is_done());
        assert_eq!(body.take(b"cdef", &mut out).unwrap(), 1);
        assert!(body.is_done());
        assert_eq!(out, b"abc");
    }
}
