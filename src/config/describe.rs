//! The effective configuration, for people: every option with its value and who set it, as TOML.
//! Secrets are masked, so the text may be pasted into an issue.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::schema::{self, OptionPath, Shape, bare_or_quoted, shape};
use super::{Config, Source};

impl Config {
    /// The effective configuration as TOML without secrets, each value with where it comes from.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let (schema, values) = (schema::schema(), schema::plain(self));
        if let Value::Object(values) = &values {
            self.table(&mut text, &schema, values, &OptionPath::default());
        }
        format!("# Whoever set a value is named behind it; the others are defaults.\n{text}")
    }

    /// Options first, tables after them, as TOML demands.
    fn table(&self, text: &mut String, schema: &Value, values: &Map<String, Value>, path: &OptionPath) {
        let mut inner = String::new();
        for (key, value) in values {
            let path = path.key(key);
            let Some(schema) = schema::at(schema, &OptionPath::default().key(key)) else { continue };
            match (shape(schema), value) {
                (Shape::Table(_), Value::Object(values)) => {
                    inner += &format!("\n[{}]\n", header(&path));
                    self.table(&mut inner, schema, values, &path);
                }
                (Shape::MapOf(schema), Value::Object(values)) => {
                    for (key, values) in values.iter().filter_map(|(k, v)| Some((k, v.as_object()?))) {
                        let path = path.key(key);
                        inner += &format!("\n[{}]\n", header(&path));
                        self.table(&mut inner, schema, values, &path);
                    }
                }
                (Shape::ListOf(schema), Value::Array(items)) => {
                    for (index, values) in items.iter().filter_map(Value::as_object).enumerate() {
                        inner += &format!("\n[[{}]]\n", header(&path));
                        self.table(&mut inner, schema, values, &path.index(index));
                    }
                }
                _ => self.option(text, key, value, &path),
            }
        }
        *text += &inner;
    }

    fn option(&self, text: &mut String, key: &str, value: &Value, path: &OptionPath) {
        let source = self.sources.get(path).unwrap_or(&Source::Default);
        let key = bare_or_quoted(key);
        let line = match toml::Value::try_from(value) {
            Ok(value) if source == &Source::Default => format!("{key} = {value}"),
            Ok(value) => format!("{key} = {value}  # {source}"),
            Err(_) => format!("# {key} is not set"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    }
}

/// The path as a table header: without the places in lists.
fn header(path: &OptionPath) -> OptionPath {
    let keys = path.0.iter().filter(|step| matches!(step, schema::Step::Key(_)));
    OptionPath(keys.cloned().collect())
}
