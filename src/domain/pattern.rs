//! Patterns over channel names: `*` matches any run of characters, also none and also `:` and
//! `/`; everything else stands for itself. Matching is linear in the name: no recursion, no
//! backtracking, so a pattern from a token cannot cost more than its own length.

use std::sync::Arc;

/// A pattern such as `repo:acme/*`. Every text is one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, derive_more::Display)]
pub struct ChannelPattern(Arc<str>);

impl ChannelPattern {
    /// Takes `text` as a pattern.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one name that the pattern stands for, when it has no `*`.
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&*self.0)
    }

    /// Whether `name` fits. What stands between two `*` is taken at its first place: a later one
    /// could only leave less of the name for the rest.
    pub fn matches(&self, name: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else {
            return *self.0 == *name;
        };
        let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut left) = name.strip_prefix(start).and_then(|left| left.strip_suffix(end)) else {
            return false;
        };
        for part in middle.split('*') {
            match left.split_once(part) {
                Some((_, after)) => left = after,
                None => return false,
            }
        }
        true
    }
}

/// A pattern as shells have it: `*` matches any run of characters, `?` one, `[a-c]` and `[!a-c]` one
/// of some; `\\` takes the meaning of what follows. Comes from who has the API key, and costs at most
/// its own length times that of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Any,
    One,
    Exactly(char),
    /// Ranges, and whether the character must lie outside of them.
    Among(Vec<(char, char)>, bool),
}

impl Glob {
    /// Reads a pattern; `None` where a `[` stays open or a `\\` stands last.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut pieces, mut rest) = (Vec::new(), text.chars());
        while let Some(next) = rest.next() {
            pieces.push(match next {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Exactly(rest.next()?),
                '[' => {
                    let (inside, after) = rest.as_str().split_once(']')?;
                    rest = after.chars();
                    Piece::among(inside)?
                }
                plain => Piece::Exactly(plain),
            });
        }
        Some(Self(pieces))
    }

    /// Whether `name` fits.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut piece) = (0, 0);
        // Where the last `*` stands, and up to where it has taken.
        let mut any: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(piece) {
                Some(Piece::Any) => {
                    any = Some((piece, at));
                    piece += 1;
                }
                Some(one) if one.takes(name[at]) => (at, piece) = (at + 1, piece + 1),
                _ => {
                    let Some((star, taken)) = any else { return false };
                    any = Some((star, taken + 1));
                    (at, piece) = (taken + 1, star + 1);
                }
            }
        }
        self.0[piece..].iter().all(|piece| *piece == Piece::Any)
    }
}

impl Piece {
    fn among(inside: &str) -> Option<Self> {
        let (inside, outside) = match inside.strip_prefix(['!', '^']) {
            Some(inside) => (inside, true),
            None => (inside, false),
        };
        let (mut ranges, mut rest) = (Vec::new(), inside.chars().peekable());
        while let Some(from) = rest.next() {
            let to = match rest.next_if_eq(&'-') {
                Some(_) => rest.next()?,
                None => from,
            };
            ranges.push((from, to));
        }
        (!ranges.is_empty()).then_some(Self::Among(ranges, outside))
    }

    fn takes(&self, c: char) -> bool {
        match self {
            Self::Any => false,
            Self::One => true,
            Self::Exactly(one) => *one == c,
            Self::Among(ranges, outside) => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *outside
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn a_glob_matches_as_in_a_shell() {
        for (pattern, fits, misses) in [
            ("*", vec!["", "a", "a:b"], vec![]),
            ("news:*", vec!["news:", "news:x"], vec!["news", "old:news:x"]),
            ("*:x", vec!["a:x", "a:b:x"], vec!["a:xy"]),
            ("a?c", vec!["abc", "a:c"], vec!["ac", "abbc"]),
            ("a*b*c", vec!["abc", "axbxbxc"], vec!["acb", "ab"]),
            ("u[0-9x]", vec!["u7", "ux"], vec!["ua", "u"]),
            ("u[!0-9]", vec!["ua"], vec!["u7", "u"]),
            ("a\\*", vec!["a*"], vec!["ab"]),
            ("", vec![""], vec!["a"]),
        ] {
            let glob = Glob::parse(pattern).expect(pattern);
            fits.iter().for_each(|name| assert!(glob.matches(name), "{pattern} {name}"));
            misses.iter().for_each(|name| assert!(!glob.matches(name), "{pattern} {name}"));
        }
        for bad in ["a[", "a\\", "[]", "[a-]"] {
            assert_eq!(Glob::parse(bad), None, "{bad}");
        }
    }
}
