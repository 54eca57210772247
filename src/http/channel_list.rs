//! Several channels in one request: `channels=a,b` and the cursor of all of them, which the event stream
//! and polls have in common.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ApiError;
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::position::Position;

/// The channels of `channels=`, with commas between. A comma that belongs to a name is written `\\,`, and a
/// backslash `\\\\`; before anything else a backslash stands for itself.
pub(super) fn parse(names: &str) -> Result<BTreeSet<ChannelName>, ApiError> {
    let parse = |name: String| {
        ChannelName::parse(name.trim())
            .map_err(|error| ApiError::bad_request("bad_channel", error.to_string()))
    };
    split(names).into_iter().map(parse).collect()
}

fn split(names: &str) -> Vec<String> {
    let (mut parts, mut rest) = (vec![String::new()], names.chars().peekable());
    while let Some(next) = rest.next() {
        let next = match next {
            ',' => {
                parts.push(String::new());
                continue;
            }
            '\\' => rest.next_if(|after| matches!(after, ',' | '\\')).unwrap_or('\\'),
            plain => plain,
        };
        parts.last_mut().expect("there is always one").push(next);
    }
    parts
}

/// Refuses more than `max` of them.
pub(super) fn check_number(channels: &BTreeSet<ChannelName>, max: usize) -> Result<(), ApiError> {
    if channels.len() <= max {
        return Ok(());
    }
    let message = format!("a request can have at most {max} channels (limits.stream_channels)");
    Err(ApiError::bad_request("too_many_channels", message))
}

/// Where the reader is on each of `channels`, by the text of a cursor.
pub(super) fn positions(
    text: &str,
    channels: &BTreeSet<ChannelName>,
) -> Result<BTreeMap<ChannelName, Position>, ApiError> {
    let bad = |message: &str| ApiError::bad_request("bad_cursor", message);
    match Cursor::parse(text).map_err(|error| bad(&error.to_string()))? {
        Cursor::One(position) => match channels.first() {
            Some(only) if channels.len() == 1 => Ok(BTreeMap::from([(only.clone(), position)])),
            _ => Err(bad("the cursor belongs to a single channel, but several are requested")),
        },
        Cursor::Many(positions) if positions.keys().all(|channel| channels.contains(channel)) => {
            Ok(positions)
        }
        Cursor::Many(_) => Err(bad("the cursor has channels that are not requested")),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_comma_in_a_name_is_written_with_a_backslash() {
        for (text, names) in [
            ("a,b", vec!["a", "b"]),
            (r"dialog#42\,43,b", vec!["dialog#42,43", "b"]),
            (r"a\\,b", vec![r"a\", "b"]),
            (r"a\b\", vec![r"a\b\"]),
            ("", vec![""]),
            (",", vec!["", ""]),
        ] {
            assert_eq!(split(text), names, "{text}");
        }
    }
}
