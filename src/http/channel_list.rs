//! Several channels in one request: `channels=a,b` and the cursor of all of them, which the event stream
//! and polls have in common.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ApiError;
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::domain::position::Position;

/// The channels of `channels=`, with commas between.
pub(super) fn parse(names: &str) -> Result<BTreeSet<ChannelName>, ApiError> {
    let parse = |name: &str| {
        ChannelName::parse(name.trim())
            .map_err(|error| ApiError::bad_request("bad_channel", error.to_string()))
    };
    names.split(',').map(parse).collect()
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
