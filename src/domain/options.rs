//! The options of a namespace (protocol §11.3).
//! The config reads it, the access rule and the log act on it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::channel::{ChannelKind, ChannelName};
use super::units::Span;

/// Options of one namespace, or of channels without one. Everything is off by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelOptions {
    /// How many events are kept. History is on when this and `history_ttl` are above 0.
    pub history_size: u32,
    /// How long events are kept.
    pub history_ttl: Span,
    /// Who is on a channel is known and can be asked for.
    pub presence: bool,
    /// Join and leave messages go to subscribers that request them and may read presence.
    pub join_leave: bool,
    /// With `join_leave`: join and leave messages go to every subscriber, requested or not.
    pub force_push_join_leave: bool,
    /// Every subscription watches that no event is missing. Needs history.
    pub force_positioning: bool,
    /// Every subscription can come back with its position, and is positioned. Needs history.
    pub force_recovery: bool,
    /// A subscription is positioned if the client asks for it.
    pub allow_positioning: bool,
    /// A subscription is recoverable if the client asks for it.
    pub allow_recovery: bool,
    /// Any signed-in client may subscribe.
    pub allow_subscribe_for_client: bool,
    /// With `allow_subscribe_for_client`: anonymous clients too.
    pub allow_subscribe_for_anonymous: bool,
    /// Any signed-in client may publish.
    pub allow_publish_for_client: bool,
    /// A client that is subscribed may publish.
    pub allow_publish_for_subscriber: bool,
    /// With `allow_publish_for_client`: anonymous clients too.
    pub allow_publish_for_anonymous: bool,
    /// Any signed-in client may read the history.
    pub allow_history_for_client: bool,
    /// A client that is subscribed may read the history.
    pub allow_history_for_subscriber: bool,
    /// With `allow_history_for_client`: anonymous clients too.
    pub allow_history_for_anonymous: bool,
    /// Any signed-in client may read presence.
    pub allow_presence_for_client: bool,
    /// A client that is subscribed may read presence.
    pub allow_presence_for_subscriber: bool,
    /// With `allow_presence_for_client`: anonymous clients too.
    pub allow_presence_for_anonymous: bool,
    /// Names such as `dialog#42,43` admit exactly the users listed behind `#`.
    pub allow_user_limited_channels: bool,
    /// What the rest of a name must look like, behind the namespace.
    pub channel_regex: NameRegex,
    /// What may be published.
    pub publication_data_format: DataFormat,
    /// What recovery means.
    pub force_recovery_mode: RecoveryMode,
    /// With the mode `cache`: every subscription recovers, asked or not.
    pub auto_cache_recover: bool,
    /// How data may come as differences to subscribers that ask for it. Needs history.
    pub allowed_delta_types: Vec<DeltaType>,
    /// Every publication may come as a difference, not only those that are published so.
    pub delta_publish: bool,
    /// Subscribers may filter by tags.
    pub allow_tags_filter: bool,
}

/// What recovery means in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryMode {
    /// Everything that was missed, or the information that it is lost.
    #[default]
    Stream,
    /// Only the latest publication, which contains the whole state.
    Cache,
}

/// How data may come as differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeltaType {
    /// In the format of Fossil.
    Fossil,
}

/// What may be published. It is JSON in any case, because clients speak JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    #[default]
    #[serde(rename = "")]
    Any,
    /// The same, by its name.
    Json,
    JsonObject,
    /// Anything; bytes that are no JSON have no client here.
    Binary,
}

impl DataFormat {
    /// Whether `json`, one JSON value, may be published.
    pub fn admits(self, json: &str) -> bool {
        self != Self::JsonObject || json.trim_start().starts_with('{')
    }
}

/// A regular expression over the part of a name behind its namespace; empty is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameRegex(Option<regex_lite::Regex>);

impl NameRegex {
    /// Whether a channel of this name may be. The expression says itself whether it must cover it all.
    pub fn admits(&self, channel: &ChannelName) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(channel.rest()))
    }

    fn as_str(&self) -> &str {
        self.0.as_ref().map_or("", regex_lite::Regex::as_str)
    }
}

impl PartialEq for NameRegex {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for NameRegex {}

impl TryFrom<String> for NameRegex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let regex = regex_lite::Regex::new(&text);
        regex
            .map(|regex| Self(Some(regex)))
            .map_err(|error| format!("this is not a regular expression: {error}"))
    }
}

impl From<NameRegex> for String {
    fn from(regex: NameRegex) -> String {
        regex.as_str().to_owned()
    }
}

impl ChannelOptions {
    /// These, with a history that can be recovered: what personal channels (`#42`) have where the operator has
    /// chosen none.
    pub fn with_history(&self, kept: Retention) -> Self {
        let history_size = u32::try_from(kept.events).unwrap_or(u32::MAX);
        Self { history_size, history_ttl: Span(kept.age), force_recovery: true, ..self.clone() }
    }

    /// Whether events of the namespace are kept and numbered.
    pub fn has_history(&self) -> bool {
        self.history_size > 0 && !self.history_ttl.0.is_zero()
    }

    /// Whether data may come as differences. Without history nobody knows what came before.
    pub fn has_deltas(&self) -> bool {
        self.has_history() && !self.allowed_delta_types.is_empty()
    }

    /// Whether recovery brings the latest publication alone.
    pub fn is_cache(&self) -> bool {
        self.has_history() && self.force_recovery_mode == RecoveryMode::Cache
    }
}

/// How much of a channel's log is kept: events that are neither too many nor too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Retention {
    /// At most so many.
    pub events: u64,
    /// At most so old.
    pub age: Duration,
}

/// What is kept of all that has no namespace in the configuration (design §6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub repo: Retention,
    pub org: Retention,
    pub build: Retention,
    pub job: Retention,
    /// Of personal channels without a history of the operator's.
    pub personal: Retention,
    /// Of channels of row changes.
    pub rows: Retention,
    /// For how long a delivery is known: sent again later it counts as new.
    pub delivery_ids: Duration,
    pub delivery_payloads: Duration,
    /// At most, from its beginning; `None` for as long as each session was made for.
    pub sessions: Option<Duration>,
}

impl Default for Kept {
    fn default() -> Self {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let kept = |events, age| Retention { events, age: hours(age) };
        Self {
            repo: kept(10_000, 7 * 24),
            org: kept(10_000, 7 * 24),
            build: kept(1_000, 24),
            job: kept(1_000, 24),
            // A notification waits for its user for a week.
            personal: kept(100, 7 * 24),
            rows: kept(10_000, 7 * 24),
            delivery_ids: hours(90 * 24),
            delivery_payloads: hours(30 * 24),
            sessions: None,
        }
    }
}

/// The operator's namespaces as a running node has them: a reload puts others in their place.
pub type SharedNamespaces = Arc<ArcSwap<Namespaces>>;

/// The operator's namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Namespaces {
    /// For channels without a `:`; nobody may use them unless this is set.
    pub without: Option<ChannelOptions>,
    /// For personal channels without a namespace, in place of `without`.
    pub personal: Option<ChannelOptions>,
    /// By the text before the first `:`.
    pub named: std::collections::BTreeMap<String, ChannelOptions>,
    /// What is kept of everything else.
    pub kept: Kept,
}

/// Why there is no channel of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoChannel {
    BadName,
    UnknownNamespace,
}

impl Namespaces {
    /// These, until they are replaced.
    pub fn shared(self) -> SharedNamespaces {
        Arc::new(ArcSwap::from_pointee(self))
    }

    /// The options that count for `channel`; `None` for a namespace that is not declared, and for
    /// the built-in ones.
    pub fn options_of(&self, channel: &ChannelName) -> Option<&ChannelOptions> {
        match channel.kind() {
            ChannelKind::Personal { namespace: None, .. } => self.personal.as_ref().or(self.without.as_ref()),
            ChannelKind::Plain { namespace: None, .. } => self.without.as_ref(),
            ChannelKind::Personal { namespace: Some(name), .. }
            | ChannelKind::Plain { namespace: Some(name), .. } => self.named.get(name),
            _ => None,
        }
    }

    /// The channel of this name with its options, which the built-in ones do not have.
    pub fn find(&self, name: &str) -> Result<(ChannelName, Option<&ChannelOptions>), NoChannel> {
        let channel = ChannelName::parse(name).map_err(|_| NoChannel::BadName)?;
        let options = self.options_of(&channel);
        if !channel.is_built_in() && options.is_none() {
            return Err(NoChannel::UnknownNamespace);
        }
        if options.is_some_and(|options| !options.channel_regex.admits(&channel)) {
            return Err(NoChannel::BadName);
        }
        Ok((channel, options))
    }

    /// What is kept of `channel`; `None` when its events are neither numbered nor kept.
    pub fn retention_of(&self, channel: &ChannelName) -> Option<Retention> {
        let kept = &self.kept;
        match channel.kind() {
            ChannelKind::Repo { .. } => Some(kept.repo),
            ChannelKind::Org { .. } => Some(kept.org),
            ChannelKind::Db { .. } => Some(kept.rows),
            ChannelKind::Job(_) => Some(kept.job),
            ChannelKind::Build(_) => Some(kept.build),
            ChannelKind::Personal { .. } | ChannelKind::Plain { .. } => self
                .options_of(channel)
                .filter(|options| options.has_history())
                .map(|options| Retention { events: options.history_size.into(), age: options.history_ttl.0 }),
        }
    }
}
