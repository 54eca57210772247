//! What a delivery is found to mean, and the parts that the interpretations of all types of events share.

use serde::Serialize;
use serde_json::value::RawValue;

use super::payload::{self, Installation, Payload, PayloadError, Repository};
use super::sanitize;
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::delivery::DeliveryStatus;
use crate::domain::workflow::{EventDraft, RepoUpdate, StateChange};

/// An action that GitHub may have added since: stored, and without consequence.
const UNKNOWN_ACTION: &str = "unknown action";

/// The interpretation of a delivery.
#[derive(Debug, Clone)]
pub struct Interpretation {
    /// The payload's `action`.
    pub action: Option<String>,
    /// The repository it is about, if it is about one that counts. What happens to its row is
    /// in `changes` alone.
    pub repo: Option<RepoUpdate>,
    /// Whether it is handled.
    pub outcome: Outcome,
    /// Changes of the stored state, to be applied in this order.
    pub changes: Vec<StateChange>,
    /// Events to be published, in this order.
    pub events: Vec<EventDraft>,
}

/// Whether a delivery is handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is, even if nothing changes.
    Handled,
    /// It is not, for this reason.
    Ignored(&'static str),
    /// It cannot be interpreted.
    Failed(PayloadError),
}

impl Interpretation {
    /// Nothing happens, for this reason.
    pub(super) fn ignored(action: Option<String>, reason: &'static str) -> Self {
        let outcome = Outcome::Ignored(reason);
        Self { action, repo: None, outcome, changes: Vec::new(), events: Vec::new() }
    }

    pub(super) fn failed(error: PayloadError) -> Self {
        Self { outcome: Outcome::Failed(error), ..Self::ignored(None, "") }
    }

    /// The status of its delivery, with the reason why it was ignored or failed.
    pub(super) fn status(&self) -> (DeliveryStatus, Option<String>) {
        match &self.outcome {
            Outcome::Handled => (DeliveryStatus::Processed, None),
            Outcome::Ignored(reason) => (DeliveryStatus::Ignored, Some((*reason).to_owned())),
            Outcome::Failed(error) => (DeliveryStatus::Failed, Some(error.to_string())),
        }
    }

    /// `owner/name` of the repository that it is about.
    pub(super) fn repo_name(&self) -> Option<String> {
        self.repo.as_ref().map(|repo| format!("{}/{}", repo.owner, repo.name))
    }

    /// An unknown action of a type that is handled.
    pub(super) fn unknown_action(action: Option<String>) -> Self {
        Self::ignored(action, UNKNOWN_ACTION)
    }
}

/// The payload's action, bounded.
pub(super) fn action(payload: &Payload) -> Option<String> {
    sanitize::optional(payload.action.as_deref(), sanitize::WORD)
}

/// The installation that a delivery came through, if it came through our App.
pub(super) fn installation_id(payload: &Payload) -> Result<Option<i64>, PayloadError> {
    let installation: Option<Installation> = payload::optional(payload.installation, "installation")?;
    Ok(installation.map(|installation| installation.id.0))
}

/// Checks a repository object; `field` is where it stands in the payload.
pub(super) fn repo_update(
    repository: Repository,
    installation_id: Option<i64>,
    field: &str,
) -> Result<RepoUpdate, PayloadError> {
    let login = repository.owner.and_then(|owner| owner.login.or(owner.name));
    let from_full_name =
        || repository.full_name.as_deref()?.split_once('/').map(|(owner, _)| owner.to_owned());
    let owner = login
        .or_else(from_full_name)
        .ok_or_else(|| PayloadError::missing(&format!("{field}.owner.login")))?;
    if !is_owner(&owner) {
        return Err(PayloadError::new(&format!("{field}.owner.login"), "is not a GitHub account name"));
    }
    if !is_repo_name(&repository.name) {
        return Err(PayloadError::new(&format!("{field}.name"), "is not a GitHub repository name"));
    }
    Ok(RepoUpdate {
        github_id: repository.id.0,
        owner,
        name: repository.name,
        default_branch: sanitize::optional(repository.default_branch.as_deref(), sanitize::NAME),
        private: repository.private,
        installation_id,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RepoData<'a> {
    pub(super) github_id: i64,
    pub(super) owner: &'a str,
    pub(super) name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) private: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_branch: Option<&'a str>,
    pub(super) action: &'a str,
    /// `owner/name` of before, and from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<String>,
}

impl<'a> RepoData<'a> {
    pub(super) fn of(repo: &'a RepoUpdate, action: &'a str) -> Self {
        Self {
            github_id: repo.github_id,
            owner: &repo.owner,
            name: &repo.name,
            private: repo.private,
            default_branch: repo.default_branch.as_deref(),
            action,
            from: None,
            to: None,
        }
    }
}

/// An event about a repository itself.
pub(super) fn repo_event(
    kind: &'static str,
    repo: &RepoUpdate,
    action: &str,
) -> Result<EventDraft, PayloadError> {
    Ok(event(kind, repo, to_json(&RepoData::of(repo, action))?))
}

/// An event on a repository's channels.
pub(super) fn event(kind: &'static str, repo: &RepoUpdate, data: Box<RawValue>) -> EventDraft {
    EventDraft { kind, owner: repo.owner.clone(), repo: Some(repo.name.clone()), former: None, data }
}

/// Texts and numbers always become JSON; the error is for the signature's sake.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Box<RawValue>, PayloadError> {
    serde_json::value::to_raw_value(value)
        .map_err(|_| PayloadError::new("payload", "cannot be written as JSON"))
}
