//! Sanitizes external text so that it can be stored and shown: no control characters, bounded length, and
//! only links that a browser may follow. No text of a delivery is used without this.

/// The longest name, in characters.
pub const NAME: usize = 255;
/// The longest word, such as a status or an action.
pub const WORD: usize = 64;
/// The longest link, in bytes.
const LINK: usize = 2048;

/// `text` without control characters and surrounding space, at most `max` characters.
pub fn text(text: &str, max: usize) -> String {
    let visible: String = text.chars().filter(|c| !c.is_control()).collect();
    let bounded: String = visible.trim().chars().take(max).collect();
    bounded.trim_end().to_owned()
}

/// Like [`text`]; absent when nothing is left.
pub fn optional(value: Option<&str>, max: usize) -> Option<String> {
    value.map(|value| text(value, max)).filter(|value| !value.is_empty())
}

/// The link, if it is http(s) and nothing in it could be read in two ways.
pub fn link(url: Option<&str>) -> Option<String> {
    let url = url?.trim();
    let (scheme, rest) = url.split_once("://")?;
    let followable = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '"' | '<' | '>' | '\\');
    let sound = !rest.is_empty() && url.len() <= LINK && !url.contains(odd);
    (followable && sound).then(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_excess_go() {
        assert_eq!(text(" a\u{0}b\u{1b}[31m\r\nc\u{85} ", NAME), "ab[31mc");
        assert_eq!(text(&"ü".repeat(300), NAME).chars().count(), 255);
        assert_eq!(text("ab cd", 3), "ab");
        assert_eq!(optional(Some("\u{7}\n"), NAME), None);
        assert_eq!(optional(None, NAME), None);
    }

    #[test]
    fn only_plain_web_links_stay() {
        for good in
            ["https://github.com/acme/api/actions/runs/1", "http://ghe.acme.example/x?y=%20#z", "HTTPS://x"]
        {
            assert_eq!(link(Some(good)).as_deref(), Some(good));
        }
        for bad in [
            "",
            "https://",
            "javascript:alert(1)",
            "javascript://x%0aalert(1)",
            "ftp://x",
            "//x",
            "https://a b",
            "https://a\nb",
            "https://a\"b",
        ] {
            assert_eq!(link(Some(bad)), None, "{bad}");
        }
        assert_eq!(link(Some(&format!("https://{}", "a".repeat(LINK)))), None);
        assert_eq!(link(None), None);
    }
}
