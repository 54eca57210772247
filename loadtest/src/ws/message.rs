//! The messages inside a frame, one to a line, told apart without parsing them: a million a second must
//! cost the client less than they cost the server. Each of our publications carries its number.

use std::io::Write as _;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use memchr::memmem::{self, Finder};
use serde_json::Value;

/// Digits of a number.
pub const DIGITS: usize = 10;
/// What stands before the number, and nowhere else.
const MARK: &[u8] = b"{\"loadtest\":\"";
const MIDDLE: &[u8] = b"\",\"pad\":\"";
const END: &[u8] = b"\"}";
const REPLY: &[u8] = b"{\"id\":";
const PUBLICATIONS: &[u8] = b",\"publications\":[";
/// The shortest data there is: without padding.
pub const SHORTEST: usize = MARK.len() + DIGITS + MIDDLE.len() + END.len();

static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(MARK));

/// One message from the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A publication of ours, with its number.
    Publication(u32),
    /// The protocol's ping, which must be answered.
    Ping,
    Other(&'a [u8]),
}

/// The reply to a command, and the position of its subscription.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    pub id: u64,
    /// The channel's epoch, if it has positions.
    pub epoch: Option<String>,
    /// The position of the subscription, before what it recovers.
    pub offset: u64,
    /// Whether everything missed was recovered.
    pub is_recovered: bool,
    /// The recovered publications, as JSON.
    publications: &'a [u8],
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

pub fn messages(frame: &[u8]) -> impl Iterator<Item = Result<Message<'_>>> {
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

fn read(line: &[u8]) -> Result<Message<'_>> {
    if line == b"{}" {
        return Ok(Message::Ping);
    }
    // A reply may carry publications by the hundred.
    let found = if line.starts_with(REPLY) { None } else { FINDER.find(line) };
    found.map_or(Ok(Message::Other(line)), |at| number_at(line, at).map(Message::Publication))
}

/// The number behind the mark at `at`.
fn number_at(line: &[u8], at: usize) -> Result<u32> {
    let digits = line.get(at + MARK.len()..at + MARK.len() + DIGITS);
    let number = digits.and_then(|digits| {
        digits.iter().try_fold(0_u32, |number, digit| {
            let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
            number.checked_mul(10)?.checked_add(digit)
        })
    });
    number.with_context(|| format!("no number in {}", excerpt(line)))
}

impl<'a> Reply<'a> {
    /// Reads a reply; an error if the command failed or this is no reply. Publications are not parsed,
    /// because ten thousand clients recover a million of them.
    pub fn read(line: &'a [u8]) -> Result<Self> {
        let (head, publications) = match memmem::find(line, PUBLICATIONS) {
            Some(at) => (&[&line[..at], b"}}"].concat()[..], &line[at..]),
            None => (line, &[][..]),
        };
        let reply: Value =
            serde_json::from_slice(head).with_context(|| format!("no JSON: {}", excerpt(line)))?;
        let (Some(id), None) = (reply["id"].as_u64(), reply.get("error")) else {
            bail!("the server sent {}", excerpt(line));
        };
        let position = &reply["subscribe"];
        Ok(Self {
            id,
            epoch: position["epoch"].as_str().map(str::to_owned),
            offset: position["offset"].as_u64().unwrap_or(0),
            is_recovered: position["recovered"] == true,
            publications,
        })
    }

    /// The numbers of our publications among those recovered, in their order.
    pub fn recovered(&self) -> impl Iterator<Item = Result<u32>> + use<'a> {
        numbers(self.publications)
    }
}

/// The numbers of our publications in any JSON, in their order.
pub fn numbers(json: &[u8]) -> impl Iterator<Item = Result<u32>> {
    FINDER.find_iter(json).map(move |at| number_at(json, at))
}

/// The beginning of some bytes, for error messages.
pub fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(frame: &[u8]) -> Vec<Message<'_>> {
        messages(frame).map(Result::unwrap).collect()
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
    fn the_messages_of_a_frame_are_told_apart() {
        let (data, _) = data(u32::MAX, 128);
        let mut frame = b"{\"push\":{\"channel\":\"bench:a\",\"pub\":{\"data\":".to_vec();
        frame.extend_from_slice(&data);
        frame.extend_from_slice(b",\"offset\":7}}}\n{}\n{\"id\":1,\"connect\":{}}");
        let expected =
            [Message::Publication(u32::MAX), Message::Ping, Message::Other(b"{\"id\":1,\"connect\":{}}")];
        assert_eq!(read_all(&frame), expected);
        frame.push(b'\n');
        assert_eq!(read_all(&frame), expected, "one line feed at the very end is tolerated");
        assert_eq!(read_all(b"{}"), [Message::Ping]);
    }

    #[test]
    fn a_number_that_is_none_is_an_error() {
        for bad in ["{\"loadtest\":\"12\"}", "{\"loadtest\":\"12345abcde\"}", "{\"loadtest\":\"9999999999\"}"]
        {
            assert!(messages(bad.as_bytes()).next().unwrap().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_reply_without_an_error_is_a_reply() {
        let reply = Reply::read(b"{\"id\":2,\"subscribe\":{\"epoch\":\"x\",\"offset\":7}}").unwrap();
        assert_eq!((reply.id, reply.epoch.as_deref(), reply.offset), (2, Some("x"), 7));
        for bad in ["{\"id\":2,\"error\":{\"code\":103}}", "{\"push\":{\"channel\":\"a\"}}", "{"] {
            assert!(Reply::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reply_may_carry_recovered_publications() {
        let one = |number| String::from_utf8(data(number, 0).0).unwrap();
        let line = format!(
            "{{\"id\":2,\"subscribe\":{{\"epoch\":\"x\",\"offset\":4,\"recovered\":true,\"publications\":\
             [{{\"data\":{},\"offset\":5}},{{\"data\":{},\"offset\":6}}]}}}}",
            one(9),
            one(3)
        );
        assert_eq!(read_all(line.as_bytes()), [Message::Other(line.as_bytes())], "not a publication");
        let reply = Reply::read(line.as_bytes()).unwrap();
        assert_eq!((reply.id, reply.offset, reply.is_recovered), (2, 4, true));
        assert_eq!(reply.recovered().map(Result::unwrap).collect::<Vec<_>>(), [9, 3]);
    }
}
