//! Who is asking: what a token or a session says about a client, as values. Decides nothing
//! about channels, which is `access`; reads no token, which is `auth`. Anonymous is the user
//! with the empty id, and nobody is ever equal to it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::channel::{ChannelKind, ChannelName};
use super::event::Time;
use super::pattern::ChannelPattern;
use super::sorted_set::SortedSet;

/// Who is asking, as a verified token (or a session) says it. The default is an anonymous user
/// without any right.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Principal {
    /// The user's id; empty for anonymous.
    pub user: String,
    /// Accounts whose repositories may all be seen.
    pub orgs: SortedSet<String>,
    /// Single repositories that may be seen, as `owner/name`.
    pub repos: SortedSet<String>,
    /// What may be done over HTTP.
    pub scopes: Scopes,
    /// Rights on channels by pattern.
    pub caps: Box<[Capability]>,
    /// Channels of the claims `channels` and `subs`: the connection is subscribed to them.
    pub channels: SortedSet<ChannelName>,
    /// What the claim `subs` says about some of `channels`.
    pub subs: Box<[(ChannelName, SubClaim)]>,
    /// When the connection ends; `None` is never.
    pub expires_at: Option<Time>,
    /// Shown to others as `conn_info`: one JSON value without raw line feeds.
    pub info: Option<Arc<str>>,
    /// Kept on the server, never shown to clients: one JSON value without raw line feeds.
    pub meta: Option<Arc<str>>,
    /// The token's own id.
    pub jti: Option<Box<str>>,
}

/// What may be done over HTTP. Reading what one may see is implied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    /// `scan`: start and cancel scans.
    pub scan: bool,
    /// `publish`: publish over our own routes.
    pub publish: bool,
    /// `admin`: see everything built in, and do what the other scopes allow.
    pub admin: bool,
}

/// Some rights on all channels that fit one of some patterns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capability {
    pub channels: Vec<ChannelPattern>,
    pub allow: Rights,
}

/// What somebody wants to do on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Receive what comes, and what was missed.
    Subscribe,
    /// Publish over a client connection.
    Publish,
    /// Read stored events.
    History,
    /// Read who is on the channel.
    Presence,
}

/// The rights of a [`Capability`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// `sub`.
    pub subscribe: bool,
    /// `pub`.
    pub publish: bool,
    /// `hst`.
    pub history: bool,
    /// `prs`.
    pub presence: bool,
}

/// What a token says about one server-side subscription.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SubClaim {
    /// Shown to others as `chan_info`: one JSON value without raw line feeds.
    #[serde(with = "crate::domain::serde_arc_str::option", default)]
    pub info: Option<Arc<str>>,
    /// Given to the client with the subscription: one JSON value without raw line feeds.
    #[serde(with = "crate::domain::serde_arc_str::option", default)]
    pub data: Option<Arc<str>>,
    /// Options of the namespace that this subscription changes.
    pub overrides: Overrides,
}

/// Options that one subscription may change; `None` leaves them to the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overrides {
    /// `presence`.
    pub presence: Option<bool>,
    /// `join_leave`.
    pub join_leave: Option<bool>,
    /// `force_push_join_leave`.
    pub force_push_join_leave: Option<bool>,
    /// `force_recovery`.
    pub force_recovery: Option<bool>,
    /// `force_positioning`.
    pub force_positioning: Option<bool>,
}

impl Principal {
    /// Whether the user is anonymous.
    pub fn is_anonymous(&self) -> bool {
        self.user.is_empty()
    }

    /// Whether this is that user. Anonymous is nobody, not even the user with the empty id.
    pub fn is_user(&self, user: &str) -> bool {
        !self.is_anonymous() && self.user == user
    }

    /// `#{user}` or `{namespace}:#{user}`. `None` for anonymous users and for ids that cannot
    /// stand in a channel name or would read as a list of users.
    pub fn personal_channel(&self, namespace: Option<&str>) -> Option<ChannelName> {
        let text = match namespace {
            Some(namespace) => format!("{namespace}:#{}", self.user),
            None => format!("#{}", self.user),
        };
        let channel = ChannelName::parse(&text).ok()?;
        let own = matches!(channel.kind(), ChannelKind::Personal { user, .. } if self.is_user(user));
        own.then_some(channel)
    }

    /// What the claim `subs` says about `channel`.
    pub fn sub_claim(&self, channel: &ChannelName) -> Option<&SubClaim> {
        self.subs.iter().find(|(name, _)| name == channel).map(|(_, claim)| claim)
    }

    /// Whether a capability names this right and this channel. The rule, not this, decides.
    pub fn has_cap(&self, action: Action, channel: &ChannelName) -> bool {
        self.caps.iter().any(|cap| cap.allow.includes(action) && cap.covers(channel))
    }
}

impl Capability {
    /// Whether one of the patterns fits.
    pub fn covers(&self, channel: &ChannelName) -> bool {
        self.channels.iter().any(|pattern| pattern.matches(channel.as_str()))
    }
}

impl Rights {
    /// Whether the right to `action` is among these.
    pub fn includes(self, action: Action) -> bool {
        match action {
            Action::Subscribe => self.subscribe,
            Action::Publish => self.publish,
            Action::History => self.history,
            Action::Presence => self.presence,
        }
    }
}

impl<'a> FromIterator<&'a str> for Rights {
    /// Reads `sub`, `pub`, `hst` and `prs`; other words give nothing.
    fn from_iter<I: IntoIterator<Item = &'a str>>(words: I) -> Self {
        let mut rights = Self::default();
        for word in words {
            match word {
                "sub" => rights.subscribe = true,
                "pub" => rights.publish = true,
                "hst" => rights.history = true,
                "prs" => rights.presence = true,
                _ => {}
            }
        }
        rights
    }
}

impl Scopes {
    /// Whether scans may be started and cancelled.
    pub fn may_scan(self) -> bool {
        self.scan || self.admin
    }

    /// Whether our own routes may be published through.
    pub fn may_publish(self) -> bool {
        self.publish || self.admin
    }
}

impl<'a> FromIterator<&'a str> for Scopes {
    /// Reads `scan`, `publish` and `admin`; other words, such as `read`, give nothing.
    fn from_iter<I: IntoIterator<Item = &'a str>>(words: I) -> Self {
        let mut scopes = Self::default();
        for word in words {
            match word {
                "scan" => scopes.scan = true,
                "publish" => scopes.publish = true,
                "admin" => scopes.admin = true,
                _ => {}
            }
        }
        scopes
    }
}
