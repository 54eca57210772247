//! What a delivery means: the rows that change and the events it stands for. A function of its
//! input, so processing a delivery again gives the same. Kinds of events without meaning for us
//! are welcome and ignored; a kind with meaning must say what its meaning needs.

use serde::Serialize;
use serde_json::value::RawValue;

use super::payload::{self, Hook, Installation, Payload, Repository, Uninterpretable};
use super::repo_map::RepoMap;
use super::{clean, installations, runs};
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::facts::{Change, EventFact, RepoFacts};

/// An action that GitHub may have added since: stored, and without consequence.
const UNKNOWN_ACTION: &str = "unknown action";
/// A kind of event that nothing here depends on.
const NO_MEANING: &str = "no meaning for this kind of event";

/// What a delivery means.
#[derive(Debug, Clone)]
pub struct Interpretation {
    /// The payload's `action`.
    pub action: Option<String>,
    /// The repository it is about, if it is about one that counts. What happens to its row is
    /// in `changes` alone.
    pub repo: Option<RepoFacts>,
    /// Whether it means anything.
    pub outcome: Outcome,
    /// What the store has to know, to be applied in this order.
    pub changes: Vec<Change>,
    /// What subscribers have to know, in this order.
    pub events: Vec<EventFact>,
}

/// Whether a delivery means anything to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It does, even if nothing changes.
    Meaningful,
    /// It does not, for this reason.
    Ignored(&'static str),
}

/// Interprets the payload `body` of a delivery of `event` (`X-GitHub-Event`).
pub fn interpret(event: &str, body: &[u8], map: &RepoMap) -> Result<Interpretation, Uninterpretable> {
    let body = std::str::from_utf8(body).map_err(|_| Uninterpretable::new("payload", "is not UTF-8"))?;
    match event {
        "installation" | "installation_repositories" => {
            installations::interpret(event, &payload::whole(body)?, map)
        }
        "ping" => ping(&payload::whole(body)?, map),
        "repository" | "workflow_run" | "workflow_job" | "push" | "pull_request" | "check_run" => {
            let payload = payload::whole(body)?;
            let repository = payload::required(payload.repository, "repository")?;
            match map.apply(repo_facts(repository, installation_id(&payload)?, "repository")?) {
                Ok(repo) => about(event, repo, &payload),
                Err(reason) => Ok(Interpretation::ignored(action(&payload), reason)),
            }
        }
        _ => Ok(without_meaning(body, map)),
    }
}

/// A kind that is about one repository.
fn about(event: &str, repo: RepoFacts, payload: &Payload) -> Result<Interpretation, Uninterpretable> {
    let action = action(payload);
    let word = match (event, action.as_deref()) {
        // The only kind here that has no actions.
        ("push", _) => "",
        (_, Some(word)) => word,
        (_, None) => return Err(Uninterpretable::missing("action")),
    };
    let seen = Change::RepoSeen(repo.clone());
    let known = match event {
        "repository" => repository(word, &repo)?,
        "workflow_run" => runs::run(word, &repo, payload)?,
        "workflow_job" => Some(runs::job(&repo, payload)?),
        // Scans will start from these; so far they only tell that the repository exists.
        _ => Some((seen.clone(), None)),
    };
    Ok(match known {
        Some((change, event)) => Interpretation {
            action,
            repo: Some(repo),
            outcome: Outcome::Meaningful,
            changes: vec![change],
            events: event.into_iter().collect(),
        },
        None => Interpretation {
            repo: Some(repo),
            changes: vec![seen],
            ..Interpretation::ignored(action, UNKNOWN_ACTION)
        },
    })
}

/// The events of the kind `repository`. A rename or transfer keeps the id and shows the new name.
fn repository(
    action: &str,
    repo: &RepoFacts,
) -> Result<Option<(Change, Option<EventFact>)>, Uninterpretable> {
    let (kind, change) = match action {
        "created" => ("repo:added", Change::RepoSeen(repo.clone())),
        "deleted" => ("repo:removed", Change::RepoRemoved { github_id: repo.github_id }),
        "renamed" | "transferred" | "edited" | "privatized" | "publicized" | "archived" | "unarchived" => {
            ("repo:updated", Change::RepoSeen(repo.clone()))
        }
        _ => return Ok(None),
    };
    Ok(Some((change, Some(repo_event(kind, repo, action)?))))
}

/// GitHub says hello when a webhook is made; one of an organization names no repository.
fn ping(payload: &Payload, map: &RepoMap) -> Result<Interpretation, Uninterpretable> {
    let mut meaning =
        Interpretation { outcome: Outcome::Meaningful, ..Interpretation::ignored(action(payload), "") };
    let Some(repository) = payload::optional::<Repository>(payload.repository, "repository")? else {
        return Ok(meaning);
    };
    let repo = match map.apply(repo_facts(repository, installation_id(payload)?, "repository")?) {
        Ok(repo) => repo,
        Err(reason) => return Ok(Interpretation::ignored(meaning.action, reason)),
    };
    let hook: Option<Hook> = payload::optional(payload.hook, "hook")?;
    meaning.changes.push(Change::RepoSeen(repo.clone()));
    if let Some(enabled) = hook.and_then(|hook| hook.active) {
        meaning.changes.push(Change::WebhookEnabled { github_id: repo.github_id, enabled });
    }
    meaning.repo = Some(repo);
    Ok(meaning)
}

/// Any other kind: nothing in it can be wrong for us, so what does not fit is passed over.
fn without_meaning(body: &str, map: &RepoMap) -> Interpretation {
    let Ok(payload) = payload::whole(body) else {
        return Interpretation::ignored(None, NO_MEANING);
    };
    let ignored = Interpretation::ignored(action(&payload), NO_MEANING);
    let installation = installation_id(&payload).ok().flatten();
    let facts = payload::optional::<Repository>(payload.repository, "repository")
        .ok()
        .flatten()
        .filter(|repository| repository.owner.is_some())
        .and_then(|repository| repo_facts(repository, installation, "repository").ok());
    match facts.map(|facts| map.apply(facts)) {
        None => ignored,
        Some(Err(reason)) => Interpretation { outcome: Outcome::Ignored(reason), ..ignored },
        Some(Ok(repo)) => {
            Interpretation { changes: vec![Change::RepoSeen(repo.clone())], repo: Some(repo), ..ignored }
        }
    }
}

impl Interpretation {
    /// Nothing happens, for this reason.
    pub(super) fn ignored(action: Option<String>, reason: &'static str) -> Self {
        let outcome = Outcome::Ignored(reason);
        Self { action, repo: None, outcome, changes: Vec::new(), events: Vec::new() }
    }

    /// An action that a kind with meaning does not know.
    pub(super) fn unknown_action(action: Option<String>) -> Self {
        Self::ignored(action, UNKNOWN_ACTION)
    }
}

/// The payload's action, bounded.
pub(super) fn action(payload: &Payload) -> Option<String> {
    clean::optional(payload.action.as_deref(), clean::WORD)
}

/// The installation that a delivery came through, if it came through our App.
pub(super) fn installation_id(payload: &Payload) -> Result<Option<i64>, Uninterpretable> {
    let installation: Option<Installation> = payload::optional(payload.installation, "installation")?;
    Ok(installation.map(|installation| installation.id.0))
}

/// Checks a repository object; `field` is where it stands in the payload.
pub(super) fn repo_facts(
    repository: Repository,
    installation_id: Option<i64>,
    field: &str,
) -> Result<RepoFacts, Uninterpretable> {
    let login = repository.owner.and_then(|owner| owner.login.or(owner.name));
    let from_full_name =
        || repository.full_name.as_deref()?.split_once('/').map(|(owner, _)| owner.to_owned());
    let owner = login
        .or_else(from_full_name)
        .ok_or_else(|| Uninterpretable::missing(&format!("{field}.owner.login")))?;
    if !is_owner(&owner) {
        return Err(Uninterpretable::new(&format!("{field}.owner.login"), "is not a GitHub account name"));
    }
    if !is_repo_name(&repository.name) {
        return Err(Uninterpretable::new(&format!("{field}.name"), "is not a GitHub repository name"));
    }
    Ok(RepoFacts {
        github_id: repository.id.0,
        owner,
        name: repository.name,
        default_branch: clean::optional(repository.default_branch.as_deref(), clean::NAME),
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
    repo: &RepoFacts,
    action: &str,
) -> Result<EventFact, Uninterpretable> {
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
pub(super) fn event(kind: &'static str, repo: &RepoFacts, data: Box<RawValue>) -> EventFact {
    EventFact { kind, owner: repo.owner.clone(), repo: Some(repo.name.clone()), data }
}

/// Texts and numbers always become JSON; the error is for the signature's sake.
pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Box<RawValue>, Uninterpretable> {
    serde_json::value::to_raw_value(value)
        .map_err(|_| Uninterpretable::new("payload", "cannot be written as JSON"))
}
