//! JSON may name half of a character (RFC 8259, section 8.2), which no text of ours can hold: such as a name
//! that was cut within an emoji. U+FFFD takes its place, so that the rest is read. What is kept is what was sent.

use std::borrow::Cow;

/// In place of what is no character.
const REPLACEMENT: &[u8] = b"\\ufffd";

/// `json` with U+FFFD for each escape of half a surrogate pair.
pub fn replaced(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut mended: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(next) = memchr::memchr(b'\\', &bytes[at..]) {
        at += next;
        let Some(unit) = escaped(bytes, at) else {
            // Another escape, of one byte.
            at = (at + 2).min(bytes.len());
            continue;
        };
        let whole = match unit {
            0xD800..=0xDBFF if matches!(escaped(bytes, at + 6), Some(0xDC00..=0xDFFF)) => 12,
            0xD800..=0xDFFF => {
                let mended = mended.get_or_insert_with(|| bytes.to_vec());
                mended[at..at + 6].copy_from_slice(REPLACEMENT);
                6
            }
            _ => 6,
        };
        at += whole;
    }
    match mended {
        // ASCII took the place of ASCII.
        Some(mended) => String::from_utf8(mended).map_or(Cow::Borrowed(json), Cow::Owned),
        None => Cow::Borrowed(json),
    }
}

/// The UTF-16 unit that `\\uXXXX` at this place names.
fn escaped(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_replaced_and_nothing_else_is() {
        for same in [
            r"plain",
            r"\\ud83d",
            r"\ud83d\ude00",
            r"\uD83D\uDE00",
            r"\u00e4\n\\",
            r"\ud83",
            r"\",
            r"\u+123",
            "\u{1f600}\\",
        ] {
            assert!(matches!(replaced(same), Cow::Borrowed(text) if text == same), "{same}");
        }
        for (half, whole) in [
            (r"CI \ud83d", r"CI \ufffd"),
            (r"\uDE00!", r"\ufffd!"),
            (r"\ud83d\ud83d\ude00", r"\ufffd\ud83d\ude00"),
            (r"\ud83d\u0041", r"\ufffd\u0041"),
            (r"\ud83d\\ude00", r"\ufffd\\ude00"),
            (r"ä\udfff\udfffä", r"ä\ufffd\ufffdä"),
        ] {
            assert_eq!(replaced(half), whole);
        }
    }
}
