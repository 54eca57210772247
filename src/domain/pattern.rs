//! Patterns over channel names: `*` matches any run of characters, also none and also `:` and
//! `/`; everything else stands for itself. Matching is linear in the name: no recursion, no
//! backtracking, so a pattern from a token cannot cost more than its own length.

use std::fmt;
use std::sync::Arc;

/// A pattern such as `repo:acme/*`. Every text is one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

impl fmt::Display for ChannelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
