//! Filters by tags (protocol §9.2): which publications of a channel a subscriber wants. Read from
//! what the client said, within bounds; asked once for each publication.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::event::Event;

/// Nodes of one filter.
const MOST_NODES: usize = 64;
/// Values of one node, and bytes of each text.
const MOST_VALUES: usize = 64;
const LONGEST: usize = 255;

/// The tags of a publication.
pub type Tags = BTreeMap<String, String>;

/// The tags of `event`.
pub fn tags_of(event: &Event) -> Tags {
    event.tags.as_deref().and_then(|tags| serde_json::from_str(tags).ok()).unwrap_or_default()
}

/// What a publication's tags must be like.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// Like all of these.
    And(Vec<Filter>),
    /// Like one of these.
    Or(Vec<Filter>),
    /// Unlike this.
    Not(Box<Filter>),
    /// One tag by itself.
    Tag(String, Test),
}

/// What a tag must be like.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `ex`: it is there.
    Exists,
    /// `in`, and `eq` with one value: one of these.
    Among(Vec<String>),
    /// `sw`: begins so.
    StartsWith(String),
    /// `ew`: ends so.
    EndsWith(String),
    /// `ct`: has this in it.
    Contains(String),
    /// `lt`, `lte`, `gt`, `gte`: a number on that side of this one.
    Number(Side, f64),
}

/// On which side of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Below it.
    Below,
    /// Not above it.
    UpTo,
    /// Not below it.
    From,
    /// Above it.
    Above,
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
        let mut left = MOST_NODES;
        Self::of(node, &mut left)
    }

    /// The depth is bounded by the reader of JSON, the number by `left`.
    fn of(node: Node, left: &mut usize) -> Result<Self, BadFilter> {
        *left = left.checked_sub(1).ok_or(BadFilter)?;
        if node.op.is_empty() {
            return Self::of_leaf(node);
        }
        let mut nodes = Vec::with_capacity(node.nodes.len().min(MOST_NODES));
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
        let fits = |text: &String| text.len() <= LONGEST;
        if key.is_empty() || !fits(&key) || !fits(&val) || vals.len() > MOST_VALUES || !vals.iter().all(fits)
        {
            return Err(BadFilter);
        }
        let number = |side| {
            let number = decimal(&val).ok_or(BadFilter)?;
            Ok((true, Test::Number(side, number)))
        };
        let (so, test) = match cmp.as_str() {
            "eq" => Ok((true, Test::Among(vec![val]))),
            "neq" => Ok((false, Test::Among(vec![val]))),
            "in" if !vals.is_empty() => Ok((true, Test::Among(vals))),
            "nin" if !vals.is_empty() => Ok((false, Test::Among(vals))),
            "ex" => Ok((true, Test::Exists)),
            "nex" => Ok((false, Test::Exists)),
            "sw" => Ok((true, Test::StartsWith(val))),
            "ew" => Ok((true, Test::EndsWith(val))),
            "ct" => Ok((true, Test::Contains(val))),
            "lt" => number(Side::Below),
            "lte" => number(Side::UpTo),
            "gt" => number(Side::Above),
            "gte" => number(Side::From),
            _ => Err(BadFilter),
        }?;
        let tag = Self::Tag(key, test);
        Ok(if so { tag } else { Self::Not(Box::new(tag)) })
    }

    /// Whether `event` is wanted.
    pub fn wants_event(&self, event: &Event) -> bool {
        self.wants(&tags_of(event))
    }

    /// Whether a publication with these tags is wanted. A tag that is not there passes no test.
    pub fn wants(&self, tags: &Tags) -> bool {
        match self {
            Self::And(all) => all.iter().all(|filter| filter.wants(tags)),
            Self::Or(some) => some.iter().any(|filter| filter.wants(tags)),
            Self::Not(filter) => !filter.wants(tags),
            Self::Tag(key, test) => tags.get(key).is_some_and(|value| test.passes(value)),
        }
    }
}

impl Test {
    fn passes(&self, value: &str) -> bool {
        match self {
            Self::Exists => true,
            Self::Among(values) => values.iter().any(|one| one == value),
            Self::StartsWith(start) => value.starts_with(start.as_str()),
            Self::EndsWith(end) => value.ends_with(end.as_str()),
            Self::Contains(part) => value.contains(part.as_str()),
            Self::Number(side, number) => decimal(value).is_some_and(|value| match side {
                Side::Below => value < *number,
                Side::UpTo => value <= *number,
                Side::From => value >= *number,
                Side::Above => value > *number,
            }),
        }
    }
}

/// A number as people write it; words such as `inf` are none.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if plain { text.parse().ok() } else { None }
}
