//! The messages inside a frame, one to a line, told apart without parsing them: a million a second
//! must cost the client less than they cost the server. What was published carries its number.

use std::io::Write as _;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use memchr::memmem::Finder;
use serde_json::Value;

/// Digits of a number.
pub const DIGITS: usize = 10;
/// What stands before the number, and nowhere else.
const MARK: &[u8] = b"{\"loadtest\":\"";
const MIDDLE: &[u8] = b"\",\"pad\":\"";
const END: &[u8] = b"\"}";
/// The shortest data there is: without padding.
pub const SHORTEST: usize = MARK.len() + DIGITS + MIDDLE.len() + END.len();

static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARK));

/// One message from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A publication of ours, with its number.
    Publication(u32),
    /// To be answered.
    Ping,
    /// Anything else.
    Other(&'a [u8]),
}

/// The data to publish as `number`: a JSON object of `size` bytes, and where its digits start.
pub fn data(number: u32, size: usize) -> (Vec<u8>, usize) {
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(MARK);
    out.extend_from_slice(&digits(number));
    out.extend_from_slice(MIDDLE);
    out.resize(size.max(SHORTEST) - END.len(), b'x');
    out.extend_from_slice(END);
    (out, MARK.len())
}

/// The number as it stands in the data.
pub fn digits(number: u32) -> [u8; DIGITS] {
    let mut out = [b'0'; DIGITS];
    write!(&mut out[..], "{number:0DIGITS$}").expect("a u32 has ten digits at most");
    out
}

/// The messages of a text frame.
pub fn lines(frame: &[u8]) -> impl Iterator<Item = Result<Line<'_>>> {
    let mut rest = Some(frame);
    std::iter::from_fn(move || {
        let line = match memchr::memchr(b'\n', rest?) {
            Some(end) => {
                let (line, after) = rest?.split_at(end);
                rest = Some(&after[1..]).filter(|after| !after.is_empty());
                line
            }
            None => rest.take()?,
        };
        Some(read(line))
    })
}

fn read(line: &[u8]) -> Result<Line<'_>> {
    if line == b"{}" {
        return Ok(Line::Ping);
    }
    let Some(at) = FINDER.find(line) else { return Ok(Line::Other(line)) };
    let digits = line.get(at + MARK.len()..at + MARK.len() + DIGITS);
    let number = digits.and_then(|digits| {
        digits.iter().try_fold(0_u32, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        })
    });
    match number {
        Some(number) => Ok(Line::Publication(number)),
        None => bail!("no number in {}", shown(line)),
    }
}

/// Which command a reply answers; an error if the command failed or this is no reply.
pub fn replied(line: &[u8]) -> Result<u64> {
    let reply: Value = serde_json::from_slice(line).with_context(|| format!("no JSON: {}", shown(line)))?;
    match (reply["id"].as_u64(), reply.get("error")) {
        (Some(id), None) => Ok(id),
        _ => bail!("the server said {}", shown(line)),
    }
}

/// A message for people.
pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(frame: &[u8]) -> Vec<Line<'_>> {
        lines(frame).map(Result::unwrap).collect()
    }

    #[test]
    fn data_is_json_of_the_size_that_was_asked_for() {
        for (size, expected) in [(128, 128), (SHORTEST, SHORTEST), (0, SHORTEST), (5000, 5000)] {
            let (data, at) = data(42, size);
            assert_eq!(data.len(), expected);
            assert_eq!(&data[at..at + DIGITS], b"0000000042");
            assert_eq!(serde_json::from_slice::<Value>(&data).unwrap()["loadtest"], "0000000042");
        }
    }

    #[test]
    fn the_lines_of_a_frame_are_told_apart() {
        let (data, _) = data(u32::MAX, 128);
        let mut frame = b"{\"push\":{\"channel\":\"bench:a\",\"pub\":{\"data\":".to_vec();
        frame.extend_from_slice(&data);
        frame.extend_from_slice(b",\"offset\":7}}}\n{}\n{\"id\":1,\"connect\":{}}");
        let expected = [Line::Publication(u32::MAX), Line::Ping, Line::Other(b"{\"id\":1,\"connect\":{}}")];
        assert_eq!(read_all(&frame), expected);
        frame.push(b'\n');
        assert_eq!(read_all(&frame), expected, "one line feed at the very end is tolerated");
        assert_eq!(read_all(b"{}"), [Line::Ping]);
    }

    #[test]
    fn a_number_that_is_none_is_an_error() {
        for bad in ["{\"loadtest\":\"12\"}", "{\"loadtest\":\"12345abcde\"}", "{\"loadtest\":\"9999999999\"}"]
        {
            assert!(lines(bad.as_bytes()).next().unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_reply_without_an_error_is_a_reply() {
        assert_eq!(replied(b"{\"id\":2,\"subscribe\":{\"epoch\":\"x\"}}").unwrap(), 2);
        for bad in ["{\"id\":2,\"error\":{\"code\":103}}", "{\"push\":{\"channel\":\"a\"}}", "{"] {
            assert!(replied(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
