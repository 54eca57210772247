//! Interprets a delivery: which rows change, and which events are published. A function of its input, so
//! processing a delivery again gives the same result. Types of events that are not handled are accepted
//! and ignored; a type that is handled must have the fields that it needs.

use super::interpretation::{Interpretation, Outcome, action, installation_id, repo_event, repo_update};
use super::payload::{self, Hook, Payload, PayloadError, Repository};
use super::repo_map::RepoMap;
use super::{half_characters, installations, moves, runs};
use crate::domain::workflow::{EventDraft, RepoUpdate, StateChange};

/// A type of event that nothing here depends on.
const UNHANDLED_EVENT: &str = "events of this type are not handled";

/// Which repositories a delivery is about that it does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// All of this account.
    Owner(String),
    /// All of this installation.
    Installation(i64),
    /// This one, whose name is another now.
    Repository(i64),
}

/// What has to be looked up before a delivery can be interpreted: for the few that need it.
pub fn about(event: &str, body: &str) -> Option<About> {
    if !matches!(event, "organization" | "installation_target" | "installation" | "repository") {
        return None;
    }
    let body = &half_characters::replaced(body);
    match event {
        "repository" => {
            let payload = payload::parse(body).ok().filter(|payload| is_move(payload.action.as_deref()))?;
            payload::required::<Repository>(payload.repository, "repository")
                .ok()
                .map(|it| About::Repository(it.id.0))
        }
        "organization" | "installation_target" => {
            let (old, _) = moves::account_names(&payload::parse(body).ok()?).ok()??;
            Some(About::Owner(old))
        }
        "installation" => {
            let payload = payload::parse(body).ok().filter(|payload| payload.repositories.is_none())?;
            installation_id(&payload).ok()?.map(About::Installation)
        }
        _ => None,
    }
}

/// [`interpret_with`], where no repositories are known.
pub fn interpret(event: &str, body: &[u8], map: &RepoMap) -> Result<Interpretation, PayloadError> {
    interpret_with(event, body, map, &[])
}

/// Interprets the payload `body` of a delivery of `event` (`X-GitHub-Event`). `known` are the repositories
/// that it is [`about`] without naming them, or the one that it names, as it was called so far.
pub fn interpret_with(
    event: &str,
    body: &[u8],
    map: &RepoMap,
    known: &[RepoUpdate],
) -> Result<Interpretation, PayloadError> {
    let body = std::str::from_utf8(body).map_err(|_| PayloadError::new("payload", "is not UTF-8"))?;
    let body = &*half_characters::replaced(body);
    let interpretation = interpret_known(event, body, map, known)?;
    let is_told = event == "repository" && is_move(interpretation.action.as_deref());
    if is_told || is_about_an_account(event) {
        return Ok(interpretation);
    }
    moves::unannounced(interpretation, known)
}

/// Whether the repositories that are known are not one that the delivery names.
pub fn is_about_an_account(event: &str) -> bool {
    matches!(event, "organization" | "installation_target" | "installation" | "installation_repositories")
}

fn interpret_known(
    event: &str,
    body: &str,
    map: &RepoMap,
    known: &[RepoUpdate],
) -> Result<Interpretation, PayloadError> {
    match event {
        "installation" | "installation_repositories" => {
            installations::interpret(event, &payload::parse(body)?, known, map)
        }
        "organization" | "installation_target" => {
            let payload = payload::parse(body)?;
            match moves::account_names(&payload)? {
                Some((old, new)) => moves::account(&payload, (&old, &new), known, map),
                None => Ok(unhandled(body, map)),
            }
        }
        "ping" => ping(&payload::parse(body)?, map),
        "repository" | "workflow_run" | "workflow_job" | "push" | "pull_request" | "check_run" => {
            let payload = payload::parse(body)?;
            if event == "repository" && is_move(payload.action.as_deref()) {
                return moves::repository(&payload, known, map);
            }
            let repository = payload::required(payload.repository, "repository")?;
            match map.apply(repo_update(repository, installation_id(&payload)?, "repository")?) {
                Ok(repo) => repository_event(event, repo, &payload),
                Err(reason) => Ok(Interpretation::ignored(action(&payload), reason)),
            }
        }
        _ => Ok(unhandled(body, map)),
    }
}

fn is_move(action: Option<&str>) -> bool {
    matches!(action, Some("renamed" | "transferred"))
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
            ..Interpretation::unknown_action(action)
        },
    })
}

/// The events of the kind `repository`, but for those of `moves`.
fn repository(
    action: &str,
    repo: &RepoUpdate,
) -> Result<Option<(StateChange, Option<EventDraft>)>, PayloadError> {
    let (kind, change) = match action {
        "created" => ("repo:added", StateChange::RepoUpdated(repo.clone())),
        "deleted" => ("repo:removed", StateChange::RepoRemoved { github_id: repo.github_id }),
        "edited" | "privatized" | "publicized" | "archived" | "unarchived" => {
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
