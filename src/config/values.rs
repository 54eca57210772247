//! The types of single options. Each is valid by construction, so that nobody who holds one
//! checks it again, and none of them prints a secret.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use subtle::ConstantTimeEq;

use crate::domain::channel::{RESERVED, is_owner, is_repo_name};

/// Printed in place of a secret.
pub(super) const MASK: &str = "[secret]";

/// A text that must not be shown: it prints as `[secret]` and is compared in constant time.
#[derive(Clone, derive_more::Display)]
#[display("{MASK}")]
pub struct Secret(String);

impl Secret {
    /// Takes `text` as a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What comes out of a file often ends its line.
fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // Serde's own message would repeat the value.
        let text = String::deserialize(d).map_err(|_| D::Error::custom("this is not text in quotes"))?;
        let text = without_line_end(&text);
        if text.trim().is_empty() {
            return Err(D::Error::custom("a secret cannot be empty"));
        }
        if text.contains(['\n', '\r']) {
            return Err(D::Error::custom("a secret is one line: this one has line ends in it"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where the data is stored, by `store.url`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum StoreUrl {
    /// `sqlite:PATH`.
    Sqlite(PathBuf),
    /// `postgres://…` or `postgresql://…`, which may hold a password.
    Postgres(Secret),
}

impl TryFrom<String> for StoreUrl {
    type Error = &'static str;

    fn try_from(url: String) -> Result<Self, Self::Error> {
        let url = without_line_end(&url);
        if url.contains(['\n', '\r']) {
            return Err("the address has line ends in it");
        }
        if is_postgres(url) {
            return Ok(Self::Postgres(Secret::new(url)));
        }
        let path = url.strip_prefix("sqlite:").ok_or("this is not a supported database")?;
        let path = path.strip_prefix("//").unwrap_or(path);
        match path {
            "" | "." | "/" => Err("the path after `sqlite:` names no file"),
            ":memory:" => Err("a database in memory would lose every event"),
            _ if path.contains('?') => Err("a sqlite URL takes a path and no parameters"),
            _ => Ok(Self::Sqlite(path.into())),
        }
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Sqlite(path) => s.collect_str(&format_args!("sqlite:{}", path.display())),
            Self::Postgres(_) => s.collect_str(&format_args!("postgres://{MASK}")),
        }
    }
}

/// Whether `url` has a scheme of Postgres and something behind it.
pub(super) fn is_postgres(url: &str) -> bool {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    rest.is_some_and(|rest| !rest.is_empty())
}

/// Where a key set is: an absolute URL of http or https, without credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JwksUrl(url::Url);

impl JwksUrl {
    /// The URL as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it is reached over TLS.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl TryFrom<String> for JwksUrl {
    type Error = &'static str;

    // The text is not repeated: it may hold a password.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let url = url::Url::parse(&text).map_err(|_| "this is not an absolute URL")?;
        match url.scheme() {
            "http" | "https" if !url.has_host() => Err("the URL names no host"),
            "http" | "https" if !url.username().is_empty() || url.password().is_some() => {
                Err("the URL must not contain credentials, because they would end up in logs")
            }
            "http" | "https" if url.fragment().is_some() => Err("the URL must not have a fragment (`#`)"),
            "http" | "https" => Ok(Self(url)),
            _ => Err("only https URLs are supported"),
        }
    }
}

impl From<JwksUrl> for String {
    fn from(url: JwksUrl) -> String {
        url.0.into()
    }
}

/// A repository as GitHub spells it: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct RepoName(String);

impl RepoName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RepoName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some((owner, name)) if is_owner(owner) && is_repo_name(name) => Ok(Self(text)),
            _ => Err(format!("`{text}` is not a repository: write \"OWNER/NAME\" as GitHub spells it")),
        }
    }
}

impl std::borrow::Borrow<str> for RepoName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The name of a configured namespace: two or more of letters, digits, `-` and `_`, and none
/// of the built-in names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct NamespaceName(String);

impl NamespaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NamespaceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if RESERVED.contains(&text.as_str()) {
            return Err(format!(
                "`{text}` is a namespace that Campanile fills itself, now or later: choose another name"
            ));
        }
        if text.len() < 2 || !text.bytes().all(allowed) {
            return Err(format!(
                "`{text}` is not a valid name for a namespace: use two or more letters, digits, `-` or `_`"
            ));
        }
        Ok(Self(text))
    }
}

/// A tracing filter that is known to parse, such as `info` or `info,campanile::store=debug`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match tracing_subscriber::EnvFilter::builder().parse(&text) {
            Ok(_) if !text.trim().is_empty() => Ok(Self(text)),
            _ => Err(format!(
                "`{text}` is not a log filter: write a level, or TARGET=LEVEL with commas between"
            )),
        }
    }
}

/// In which header a proxy says whom a request is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
}

/// Reads a list of networks; an address alone is the network of that one address.
pub(super) fn networks<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<IpNet>, D::Error> {
    Vec::<String>::deserialize(d)?.iter().map(|text| network(text).map_err(D::Error::custom)).collect()
}

fn network(text: &str) -> Result<IpNet, String> {
    let alone = || std::net::IpAddr::from_str(text).map(IpNet::from);
    IpNet::from_str(text).or_else(|_| alone()).map_err(|_| {
        format!("`{text}` is not a network: write an address, with a prefix length if there are several")
    })
}

/// Reads the address to listen on.
pub(super) fn socket_address<'de, D: Deserializer<'de>>(d: D) -> Result<std::net::SocketAddr, D::Error> {
    address(&String::deserialize(d)?)
}

/// Reads a further one.
pub(super) fn optional_socket_address<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<std::net::SocketAddr>, D::Error> {
    Option::<String>::deserialize(d)?.as_deref().map(address).transpose()
}

fn address<E: serde::de::Error>(text: &str) -> Result<std::net::SocketAddr, E> {
    text.parse().map_err(|_| E::custom(format!("`{text}` is not an address with a port")))
}
