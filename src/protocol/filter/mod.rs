//! Filters by tags (protocol §9.2): which publications of a channel a subscriber gets. Parsed from the
//! subscribe command, within limits, and evaluated once for each publication.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::event::Event;

/// Nodes of one filter.
const MAX_NODES: usize = 64;
/// Values of one node, and bytes of each text.
const MAX_VALUES: usize = 64;
const MAX_TEXT: usize = 255;

/// The tags of a publication.
pub type Tags = BTreeMap<String, String>;

/// The tags of `event`.
pub fn tags_of(event: &Event) -> Tags {
    event.tags.as_deref().and_then(|tags| serde_json::from_str(tags).ok()).unwrap_or_default()
}

/// A condition on the tags of a publication.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of these match.
    And(Vec<Filter>),
    /// One of these matches.
    Or(Vec<Filter>),
    /// This does not match.
    Not(Box<Filter>),
    /// A test of one tag.
    Tag(String, Test),
}

/// A test of a tag's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `ex`: the tag exists.
    Exists,
    /// `in`, and `eq` with one value: the value is one of these.
    OneOf(Vec<String>),
    /// `sw`: starts with this.
    StartsWith(String),
    /// `ew`: ends with this.
    EndsWith(String),
    /// `ct`: contains this.
    Contains(String),
    /// `lt`, `lte`, `gt`, `gte`: compares with a number.
    Number(Comparison, f64),
}

/// How a number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Less,
    /// Not above it.
    LessOrEqual,
    /// Not below it.
    GreaterOrEqual,
    Greater,
}

/// A filter that is none, or larger than allowed. Error 107.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a filter by tags")]
pub struct BadFilter;

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    op: String,
    #[serde(default)]
    nodes: Vec<Node>,
    #[serde(default)]
    key: String,
    #[serde(default)]
    cmp: String,
    #[serde(default)]
    val: String,
    #[serde(default)]
    vals: Vec<String>,
}

impl Filter {
    /// Reads the field `tf` of a subscribe command.
    pub fn parse(json: &str) -> Result<Self, BadFilter> {
        let node: Node = serde_json::from_str(json).map_err(|_| BadFilter)?;
        let mut left = MAX_NODES;
        Self::of(node, &mut left)
    }

    /// The depth is bounded by the reader of JSON, the number by `left`.
    fn of(node: Node, left: &mut usize) -> Result<Self, BadFilter> {
        *left = left.checked_sub(1).ok_or(BadFilter)?;
        if node.op.is_empty() {
            return Self::of_leaf(node);
        }
        let mut nodes = Vec::with_capacity(node.nodes.len().min(MAX_NODES));
        for inner in node.nodes {
            nodes.push(Self::of(inner, left)?);
        }
        match (node.op.as_str(), nodes.len()) {
            ("and", 1..) => Ok(Self::And(nodes)),
            ("or", 1..) => Ok(Self::Or(nodes)),
            ("not", 1) => nodes.pop().map(|inner| Self::Not(Box::new(inner))).ok_or(BadFilter),
            _ => Err(BadFilter),
        }
    }

    fn of_leaf(Node { key, cmp, val, vals, .. }: Node) -> Result<Self, BadFilter> {
        let fits = |text: &String| text.len() <= MAX_TEXT;
        if key.is_empty() || !fits(&key) || !fits(&val) || vals.len() > MAX_VALUES || !vals.iter().all(fits) {
            return Err(BadFilter);
        }
        let number = |comparison| {
            let number = decimal(&val).ok_or(BadFilter)?;
            Ok((true, Test::Number(comparison, number)))
        };
        let (positive, test) = match cmp.as_str() {
            "eq" => Ok((true, Test::OneOf(vec![val]))),
            "neq" => Ok((false, Test::OneOf(vec![val]))),
            "in" if !vals.is_empty() => Ok((true, Test::OneOf(vals))),
            "nin" if !vals.is_empty() => Ok((false, Test::OneOf(vals))),
            "ex" => Ok((true, Test::Exists)),
            "nex" => Ok((false, Test::Exists)),
            "sw" => Ok((true, Test::StartsWith(val))),
            "ew" => Ok((true, Test::EndsWith(val))),
            "ct" => Ok((true, Test::Contains(val))),
            "lt" => number(Comparison::Less),
            "lte" => number(Comparison::LessOrEqual),
            "gt" => number(Comparison::Greater),
            "gte" => number(Comparison::GreaterOrEqual),
            _ => Err(BadFilter),
        }?;
        let tag = Self::Tag(key, test);
        Ok(if positive { tag } else { Self::Not(Box::new(tag)) })
    }

    /// Whether the tags of `event` match.
    pub fn matches_event(&self, event: &Event) -> bool {
        self.matches(&tags_of(event))
    }

    /// Whether these tags match. A tag that does not exist passes no test.
    pub fn matches(&self, tags: &Tags) -> bool {
        match self {
            Self::And(all) => all.iter().all(|filter| filter.matches(tags)),
            Self::Or(some) => some.iter().any(|filter| filter.matches(tags)),
            Self::Not(filter) => !filter.matches(tags),
            Self::Tag(key, test) => tags.get(key).is_some_and(|value| test.matches(value)),
        }
    }
}

impl Test {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exists => true,
            Self::OneOf(values) => values.iter().any(|one| one == value),
            Self::StartsWith(start) => value.starts_with(start.as_str()),
            Self::EndsWith(end) => value.ends_with(end.as_str()),
            Self::Contains(part) => value.contains(part.as_str()),
            Self::Number(comparison, number) => decimal(value).is_some_and(|value| match comparison {
                Comparison::Less => value < *number,
                Comparison::LessOrEqual => value <= *number,
                Comparison::GreaterOrEqual => value >= *number,
                Comparison::Greater => value > *number,
            }),
        }
    }
}

/// A number as people write it; words such as `inf` are none.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if plain { text.parse().ok() } else { None }
}
