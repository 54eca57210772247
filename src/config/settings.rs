//! The settings and their sources. Later sources replace earlier ones option by option; lists and maps
//! are replaced as a whole. Each setting is tried alone on top of the defaults, so that every
//! wrong one is reported together with the place where it stands.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Config;
use super::error::{Problem, Source};
use super::schema::{self, OptionPath, Shape, Step, shape};

struct Setting {
    value: Value,
    source: Source,
    /// From a variable or a flag: may be read as JSON if it is not good as text.
    loose: bool,
}

/// Everything that was set so far.
pub(super) struct Settings {
    schema: Value,
    defaults: Value,
    set: BTreeMap<OptionPath, Setting>,
    problems: Vec<Problem>,
}

impl Settings {
    pub(super) fn new() -> Self {
        let defaults = schema::plain(&Config::default());
        Self { schema: schema::schema(), defaults, set: BTreeMap::new(), problems: Vec::new() }
    }

    pub(super) fn schema(&self) -> &Value {
        &self.schema
    }

    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Adds the tree of a file.
    pub(super) fn set_tree(&mut self, tree: Value, source: impl Fn(&OptionPath) -> Source) {
        let schema = self.schema.clone();
        self.set(&schema, OptionPath::default(), tree, &source);
    }

    /// Adds the text of a variable or a flag: as it is, or as JSON.
    pub(super) fn set_text(&mut self, path: OptionPath, text: &str, source: Source) {
        let schema = self.schema.clone();
        match schema::at(&schema, &path).map(|inner| (inner, shape(inner))) {
            Some((_, Shape::Leaf)) => self.insert(path, Value::from(text), source, true),
            Some((inner, _)) => match serde_json::from_str(text) {
                Ok(value) => self.set(inner, path, value, &|_: &OptionPath| source.clone()),
                Err(_) => self.report(Problem::new(
                    source,
                    path.to_string(),
                    "this is not JSON",
                    "lists and maps are written as JSON in the environment",
                )),
            },
            None => {
                let wrong = "there is no such option";
                self.report(Problem::new(source, path.to_string(), wrong, "see campanile.example.toml"));
            }
        }
    }

    /// Adds a list that is separated by commas.
    pub(super) fn set_items(&mut self, path: OptionPath, text: &str, source: Source) {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        self.insert(path, items.map(Value::from).collect(), source, false);
    }

    fn set(
        &mut self,
        schema: &Value,
        path: OptionPath,
        value: Value,
        source: &dyn Fn(&OptionPath) -> Source,
    ) {
        let here = source(&path);
        match (shape(schema), value) {
            (Shape::Table(known), Value::Object(given)) => {
                for (key, value) in given {
                    let inner = path.key(&key);
                    match known.get(&key) {
                        Some(schema) => self.set(schema, inner, value, source),
                        None => {
                            let remedy = self.suggestion(&path, &key, known);
                            let wrong = "there is no such option";
                            self.report(Problem::new(source(&inner), inner.to_string(), wrong, remedy));
                        }
                    }
                }
            }
            (Shape::MapOf(schema), Value::Object(given)) => {
                self.forget(&path);
                for (key, value) in given {
                    self.set_element(schema, path.key(&key), value, source);
                }
            }
            (Shape::ListOf(schema), Value::Array(given)) => {
                self.forget(&path);
                for (index, value) in given.into_iter().enumerate() {
                    self.set_element(schema, path.index(index), value, source);
                }
            }
            (Shape::Leaf, value) => self.insert(path, value, here, false),
            (Shape::Table(_), _) => {
                let remedy = format!("write it as a table, `[{path}]`");
                self.report(Problem::new(here, path.to_string(), "this holds options, not a value", remedy));
            }
            (Shape::MapOf(_), _) => {
                let remedy = format!("write `[{path}]` and a key for each entry");
                self.report(Problem::new(here, path.to_string(), "this is a table of entries", remedy));
            }
            (Shape::ListOf(_), _) => {
                let remedy = format!("write `[[{path}]]` for each entry");
                self.report(Problem::new(here, path.to_string(), "this is a list of tables", remedy));
            }
        }
    }

    /// An entry of a map or a list exists even if none of its options is set.
    fn set_element(
        &mut self,
        schema: &Value,
        path: OptionPath,
        value: Value,
        source: &dyn Fn(&OptionPath) -> Source,
    ) {
        if value.as_object().is_some_and(Map::is_empty) {
            let here = source(&path);
            self.insert(path, value, here, false);
        } else {
            self.set(schema, path, value, source);
        }
    }

    fn insert(&mut self, path: OptionPath, value: Value, source: Source, loose: bool) {
        self.set.insert(path, Setting { value, source, loose });
    }

    fn forget(&mut self, path: &OptionPath) {
        self.set.retain(|known, _| !known.is_under(path));
    }

    /// The known key that an unknown `key` of the table at `path` may stand for.
    fn suggestion(&self, path: &OptionPath, key: &str, known: &Map<String, Value>) -> String {
        let elsewhere = || {
            let same = |path: &OptionPath| path.0.last() == Some(&Step::Key(key.to_owned()));
            schema::every_path(&self.schema).into_iter().find(same)
        };
        if let Some(near) = nearest(key, known.keys().map(String::as_str)) {
            return format!("did you mean `{}`?", path.key(near));
        }
        if let Some(other) = elsewhere() {
            return format!("did you mean `{other}`?");
        }
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let table = if path.0.is_empty() { "the sections are".to_owned() } else { format!("`{path}` has") };
        format!("{table} {}", names.join(", "))
    }

    /// The configuration, or what is wrong with it.
    pub(super) fn finish(mut self) -> (Config, Vec<Problem>) {
        let mut tree = self.defaults.clone();
        let mut sources = BTreeMap::new();
        for (path, setting) in std::mem::take(&mut self.set) {
            match self.try_alone(&path, &setting) {
                Ok(value) => {
                    put(&mut tree, &path, value, None);
                    sources.insert(path, setting.source);
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        match serde_path_to_error::deserialize::<_, Config>(tree) {
            Ok(config) => (Config { sources, ..config }, self.problems),
            Err(error) => {
                // Whatever is left out because it is wrong was reported; do not report its absence.
                if self.problems.is_empty() {
                    let (option, wrong) = (error.path().to_string(), error.inner().to_string());
                    let inside = |path: &&OptionPath| path.to_string().starts_with(&option);
                    let source = sources.keys().find(inside).and_then(|path| sources.get(path)).cloned();
                    let source = source.unwrap_or(Source::Default);
                    self.problems.push(Problem::new(source, option, wrong, "see campanile.example.toml"));
                }
                (Config::default(), self.problems)
            }
        }
    }

    fn try_alone(&self, path: &OptionPath, setting: &Setting) -> Result<Value, Problem> {
        let attempt = |value: &Value| {
            let mut tree = self.defaults.clone();
            put(&mut tree, path, value.clone(), Some(&self.schema));
            serde_path_to_error::deserialize::<_, Config>(tree)
        };
        let error = match attempt(&setting.value) {
            Ok(_) => return Ok(setting.value.clone()),
            Err(error) => error,
        };
        let as_json = setting.value.as_str().filter(|_| setting.loose).map(serde_json::from_str::<Value>);
        let (value, error) = match as_json {
            Some(Ok(value)) => match attempt(&value) {
                Ok(_) => return Ok(value),
                Err(error) => (value, error),
            },
            _ => (setting.value.clone(), error),
        };
        let leaf = schema::at(&self.schema, path).unwrap_or(&Value::Null);
        let deeper = error.path().to_string();
        let option = if deeper.starts_with(&path.to_string()) { deeper } else { path.to_string() };
        let wrong = what_is_wrong(leaf, &value, &error.inner().to_string());
        Err(Problem::new(setting.source.clone(), option, wrong, remedy(path, leaf)))
    }
}

/// The problem without the words of the parser, and without the value if that is secret.
fn what_is_wrong(leaf: &Value, value: &Value, error: &str) -> String {
    match leaf {
        Value::Bool(_) => format!("`{value}` is neither true nor false"),
        Value::Number(_) => format!("`{value}` is not a whole number from 0 to {}", u32::MAX),
        Value::Array(_) if !value.is_array() => "this is not a list".to_owned(),
        Value::String(_) if schema::is_secret(leaf) && !value.is_string() => {
            "this is not text in quotes".to_owned()
        }
        _ => error.to_owned(),
    }
}

fn remedy(path: &OptionPath, leaf: &Value) -> String {
    match path.to_string().as_str() {
        "store.url" => "write postgres://… or sqlite:PATH".to_owned(),
        "telemetry.log_format" => "write text, json or auto".to_owned(),
        "telemetry.log_addresses" => "write full, short or none".to_owned(),
        "server.forwarded_header" => "write x-forwarded-for or forwarded".to_owned(),
        _ if schema::is_secret(leaf) && leaf.is_array() => {
            "write a list of texts, as JSON in the environment".to_owned()
        }
        _ if schema::is_secret(leaf) => "write a text that is hard to guess".to_owned(),
        _ => match leaf {
            Value::Bool(_) => "write true or false".to_owned(),
            Value::Array(_) => format!("write a list such as {leaf}, as JSON in the environment"),
            Value::Object(_) | Value::Null => "see campanile.example.toml".to_owned(),
            _ => format!("an example is {leaf}"),
        },
    }
}

/// Puts `value` at `path`. With `examples` it is a trial: entries of lists and maps start from the
/// example, and there is only one of each list.
fn put(tree: &mut Value, path: &OptionPath, value: Value, examples: Option<&Value>) {
    let mut place = tree;
    let mut example = examples;
    for step in &path.0 {
        example = example.and_then(|schema| match (shape(schema), step) {
            (Shape::Table(known), Step::Key(key)) => known.get(key),
            (Shape::MapOf(inner) | Shape::ListOf(inner), _) => Some(inner),
            _ => None,
        });
        let start = || example.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        place = match (place, step) {
            (Value::Object(keys), Step::Key(key)) => keys.entry(key.clone()).or_insert_with(start),
            (Value::Array(items), Step::Index(index)) => {
                let index = if examples.is_some() { 0 } else { *index };
                while items.len() <= index {
                    items.push(start());
                }
                &mut items[index]
            }
            // The path was made by walking the schema, and the defaults have its shape.
            _ => return,
        };
    }
    let is_entry = value.as_object().is_some_and(Map::is_empty);
    if !is_entry {
        *place = value;
    }
}

/// The known name that `word` most likely stands for, if any is close.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let close_enough = (word.chars().count() / 3).max(1);
    known
        .map(|name| (strsim::levenshtein(&word.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= close_enough)
        .min()
        .map(|(_, name)| name)
}
