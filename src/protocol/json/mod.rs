//! JSON objects written by hand into a text that the caller owns, by the wire's rules (protocol
//! §1): zero values are left out unless a method here says "always", payloads go in raw, and no
//! line feed ever does, because line feeds separate messages. Checks no payload: each is one JSON
//! value by the promise of who made it.

#[cfg(test)]
pub(super) mod tests;

/// The longest life that is announced, in seconds: a year (protocol §10.3).
const MAX_TTL: u32 = 365 * 24 * 60 * 60;

/// An object that is being written, see [`push_object`].
pub(crate) struct Object<'o> {
    out: &'o mut String,
    empty: bool,
}

/// Writes an object whose fields `fill` writes.
pub(crate) fn push_object(out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    out.push('{');
    fill(&mut Object { out, empty: true });
    out.push('}');
}

impl Object<'_> {
    /// Writes a key of our own; the caller writes the value.
    pub(crate) fn key(&mut self, key: &'static str) -> &mut String {
        self.comma();
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        self.out
    }

    /// Writes a key that may have any character; the caller writes the value.
    pub(crate) fn named(&mut self, key: &str) -> &mut String {
        self.comma();
        push_text(self.out, key);
        self.out.push(':');
        self.out
    }

    /// A text, unless it is empty.
    pub(crate) fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.always_text(key, value);
        }
    }

    /// A text, also an empty one.
    pub(crate) fn always_text(&mut self, key: &'static str, value: &str) {
        push_text(self.key(key), value);
    }

    /// A number, unless it is 0.
    pub(crate) fn number(&mut self, key: &'static str, value: u64) {
        if value != 0 {
            self.always_number(key, value);
        }
    }

    /// A number, also 0.
    pub(crate) fn always_number(&mut self, key: &'static str, value: u64) {
        push_number(self.key(key), value);
    }

    /// `true`, or nothing.
    pub(crate) fn flag(&mut self, key: &'static str, value: bool) {
        if value {
            self.key(key).push_str("true");
        }
    }

    /// A payload, if there is one.
    pub(crate) fn raw(&mut self, key: &'static str, json: Option<&str>) {
        if let Some(json) = json {
            push_raw(self.key(key), json);
        }
    }

    /// `expires` and `ttl` of what ends in `ttl` seconds. A life of 0 is written as 1, because
    /// clients need a `ttl` wherever something expires.
    pub(crate) fn expiry(&mut self, ttl: Option<u32>) {
        if let Some(ttl) = ttl {
            self.flag("expires", true);
            self.number("ttl", ttl.clamp(1, MAX_TTL).into());
        }
    }

    fn comma(&mut self) {
        if !self.empty {
            self.out.push(',');
        }
        self.empty = false;
    }
}

/// Writes a list of objects.
pub(crate) fn push_list<T>(out: &mut String, items: impl IntoIterator<Item = T>, write: fn(&mut String, T)) {
    out.push('[');
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

/// Writes a text with its quotes.
pub(crate) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0'..='\x1f' => {
                out.push_str("\\u00");
                out.extend(
                    [c as u32 >> 4, c as u32 & 15].map(|digit| char::from_digit(digit, 16).unwrap_or('0')),
                );
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Writes a number without the detour of a formatter.
pub(super) fn push_number(out: &mut String, mut number: u64) {
    let mut digits = ['0'; 20];
    let mut first = digits.len();
    while first == digits.len() || number > 0 {
        first -= 1;
        digits[first] = char::from(b'0' + (number % 10) as u8);
        number /= 10;
    }
    out.extend(&digits[first..]);
}

/// Writes a number in digits of base 64, as deltas have them.
pub(super) fn push_number_64(out: &mut String, mut number: u64) {
    const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
    let mut digits = ['0'; 11];
    let mut first = digits.len();
    while first == digits.len() || number > 0 {
        first -= 1;
        digits[first] = char::from(DIGITS[(number & 63) as usize]);
        number >>= 6;
    }
    out.extend(&digits[first..]);
}

/// Writes a JSON value that is a text already, without its line breaks. Inside strings they are
/// escaped, so a raw one stands only between tokens, where nothing is lost with it.
pub(crate) fn push_raw(out: &mut String, json: &str) {
    if json.contains('\n') || json.contains('\r') {
        out.extend(json.split(['\n', '\r']));
    } else {
        out.push_str(json);
    }
}
