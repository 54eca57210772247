//! Who may do what on which channel: one pure function over the claims of a token and some context.
//! Whatever no line here allows is denied. Reads no store and no clock: the caller provides the
//! context, refuses expired principals, and asks again for each subscription after a refresh.
//! Must hold: nothing but being that user opens a personal channel, nothing lets a client
//! publish to a built-in one, and `insecure` opens neither.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use super::channel::{ChannelKind, ChannelName};
use super::options::ChannelOptions;

pub use super::principal::{Action, Capability, Overrides, Principal, Rights, Scopes, SubClaim};

/// What the rule must know besides the claims. The default grants the least.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccessContext<'a> {
    /// Options of the namespace (or of channels without one); `None` is undeclared. Built-in
    /// channels do not look at it.
    pub options: Option<&'a ChannelOptions>,
    /// The job or build that a `job:` or `build:` channel is about.
    pub resource: Resource<'a>,
    /// The connection is subscribed to the channel now. Never a reason to subscribe again.
    pub subscribed: bool,
    /// The connection holds a valid subscription token for exactly this channel and user.
    pub admitted_by_token: bool,
    /// `client.insecure` is on.
    pub insecure: bool,
}

/// The job or build that a `job:` or `build:` channel is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resource<'a> {
    /// The channel is of another kind. On `job:` and `build:` the same as `Unknown`.
    #[default]
    NotNeeded,
    /// There is no such job or build.
    Unknown,
    Job {
        /// Owner and name of its repository; a job about none is for admins.
        repo: Option<(&'a str, &'a str)>,
    },
    Build {
        /// The user who made it.
        user: &'a str,
        /// The account whose members may see it too.
        org: Option<&'a str>,
    },
}

/// An owned [`Resource`], as a lookup found it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ResourceInfo {
    /// As [`Resource::NotNeeded`].
    #[default]
    NotNeeded,
    /// As [`Resource::Unknown`].
    Unknown,
    /// As [`Resource::Job`].
    Job {
        /// Owner and name of its repository.
        repo: Option<(String, String)>,
    },
    /// As [`Resource::Build`].
    Build {
        /// The user who made it.
        user: String,
        /// The account whose members may see it too.
        org: Option<String>,
    },
}

impl ResourceInfo {
    /// What the rule looks at.
    pub fn as_resource(&self) -> Resource<'_> {
        match self {
            Self::NotNeeded => Resource::NotNeeded,
            Self::Unknown => Resource::Unknown,
            Self::Job { repo } => {
                Resource::Job { repo: repo.as_ref().map(|(owner, name)| (owner.as_str(), name.as_str())) }
            }
            Self::Build { user, org } => Resource::Build { user, org: org.as_deref() },
        }
    }
}

/// Why access is denied. The wire's codes are `protocol`'s business: 102, 103, 107 and 108.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Denied {
    /// The namespace is not declared.
    #[error("unknown channel")]
    UnknownChannel,
    /// Not for this principal, or there is nothing: a stranger cannot tell which.
    #[error("permission denied")]
    Forbidden,
    /// The channel has no such feature.
    #[error("not available")]
    NotAvailable,
    /// The operator does not allow such names.
    #[error("the namespace does not allow a channel of this name")]
    BadName,
}

/// The access rule.
///
/// **Built-in channels.** `Subscribe` and `History` are one right: the claims see the channel's
/// subject (design §8), or an admin, a capability, the claims `channels` or `subs`, or a
/// subscription token admits; a subscription implies reading what it would replay, so `sub` in a
/// capability and being subscribed give `History` too (`hst` alone does not give `Subscribe`).
/// A job or build that does not exist is denied to everybody. `Publish` is always denied, and
/// `Presence` is a feature they do not have: not available, for admins too.
///
/// **Personal channels** (`#42`, `ns:#42`) are that user's and nobody else's, whatever a token,
/// a capability, an admin or `insecure` says. The owner may subscribe, and read history and
/// presence if the namespace has them; publishing goes by the namespace's options.
///
/// **Configured namespaces** go by protocol §11.2, with admins as everybody else. `channels`,
/// `subs` and a subscription token admit to subscribe; a capability gives exactly its rights.
/// A name that restricts itself (`$…`, or a user list where the namespace allows these) does so
/// for every action: only who is admitted or subscribed goes on to the options.
pub fn may(
    principal: &Principal,
    action: Action,
    channel: &ChannelName,
    context: &AccessContext<'_>,
) -> Result<(), Denied> {
    match channel.kind() {
        ChannelKind::Personal { user, .. } => may_personal(principal, action, user, channel, context),
        ChannelKind::Plain { private, .. } => may_configured(principal, action, private, channel, context),
        kind => may_built_in(principal, action, kind, channel, context),
    }
}

fn may_built_in(
    principal: &Principal,
    action: Action,
    kind: ChannelKind<'_>,
    channel: &ChannelName,
    context: &AccessContext<'_>,
) -> Result<(), Denied> {
    let reads = match action {
        Action::Publish => return Err(Denied::Forbidden),
        Action::Presence => return Err(Denied::NotAvailable),
        Action::Subscribe => false,
        Action::History => context.subscribed || principal.has_cap(Action::History, channel),
    };
    let sees = match (kind, context.resource) {
        (ChannelKind::Repo { owner, name }, _) => may_see_repo(principal, owner, name),
        (ChannelKind::Org { owner }, _) => principal.orgs.contains(owner),
        (ChannelKind::Job(_), Resource::Job { repo }) => {
            repo.is_some_and(|(owner, name)| may_see_repo(principal, owner, name))
        }
        (ChannelKind::Build(_), Resource::Build { user, org }) => {
            principal.is_user(user) || org.is_some_and(|org| principal.orgs.contains(org))
        }
        (ChannelKind::Db { .. }, _) => false,
        _ => return Err(Denied::Forbidden),
    };
    let admitted = sees
        || reads
        || is_admin(principal)
        || context.admitted_by_token
        || principal.channels.contains(channel)
        || principal.has_cap(Action::Subscribe, channel);
    allow_if(admitted)
}

fn may_personal(
    principal: &Principal,
    action: Action,
    user: &str,
    channel: &ChannelName,
    context: &AccessContext<'_>,
) -> Result<(), Denied> {
    let options = context.options.ok_or(Denied::UnknownChannel)?;
    has_name(channel, options)?;
    allow_if(principal.is_user(user))?;
    has_feature(action, options)?;
    allow_if(
        action != Action::Publish
            || principal.has_cap(action, channel)
            || options_allow(principal, action, options, context),
    )
}

fn may_configured(
    principal: &Principal,
    action: Action,
    private: bool,
    channel: &ChannelName,
    context: &AccessContext<'_>,
) -> Result<(), Denied> {
    let options = context.options.ok_or(Denied::UnknownChannel)?;
    has_name(channel, options)?;
    has_feature(action, options)?;
    if principal.has_cap(action, channel) {
        return Ok(());
    }
    let subscribing = action == Action::Subscribe;
    let admitted = context.admitted_by_token || principal.channels.contains(channel);
    if subscribing && admitted {
        return Ok(());
    }
    let inside = admitted || (context.subscribed && !subscribing);
    if private && !inside {
        return Err(Denied::Forbidden);
    }
    if let Some(users) = user_list(channel, options) {
        let listed = users.split(',').any(|user| principal.is_user(user));
        allow_if(listed || inside)?;
        if subscribing {
            return Ok(());
        }
    }
    allow_if(options_allow(principal, action, options, context))
}

/// The users behind the last `#` of a name, where such names limit.
fn user_list<'a>(channel: &'a ChannelName, options: &ChannelOptions) -> Option<&'a str> {
    let (_, users) = channel.as_str().rsplit_once('#')?;
    options.allow_user_limited_channels.then_some(users)
}

fn has_name(channel: &ChannelName, options: &ChannelOptions) -> Result<(), Denied> {
    if options.channel_regex.admits(channel) { Ok(()) } else { Err(Denied::BadName) }
}

fn has_feature(action: Action, options: &ChannelOptions) -> Result<(), Denied> {
    let has = match action {
        Action::Subscribe | Action::Publish => true,
        Action::History => options.has_history(),
        Action::Presence => options.presence,
    };
    if has { Ok(()) } else { Err(Denied::NotAvailable) }
}

/// What the operator opened to clients and subscribers, both without anonymous ones unless the
/// third option says so.
fn options_allow(
    principal: &Principal,
    action: Action,
    o: &ChannelOptions,
    context: &AccessContext<'_>,
) -> bool {
    let (client, subscriber, anonymous) = match action {
        Action::Subscribe => (o.allow_subscribe_for_client, false, o.allow_subscribe_for_anonymous),
        Action::Publish => {
            (o.allow_publish_for_client, o.allow_publish_for_subscriber, o.allow_publish_for_anonymous)
        }
        Action::History => {
            (o.allow_history_for_client, o.allow_history_for_subscriber, o.allow_history_for_anonymous)
        }
        Action::Presence => {
            (o.allow_presence_for_client, o.allow_presence_for_subscriber, o.allow_presence_for_anonymous)
        }
    };
    let known = anonymous || !principal.is_anonymous();
    context.insecure || (known && (client || (subscriber && context.subscribed)))
}

fn allow_if(allowed: bool) -> Result<(), Denied> {
    if allowed { Ok(()) } else { Err(Denied::Forbidden) }
}

/// Whether a repository is this principal's to see, in lists as on its channel: by `orgs`,
/// `repos` or the admin scope, or because a claim or capability admits to subscribe to it.
pub fn may_see_repo(principal: &Principal, owner: &str, name: &str) -> bool {
    if is_admin(principal) || principal.orgs.contains(owner) {
        return true;
    }
    principal.repos.contains(&format!("{owner}/{name}"))
        || ChannelName::repo(owner, name).is_ok_and(|channel| {
            principal.channels.contains(&channel) || principal.has_cap(Action::Subscribe, &channel)
        })
}

/// Whether the principal may append to a build: its owner and admins may. Members of its organization
/// may only read it.
pub fn may_append_to_build(principal: &Principal, owner: &str) -> bool {
    is_admin(principal) || principal.is_user(owner)
}

/// Whether the principal has the admin scope.
pub fn is_admin(principal: &Principal) -> bool {
    principal.scopes.admin
}

/// The `org:` and `repo:` channels that the claims name, in order: what a stream carries whose
/// request names none. A repository whose owner is in `orgs` is left out, because `org:` carries
/// the same events and they would come twice. Personal channels are left out, because their
/// namespace may have no history; capabilities with `*` name nothing; an admin without claims
/// gets an empty list. May be longer than one request may ask for.
pub fn default_channels(principal: &Principal) -> Vec<ChannelName> {
    let orgs = principal.orgs.iter().filter_map(|owner| ChannelName::org(owner).ok());
    let repos = principal.repos.iter().filter_map(|repo| {
        let (owner, name) = repo.split_once('/')?;
        ChannelName::repo(owner, name).ok()
    });
    let by_caps =
        principal.caps.iter().filter(|cap| cap.allow.subscribe).flat_map(|cap| {
            cap.channels.iter().filter_map(|pattern| ChannelName::parse(pattern.exact()?).ok())
        });
    let named = principal.channels.iter().cloned().chain(by_caps);
    let all: BTreeSet<ChannelName> = orgs.chain(repos).chain(named).collect();
    let covered = |owner: &str| ChannelName::org(owner).is_ok_and(|org| all.contains(&org));
    let wanted = |channel: &&ChannelName| match channel.kind() {
        ChannelKind::Org { .. } => true,
        ChannelKind::Repo { owner, .. } => !covered(owner),
        _ => false,
    };
    all.iter().filter(wanted).cloned().collect()
}
