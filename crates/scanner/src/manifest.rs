//! `package.json`, as far as it says what a package is called and where its code begins. A field of another type
//! than it should have counts as missing, as it does for TypeScript.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::path::join;
use crate::tree::{Tree, Unread};

/// The file of a package.
pub const FILE: &str = "package.json";

/// JSON whose objects keep the order in which they were written: it decides between conditions.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// What a `package.json` says.
#[derive(Debug, Clone)]
pub struct Manifest {
    fields: Vec<(String, Json)>,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("there is no package.json")]
    Missing,
    #[error("package.json cannot be read: {0}")]
    Unread(Unread),
    #[error("package.json is not a JSON object: {0}")]
    Broken(String),
}

impl Manifest {
    /// The one in `folder`.
    pub fn read(tree: &Tree, folder: &str) -> Result<Self, ManifestError> {
        let path = join(folder, FILE).ok_or(ManifestError::Missing)?;
        let text = tree.read(&path).map_err(|unread| match unread {
            Unread::Missing => ManifestError::Missing,
            unread => ManifestError::Unread(unread),
        })?;
        Self::parse(&text)
    }

    /// The one with this text.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        match serde_json::from_str(text) {
            Ok(Json::Object(fields)) => Ok(Self { fields }),
            Ok(_) => Err(ManifestError::Broken("it is another value".to_owned())),
            Err(error) => Err(ManifestError::Broken(error.to_string())),
        }
    }

    pub fn name(&self) -> Option<&str> {
        self.text("name").filter(|name| !name.is_empty())
    }

    pub fn version(&self) -> Option<&str> {
        self.text("version")
    }

    /// It is never published.
    pub fn is_private(&self) -> bool {
        self.field("private") == Some(&Json::Bool(true))
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Json> {
        get(&self.fields, name)
    }

    /// A field that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_text()
    }

    /// The patterns of `workspaces`, in either of its forms.
    pub(crate) fn workspaces(&self) -> Option<Vec<String>> {
        let field = match self.field("workspaces")? {
            Json::Object(fields) => get(fields, "packages")?,
            field => field,
        };
        let Json::List(patterns) = field else { return None };
        Some(patterns.iter().filter_map(|pattern| pattern.as_text().map(str::to_owned)).collect())
    }
}

impl Json {
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The last one of this name counts, as in JavaScript.
fn get<'f>(fields: &'f [(String, Json)], name: &str) -> Option<&'f Json> {
    fields.iter().rev().find_map(|(key, value)| (key == name).then_some(value))
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = entries.next_entry()? {
            fields.push(field);
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tree;

    #[test]
    fn fields_of_another_type_are_missing() {
        let manifest =
            Manifest::parse(r#"{"name": 1, "version": "2.0.0", "private": "yes"}"#).expect("an object");
        assert_eq!(
            (manifest.name(), manifest.version(), manifest.is_private()),
            (None, Some("2.0.0"), false)
        );
        let twice = Manifest::parse(r#"{"name": "a", "name": "b", "private": true}"#).expect("an object");
        assert_eq!((twice.name(), twice.is_private()), (Some("b"), true));
    }

    #[test]
    fn what_is_no_object_is_broken() {
        for text in ["", "[]", "null", "{", "{} {}", &"[".repeat(100_000)] {
            assert!(matches!(Manifest::parse(text), Err(ManifestError::Broken(_))), "{text:.20}");
        }
        let (_folder, tree) = tree(&[("a/package.json", "{}")]);
        assert!(Manifest::read(&tree, "a").is_ok());
        assert_eq!(Manifest::read(&tree, "b").err(), Some(ManifestError::Missing));
    }

    #[test]
    fn both_forms_of_workspaces_are_known() {
        let of = |text: &str| Manifest::parse(text).expect("an object").workspaces();
        assert_eq!(of(r#"{"workspaces": ["a/*", 1]}"#), Some(vec!["a/*".to_owned()]));
        assert_eq!(of(r#"{"workspaces": {"packages": ["b"]}}"#), Some(vec!["b".to_owned()]));
        assert_eq!((of(r#"{"workspaces": "a"}"#), of("{}")), (None, None));
    }
}
