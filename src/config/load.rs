//! Loading: defaults, then a file, then the environment, then flags. Everything that is read is passed in,
//! so that a test needs no process of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Problem, Source};
use super::schema::OptionPath;
use super::settings::Settings;
use super::{Config, environment, validate};

/// The file that is read if none is named.
pub const DEFAULT_FILE: &str = "campanile.toml";

/// Collects the sources of a configuration and reads them.
///
/// ```
/// # use campanile::config::Loader;
/// let config = Loader::new()
///     .environment([("CAMPANILE_LISTEN", "0.0.0.0:80")])
///     .flag("--listen", "server.listen", Some("127.0.0.1:0"))
///     .load()?;
/// assert_eq!(config.server.listen.port(), 0);
/// # Ok::<_, campanile::config::ConfigError>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "nothing is read before `load`"]
pub struct Loader {
    file: Option<File>,
    environment: Vec<(OsString, OsString)>,
    flags: Vec<(&'static str, &'static str, String)>,
}

#[derive(Debug)]
enum File {
    IfExists(PathBuf),
    Named(PathBuf),
    Text(PathBuf, String),
}

impl Loader {
    /// A loader with the defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads `named`, which must exist, or else `campanile.toml` in the working directory if it exists.
    pub fn file(mut self, named: Option<PathBuf>) -> Self {
        let Some(named) = named else { return self.file_if_exists(DEFAULT_FILE) };
        self.file = Some(File::Named(named));
        self
    }

    pub(super) fn file_if_exists(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(File::IfExists(path.into()));
        self
    }

    /// Uses `text` as the content of the file `name`.
    pub fn text(mut self, name: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.file = Some(File::Text(name.into(), text.into()));
        self
    }

    /// Adds environment variables, such as `std::env::vars_os()`. Those of others are ignored.
    pub fn environment<K: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Adds a flag of the command line, if it was given: its name for messages, the option that
    /// it sets, and its value written as in the environment.
    pub fn flag(
        mut self,
        flag: &'static str,
        option: &'static str,
        value: Option<impl Into<String>>,
    ) -> Self {
        self.flags.extend(value.map(|value| (flag, option, value.into())));
        self
    }

    /// Reads everything and checks it. Reports all that is wrong, not only the first.
    pub fn load(self) -> Result<Config, ConfigError> {
        let mut settings = Settings::new();
        if let Some((path, text)) = self.file.map(File::read).transpose()?.flatten() {
            apply_file(&mut settings, &path, &text)?;
        }
        environment::apply(&mut settings, self.environment);
        for (flag, option, value) in self.flags {
            let path = option.split('.').fold(OptionPath::default(), |path, key| path.key(key));
            settings.set_text(path, &value, Source::Flag(flag.to_owned()));
        }
        let (config, mut problems) = settings.finish();
        problems.extend(validate::alone(&config));
        if problems.is_empty() {
            problems.extend(validate::together(&config));
        }
        ConfigError::check(problems).map(|()| config)
    }
}

impl File {
    /// `None` if it need not exist and does not.
    fn read(self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let (path, must_exist) = match self {
            Self::Text(path, text) => return Ok(Some((path, text))),
            Self::Named(path) => (path, true),
            Self::IfExists(path) => (path, false),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
            Err(error) => {
                let source = Source::File { path, line: None };
                let wrong = format!("the file cannot be read: {error}");
                Err(Problem::new(source, "", wrong, "name another file or make this one readable").into())
            }
        }
    }
}

fn apply_file(settings: &mut Settings, path: &Path, text: &str) -> Result<(), ConfigError> {
    let source = |line| Source::File { path: path.to_owned(), line };
    let document = DeTable::parse(text).map_err(|error| {
        // Not its Display, which would quote the line, and the line may hold a secret.
        let at = error.span().map(|span| line_of(text, span.start));
        Problem::new(source(at), "", format!("this is not TOML: {}", error.message()), "correct the line")
    })?;
    let mut lines = BTreeMap::new();
    let tree = table(document.get_ref(), &OptionPath::default(), text, &mut lines);
    settings.set_tree(tree, |path| source(lines.get(path).copied()));
    Ok(())
}

fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|b| *b == b'\n').count()
}

type Lines = BTreeMap<OptionPath, usize>;

fn table(table: &DeTable<'_>, path: &OptionPath, text: &str, lines: &mut Lines) -> Value {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        let path = path.key(key);
        lines.insert(path.clone(), line_of(text, value.span().start));
        (key.to_string(), plain(value.get_ref(), &path, text, lines))
    };
    table.iter().map(entry).collect()
}

/// The value as JSON. A value that JSON does not have becomes text, which no such option accepts.
fn plain(value: &DeValue<'_>, path: &OptionPath, text: &str, lines: &mut Lines) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Boolean(truth) => Value::from(*truth),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::from(number.as_str()), Value::from),
        DeValue::Float(number) => {
            let finite = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            finite.map_or_else(|| Value::from(number.as_str()), Value::from)
        }
        DeValue::Datetime(time) => Value::from(time.to_string()),
        DeValue::Table(inner) => table(inner, path, text, lines),
        DeValue::Array(items) => {
            let item = |(index, item): (usize, &Spanned<DeValue<'_>>)| {
                let path = path.index(index);
                lines.insert(path.clone(), line_of(text, item.span().start));
                plain(item.get_ref(), &path, text, lines)
            };
            items.iter().enumerate().map(item).collect()
        }
    }
}
