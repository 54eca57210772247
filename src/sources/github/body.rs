//! From a request body to the JSON text of a delivery. GitHub sends it either bare or as the
//! form field `payload`; the signature is over the bytes as they came, so it is checked first.

use std::borrow::Cow;

use percent_encoding::percent_decode;
use serde::de::IgnoredAny;

/// Why a body is no delivery. Over HTTP all of these are 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Nothing, or only blanks.
    #[error("the body is empty")]
    Empty,
    /// Text that is no JSON value.
    #[error("the body is not JSON")]
    NotJson,
    /// A form without the field `payload`.
    #[error("the form has no field `payload`")]
    NoPayload,
}

/// The JSON text in a body. A content type other than a form's is taken as JSON, because what
/// counts is whether the text is JSON. U+FFFD takes the place of bytes that are no text, as of half characters:
/// GitHub does not send again what is refused. Deep nesting costs a byte a level here, and no stack.
pub fn body_text<'a>(content_type: Option<&str>, bytes: &'a [u8]) -> Result<Cow<'a, str>, BadBody> {
    if bytes.trim_ascii().is_empty() {
        return Err(BadBody::Empty);
    }
    let text = if is_form(content_type) {
        let value = field(bytes, b"payload").ok_or(BadBody::NoPayload)?;
        Cow::Owned(String::from_utf8_lossy(&value).into_owned())
    } else {
        // Nearly every body is text, and to see that is faster than to look for what is none.
        std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
    };
    if text.trim_ascii().is_empty() {
        return Err(BadBody::Empty);
    }
    serde_json::from_str::<IgnoredAny>(&text).map_err(|_| BadBody::NotJson)?;
    Ok(text)
}

fn is_form(content_type: Option<&str>) -> bool {
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The first value of a form's field.
fn field(form: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    form.split(|b| *b == b'&').find_map(|pair| {
        let mut halves = pair.splitn(2, |b| *b == b'=');
        let name = decode(halves.next()?);
        (name == wanted).then(|| decode(halves.next().unwrap_or_default()))
    })
}

/// As browsers do it: `+` is a space, and a `%` without two hex digits stands for itself.
fn decode(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    percent_decode(&spaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Option<&str> = Some("application/x-www-form-urlencoded; charset=utf-8");
    const JSON: Option<&str> = Some("application/json");

    #[test]
    fn json_is_taken_verbatim() {
        for (content_type, body) in
            [(JSON, "{\"a\": 1}"), (None, " [1]\n"), (Some("text/plain"), "\"ü\""), (JSON, "1e999")]
        {
            let text = body_text(content_type, body.as_bytes()).unwrap();
            assert!(matches!(text, Cow::Borrowed(same) if same == body));
        }
    }

    #[test]
    fn a_form_carries_json_in_payload() {
        let body = b"a=1&payload=%7B%22name%22%3a+%22%C3%BC%26%25%22%7D&payload=2";
        assert_eq!(body_text(FORM, body).unwrap(), "{\"name\": \"ü&%\"}");
        assert_eq!(body_text(FORM, b"p%61yload={\"a\":1}").unwrap(), "{\"a\":1}");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(body_text(JSON, b"\"CI \xff\xe2\x82\"").unwrap(), "\"CI \u{fffd}\u{fffd}\"");
        assert_eq!(body_text(FORM, b"payload=\"CI+%FF\"").unwrap(), "\"CI \u{fffd}\"");
    }

    #[test]
    fn every_other_body_is_refused_by_name() {
        for (content_type, body, error) in [
            (JSON, &b""[..], BadBody::Empty),
            (JSON, b" \r\n", BadBody::Empty),
            (FORM, b"", BadBody::Empty),
            (FORM, b"payload=", BadBody::Empty),
            (FORM, b"payload", BadBody::Empty),
            (FORM, b"{\"a\":1}", BadBody::NoPayload),
            (FORM, b"xpayload=1", BadBody::NoPayload),
            (FORM, b"payload=%FF", BadBody::NotJson),
            (FORM, b"payload=%7B", BadBody::NotJson),
            (FORM, b"payload=%", BadBody::NotJson),
            (JSON, b"\xff", BadBody::NotJson),
            (JSON, b"payload=%7B%7D", BadBody::NotJson),
            (JSON, b"{} {}", BadBody::NotJson),
            (JSON, b"{\"a\":1", BadBody::NotJson),
            (JSON, b"NaN", BadBody::NotJson),
        ] {
            assert_eq!(body_text(content_type, body), Err(error), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_passes_when_unclosed() {
        let deep = "[".repeat(1_000_000);
        assert_eq!(body_text(JSON, deep.as_bytes()), Err(BadBody::NotJson));
        let closed = deep + &"]".repeat(1_000_000);
        assert!(body_text(JSON, closed.as_bytes()).is_ok());
    }
}
