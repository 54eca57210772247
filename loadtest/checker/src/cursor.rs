//! Cursors as clients hold them, without the gateway's own code: of one channel `<epoch>.<offset>`, of
//! several base64url of the JSON object `{channel: [epoch, offset]}`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// An epoch, and an offset in it.
pub type Position = (String, u32);

pub fn parse(text: &str) -> Option<Position> {
    let (epoch, offset) = text.split_once('.')?;
    Some((epoch.to_owned(), offset.parse().ok()?))
}

/// The position on a channel that a cursor of one channel or several holds.
pub fn position_in(cursor: &str, channel: &str) -> Option<Position> {
    if cursor.contains('.') {
        return parse(cursor);
    }
    let json = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let mut positions: BTreeMap<String, Position> = serde_json::from_slice(&json).ok()?;
    positions.remove(channel)
}

/// The cursor of these positions by channel.
pub fn cursor(positions: &BTreeMap<&str, (&str, u32)>) -> String {
    match positions.values().collect::<Vec<_>>()[..] {
        [(epoch, offset)] => format!("{epoch}.{offset}"),
        _ => {
            let json = serde_json::to_vec(positions).expect("texts and numbers are always JSON");
            URL_SAFE_NO_PAD.encode(json)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let one = BTreeMap::from([("a:b", ("e", 7))]);
        assert_eq!(position_in(&cursor(&one), "a:b"), Some(("e".to_owned(), 7)));
        let two = BTreeMap::from([("a:b", ("e", 7)), ("c:d", ("f", 0))]);
        assert_eq!(position_in(&cursor(&two), "c:d"), Some(("f".to_owned(), 0)));
        assert_eq!(position_in(&cursor(&two), "x:y"), None);
        // As the gateway writes it.
        assert_eq!(cursor(&two), "eyJhOmIiOlsiZSIsN10sImM6ZCI6WyJmIiwwXX0");
    }
}
