//! What a channel name may look like, and which family it belongs to (design: built-in
//! namespaces; protocol §11.1). A `ChannelName` is valid by construction: code that holds one
//! never checks it again. Names are compared byte for byte, in GitHub's spelling.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest channel name, in bytes (protocol §13, `channel.max_length`).
pub const MAX_LENGTH: usize = 255;

/// The namespaces that Campanile itself fills, and those that it will: they cannot be declared in the config.
/// The last three have no channels yet.
pub const RESERVED: [&str; 8] = ["repo", "org", "job", "build", "db", "rows", "ops", "features"];

/// A well-formed channel name. Cheap to clone.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, derive_more::Display,
)]
#[serde(try_from = "String", into = "String")]
pub struct ChannelName(Arc<str>);

/// Why a text is no channel name. On the wire all of these are error 107.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChannel {
    /// The empty text.
    #[error("a channel name is empty")]
    Empty,
    /// More than [`MAX_LENGTH`] bytes.
    #[error("a channel name is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// A byte outside printable ASCII.
    #[error("a channel name has a character that is not printable ASCII")]
    NotPrintable,
    /// A built-in namespace with the wrong shape behind it, such as `repo:acme`.
    #[error(
        "a built-in channel name is malformed: use repo:OWNER/NAME, org:OWNER, job:UUID, build:UUID or db:TABLE"
    )]
    Malformed,
}

/// The family of a channel, with the parts of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind<'a> {
    /// `repo:{owner}/{name}`: events of one repository.
    Repo {
        /// The account that owns it.
        owner: &'a str,
        /// The repository's own name.
        name: &'a str,
    },
    /// `org:{owner}`: events of all repositories of an owner.
    Org { owner: &'a str },
    /// `job:{uuid}`: progress of one job.
    Job(Uuid),
    /// `build:{uuid}`: events of one build.
    Build(Uuid),
    /// `db:{table}`: row changes.
    Db {
        /// The table's name.
        table: &'a str,
    },
    /// `#{user}` or `ns:#{user}` with exactly one user: personal notifications.
    Personal {
        /// The namespace before `:#`, if any.
        namespace: Option<&'a str>,
        /// The only user who may have it.
        user: &'a str,
    },
    /// Everything else: a configured namespace, or none.
    Plain {
        /// The text before the first `:` without a leading `$`; `None` when there is no `:`.
        namespace: Option<&'a str>,
        /// Begins with `$`: needs a subscription token.
        private: bool,
    },
}

impl ChannelName {
    /// Checks `text` and takes it as a name.
    pub fn parse(text: &str) -> Result<Self, BadChannel> {
        if text.is_empty() {
            return Err(BadChannel::Empty);
        }
        if text.len() > MAX_LENGTH {
            return Err(BadChannel::TooLong);
        }
        if !text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            return Err(BadChannel::NotPrintable);
        }
        classify(text).ok_or(BadChannel::Malformed)?;
        Ok(Self(text.into()))
    }

    /// `repo:{owner}/{name}`, if both are names that GitHub could give.
    pub fn repo(owner: &str, name: &str) -> Result<Self, BadChannel> {
        Self::parse(&format!("repo:{owner}/{name}"))
    }

    /// `org:{owner}`.
    pub fn org(owner: &str) -> Result<Self, BadChannel> {
        Self::parse(&format!("org:{owner}"))
    }

    /// `build:{id}`.
    pub fn build(id: Uuid) -> Self {
        Self(format!("build:{}", id.hyphenated()).into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The family and the parts.
    pub fn kind(&self) -> ChannelKind<'_> {
        classify(&self.0).expect("a ChannelName was checked when it was made")
    }

    /// Whether Campanile itself fills this channel (`repo org job build db`).
    pub fn is_built_in(&self) -> bool {
        !matches!(self.kind(), ChannelKind::Personal { .. } | ChannelKind::Plain { .. })
    }

    /// Whether the access rule needs the resource behind this channel (`job:`, `build:`).
    pub fn has_resource(&self) -> bool {
        matches!(self.kind(), ChannelKind::Job(_) | ChannelKind::Build(_))
    }

    /// The name without `$` and namespace.
    pub fn rest(&self) -> &str {
        let name = self.0.strip_prefix('$').unwrap_or(&self.0);
        match namespace_of(&self.0) {
            Some(namespace) => &name[namespace.len() + 1..],
            None => name,
        }
    }

    /// The namespace: the text before the first `:` without a leading `$`. A name that begins
    /// with `#` has none.
    pub fn namespace(&self) -> Option<&str> {
        namespace_of(&self.0)
    }
}

/// No declared namespace begins with `#`, so a colon behind it belongs to a user's id.
fn namespace_of(text: &str) -> Option<&str> {
    split(text).map(|(namespace, _)| namespace)
}

/// The namespace without a leading `$`, and what stands behind its colon.
fn split(text: &str) -> Option<(&str, &str)> {
    if text.starts_with('#') {
        return None;
    }
    let text = text.strip_prefix('$').unwrap_or(text);
    // Names are short, and a search made for long texts is slower.
    let colon = text.bytes().position(|b| b == b':')?;
    Some((&text[..colon], &text[colon + 1..]))
}

/// `None` when a built-in namespace has the wrong shape behind it.
fn classify(text: &str) -> Option<ChannelKind<'_>> {
    let private = text.starts_with('$');
    let Some((namespace, rest)) = split(text) else {
        return Some(match text.strip_prefix('#') {
            Some(user) if single_user(user) => ChannelKind::Personal { namespace: None, user },
            _ => ChannelKind::Plain { namespace: None, private },
        });
    };
    let built_in = match namespace {
        "repo" => rest
            .split_once('/')
            .filter(|(owner, name)| is_owner(owner) && is_repo_name(name))
            .map(|(owner, name)| ChannelKind::Repo { owner, name }),
        "org" => is_owner(rest).then_some(ChannelKind::Org { owner: rest }),
        "job" => uuid(rest).map(ChannelKind::Job),
        "build" => uuid(rest).map(ChannelKind::Build),
        "db" => is_table(rest).then_some(ChannelKind::Db { table: rest }),
        _ => {
            return Some(match rest.strip_prefix('#') {
                Some(user) if !private && single_user(user) => {
                    ChannelKind::Personal { namespace: Some(namespace), user }
                }
                _ => ChannelKind::Plain { namespace: Some(namespace), private },
            });
        }
    };
    built_in.filter(|_| !private)
}

fn single_user(user: &str) -> bool {
    !user.is_empty() && !user.contains(',')
}

/// Only the hyphenated lower-case form, so that one id has one channel.
fn uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    (id.hyphenated().to_string() == text).then_some(id)
}

/// A GitHub account name: letters, digits, `-` and `_`, at most 100 of them.
pub fn is_owner(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// A GitHub repository name: letters, digits, `-`, `_` and `.`, at most 100, and not `.` or `..`.
pub fn is_repo_name(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && text != "."
        && text != ".."
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_table(text: &str) -> bool {
    (1..=127).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

impl TryFrom<String> for ChannelName {
    type Error = BadChannel;
    fn try_from(text: String) -> Result<Self, BadChannel> {
        Self::parse(&text)
    }
}

impl From<ChannelName> for String {
    fn from(name: ChannelName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl std::borrow::Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}
