//! Interprets a delivery: which rows change, and which events are published. A function of its input, so
//! processing a delivery again gives the same result. Types of events that are not handled are accepted
//! and ignored; a type that is handled must have the fields that it needs.

use serde::Serialize;
use serde_json::value::RawValue;

use super::payload::{self, Hook, Installation, Payload, PayloadError, Repository};
use super::repo_map::RepoMap;
use super::{installations, runs, sanitize};
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::delivery::DeliveryStatus;
use crate::domain::workflow::{EventDraft, RepoUpdate, StateChange};

/// An action that GitHub may have added since: stored, and without consequence.
const UNKNOWN_ACTION: &str = "unknown action";
/// A type of event that nothing here depends on.
const UNHANDLED_EVENT: &str = "events of this type are not handled";

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

/// Interprets the payload `body` of a delivery of `event` (`X-GitHub-Event`).
pub fn interpret(event: &str, body: &[u8], map: &RepoMap) -> Result<Interpretation, PayloadError> {
    let body = std::str::from_utf8(body).map_err(|_| PayloadError::new("payload", "is not UTF-8"))?;
    match event {
        "installation" | "installation_repositories" => {
            installations::interpret(event, &payload::parse(body)?, map)
        }
        "ping" => ping(&payload::parse(body)?, map),
        "repository" | "workflow_run" | "workflow_job" | "push" | "pull_request" | "check_run" => {
            let payload = payload::parse(body)?;
            let repository = payload::required(payload.repository, "repository")?;
            match map.apply(repo_update(repository, installation_id(&payload)?, "repository")?) {
                Ok(repo) => repository_event(event, repo, &payload),
                Err(reason) => Ok(Interpretation::ignored(action(&payload), reason)),
            }
        }
        _ => Ok(unhandled(body, map)),
    }
}

/// An event of a type that is about one repository.
fn repository_event(
    event: &str,
    repo: RepoUpdate,
    payload: &Payload,
) -> Result<Interpretation, PayloadError> {
    let action = action(payload);
    let word = match (event, action.as_deref()) {
        // The only kind here that has no actions.
        ("push", _) => "",
        (_, Some(word)) => word,
        (_, None) => return Err(PayloadError::missing("action")),
    };
    let updated = StateChange::RepoUpdated(repo.clone());
    let known = match event {
        "repository" => repository(word, &repo)?,
        "workflow_run" => runs::run(word, &repo, payload)?,
        "workflow_job" => Some(runs::job(&repo, payload)?),
        // Scans will start from these; so far they only show that the repository exists.
        _ => Some((updated.clone(), None)),
    };
    Ok(match known {
        Some((change, event)) => Interpretation {
            action,
            repo: Some(repo),
            outcome: Outcome::Handled,
            changes: vec![change],
            events: event.into_iter().collect(),
        },
        None => Interpretation {
            repo: Some(repo),
            changes: vec![updated],
            ..Interpretation::ignored(action, UNKNOWN_ACTION)
        },
    })
}

/// The events of the kind `repository`. A rename or transfer keeps the id and shows the new name.
fn repository(
    action: &str,
    repo: &RepoUpdate,
) -> Result<Option<(StateChange, Option<EventDraft>)>, PayloadError> {
    let (kind, change) = match action {
        "created" => ("repo:added", StateChange::RepoUpdated(repo.clone())),
        "deleted" => ("repo:removed", StateChange::RepoRemoved { github_id: repo.github_id }),
        "renamed" | "transferred" | "edited" | "privatized" | "publicized" | "archived" | "unarchived" => {
            ("repo:updated", StateChange::RepoUpdated(repo.clone()))
        }
        _ => return Ok(None),
    };
    Ok(Some((change, Some(repo_event(kind, repo, action)?))))
}

/// GitHub sends a ping when a webhook is created; that of an organization names no repository.
fn ping(payload: &Payload, map: &RepoMap) -> Result<Interpretation, PayloadError> {
    let mut interpretation =
        Interpretation { outcome: Outcome::Handled, ..Interpretation::ignored(action(payload), "") };
    let Some(repository) = payload::optional::<Repository>(payload.repository, "repository")? else {
        return Ok(interpretation);
    };
    let repo = match map.apply(repo_update(repository, installation_id(payload)?, "repository")?) {
        Ok(repo) => repo,
        Err(reason) => return Ok(Interpretation::ignored(interpretation.action, reason)),
    };
    let hook: Option<Hook> = payload::optional(payload.hook, "hook")?;
    interpretation.changes.push(StateChange::RepoUpdated(repo.clone()));
    if let Some(enabled) = hook.and_then(|hook| hook.active) {
        interpretation.changes.push(StateChange::WebhookEnabled { github_id: repo.github_id, enabled });
    }
    interpretation.repo = Some(repo);
    Ok(interpretation)
}

/// Any other type: nothing in it is required, so fields that do not fit are ignored.
fn unhandled(body: &str, map: &RepoMap) -> Interpretation {
    let Ok(payload) = payload::parse(body) else {
        return Interpretation::ignored(None, UNHANDLED_EVENT);
    };
    let ignored = Interpretation::ignored(action(&payload), UNHANDLED_EVENT);
    let installation = installation_id(&payload).ok().flatten();
    let update = payload::optional::<Repository>(payload.repository, "repository")
        .ok()
        .flatten()
        .filter(|repository| repository.owner.is_some())
        .and_then(|repository| repo_update(repository, installation, "repository").ok());
    match update.map(|update| map.apply(update)) {
        None => ignored,
        Some(Err(reason)) => Interpretation { outcome: Outcome::Ignored(reason), ..ignored },
        Some(Ok(repo)) => Interpretation {
            changes: vec![StateChange::RepoUpdated(repo.clone())],
            repo: Some(repo),
            ..ignored
        },
    }
}

impl Interpretation {
    /// Nothing happens, for this reason.
    pub(super) fn ignored(action: Option<String>, reason: &'static str) -> Self {
        let outcome = Outcome::Ignored(reason);
        Self { action, repo: None, outcome, changes: Vec::new(), events: Vec::new() }
    }

    /// It cannot be interpreted.
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
struct RepoData<'a> {
    github_id: i64,
    owner: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_branch: Option<&'a str>,
    action: &'a str,
}

/// An event about a repository itself.
pub(super) fn repo_event(
    kind: &'static str,
    repo: &RepoUpdate,
    action: &str,
) -> Result<EventDraft, PayloadError> {
    let data = RepoData {
        github_id: repo.github_id,
        owner: &repo.owner,
        name: &repo.name,
        private: repo.private,
        default_branch: repo.default_branch.as_deref(),
        action,
    };
    Ok(event(kind, repo, to_json(&data)?))
}

/// An event on a repository's channels.
pub(super) fn event(kind: &'static str, repo: &RepoUpdate, data: Box<RawValue>) -> EventDraft {
    EventDraft { kind, owner: repo.owner.clone(), repo: Some(repo.name.clone()), data }
}

/// Texts and numbers always become JSON; the error is for the signature's sake.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Box<RawValue>, PayloadError> {
    serde_json::value::to_raw_value(value)
        .map_err(|_| PayloadError::new("payload", "cannot be written as JSON"))
}
