//! Web origins: the one that people use to reach this gateway, and patterns of others.
//! Both are compared in one spelling: lower case, and without the port that the scheme implies.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Scheme, host and port of a site, such as `https://live.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, derive_more::Display)]
#[serde(try_from = "String", into = "String")]
#[display("{scheme}://{}", self.authority())]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    /// The scheme, such as `https`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The host, with its port if that is not the usual one: what a `Host` header says.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        split(text, false).ok_or_else(|| {
            format!(
                "`{text}` is not an origin: write SCHEME://HOST or SCHEME://HOST:PORT and nothing behind it"
            )
        })
    }
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> String {
        origin.to_string()
    }
}

/// What pages send that have no site: sandboxed ones, redirected requests and local files.
const NULL: &str = "null";
/// What some apps send for pages out of their files.
const FILE: &str = "file://";

/// Origins that are allowed: one, all whose labels fit (`https://*.example.com`, where `*`
/// stands for exactly one label), pages without a site by what they send, or every one (`*`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OriginPattern {
    /// `*`: every site, and pages without one.
    Every,
    /// `null`.
    Null,
    /// `file://`.
    File,
    /// Sites whose scheme and port are these and whose labels fit.
    Site(Origin),
}

impl OriginPattern {
    /// Whether `origin`, the text of a header, fits.
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Null => origin == NULL,
            Self::File => origin == FILE,
            Self::Site(site) => split(origin, false).is_some_and(|origin| {
                site.scheme == origin.scheme
                    && site.port == origin.port
                    && labels_fit(&site.host, &origin.host)
            }),
        }
    }
}

impl TryFrom<String> for OriginPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "*" => Ok(Self::Every),
            NULL => Ok(Self::Null),
            FILE => Ok(Self::File),
            _ => split(&text, true).map(Self::Site).ok_or_else(|| {
                format!(
                    "`{text}` is not a pattern of origins: write SCHEME://HOST, where a whole label may be `*`, \
                     or null, file:// or *"
                )
            }),
        }
    }
}

impl From<OriginPattern> for String {
    fn from(pattern: OriginPattern) -> String {
        match pattern {
            OriginPattern::Every => "*".to_owned(),
            OriginPattern::Null => NULL.to_owned(),
            OriginPattern::File => FILE.to_owned(),
            OriginPattern::Site(site) => site.to_string(),
        }
    }
}

fn labels_fit(pattern: &str, host: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), host.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("*"), Some(label)) if !label.is_empty() => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// The parts of `text`, which may end in one slash, as people paste addresses that way.
fn split(text: &str, wildcards: bool) -> Option<Origin> {
    let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let (scheme, rest) = text.split_once("://")?;
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse::<u16>().ok()?)),
        _ => (rest, None),
    };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    if !scheme_ok || !is_host(host, wildcards) {
        return None;
    }
    let usual = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
    Some(Origin { scheme: scheme.to_owned(), host: host.to_owned(), port: port.filter(|_| !usual) })
}

fn is_host(host: &str, wildcards: bool) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let plain = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    host.split('.').all(|label| plain(label) || (wildcards && label == "*"))
}
