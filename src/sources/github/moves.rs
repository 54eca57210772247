//! Repositories and accounts under another name, and repositories with another owner. Nothing comes under
//! the old name any more, so whoever follows it hears where the repository went. An account's payload names
//! no repositories: those of the store are given.

use super::interpretation::{Interpretation, Outcome, RepoData, action, event, installation_id, repo_update};
use super::interpretation::{repo_event, to_json};
use super::payload::{self, Account, Changes, Payload, PayloadError};
use super::repo_map::RepoMap;
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::workflow::{EventDraft, Former, RepoUpdate, StateChange};

/// What has changed its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Repository,
    Account,
}

/// The actions `renamed` and `transferred` of `repository`. The name under which it is `known` counts for more
/// than what the payload says of the one before: a transfer may change the name as well and not say so.
pub fn repository(
    payload: &Payload,
    known: &[RepoUpdate],
    map: &RepoMap,
) -> Result<Interpretation, PayloadError> {
    let action = action(payload);
    let repository = payload::required(payload.repository, "repository")?;
    let new = repo_update(repository, installation_id(payload)?, "repository")?;
    let former = former(payload::optional(payload.changes, "changes")?.unwrap_or_default(), &new)?;
    let known = known.iter().find(|known| known.github_id == new.github_id);
    let old = known.map_or_else(|| map.apply(former), |known| Ok(known.clone()));
    let word = action.as_deref().unwrap_or_default();
    let mut interpretation =
        Interpretation { outcome: Outcome::Handled, ..Interpretation::ignored(action.clone(), "") };
    match interpretation.move_repo(old, map.apply(new), Moved::Repository, word)? {
        Ok(()) => Ok(interpretation),
        Err(reason) => Ok(Interpretation::ignored(action, reason)),
    }
}

/// The old and the new name of an account, by `organization` or `installation_target`.
pub fn account_names(payload: &Payload) -> Result<Option<(String, String)>, PayloadError> {
    if payload.action.as_deref() != Some("renamed") {
        return Ok(None);
    }
    let changes: Changes = payload::required(payload.changes, "changes")?;
    let old = changes.login.ok_or_else(|| PayloadError::missing("changes.login"))?.from;
    let field = if payload.organization.is_some() { "organization" } else { "account" };
    let account: Account = payload::required(payload.organization.or(payload.account), field)?;
    for (login, field) in [(&old, "changes.login.from"), (&account.login, field)] {
        if !is_owner(login) {
            return Err(PayloadError::new(field, "is not a GitHub account name"));
        }
    }
    Ok(Some((old, account.login)))
}

/// An account that was renamed from `old` to `new`, and those of its repositories that are `known`.
pub fn account(
    payload: &Payload,
    (old, new): (&str, &str),
    known: &[RepoUpdate],
    map: &RepoMap,
) -> Result<Interpretation, PayloadError> {
    let action = action(payload);
    let word = action.clone().unwrap_or_default();
    let mut interpretation =
        Interpretation { outcome: Outcome::Handled, ..Interpretation::ignored(action, "") };
    let (owner, former) = (new.to_owned(), Some(Former { owner: old.to_owned(), repo: None }));
    let data = to_json(&serde_json::json!({ "action": word, "from": old, "to": new }))?;
    interpretation.events.push(EventDraft { kind: "org:renamed", owner, repo: None, former, data });
    for repo in known {
        let moved = RepoUpdate { owner: new.to_owned(), ..repo.clone() };
        // One that the map does not have is not published.
        let _ = interpretation.move_repo(map.apply(repo.clone()), map.apply(moved), Moved::Account, &word)?;
    }
    interpretation.repo = None;
    Ok(interpretation)
}

/// Whatever else `interpretation` is, its repository is `known` under another name: the delivery that said so was
/// lost, or is still to come. Both names hear of it before all the rest.
pub fn unannounced(
    interpretation: Interpretation,
    known: &[RepoUpdate],
) -> Result<Interpretation, PayloadError> {
    let moved = interpretation.repo.as_ref().and_then(|new| {
        let is_it = |old: &&RepoUpdate| old.github_id == new.github_id;
        let old =
            known.iter().find(is_it).filter(|old| (&old.owner, &old.name) != (&new.owner, &new.name))?;
        Some((old.clone(), new.clone()))
    });
    let Some((old, new)) = moved else { return Ok(interpretation) };
    let Interpretation { action, repo, .. } = interpretation;
    let mut told =
        Interpretation { action, repo, outcome: Outcome::Handled, changes: Vec::new(), events: Vec::new() };
    let word = if old.owner == new.owner { "renamed" } else { "transferred" };
    let _ = told.move_repo(Ok(old), Ok(new), Moved::Repository, word)?;
    told.events.extend(interpretation.events);
    told.changes.extend(interpretation.changes);
    Ok(told)
}

impl Interpretation {
    /// `old` is `new` now, as they are published. Fails with the reason why neither counts.
    fn move_repo(
        &mut self,
        old: Result<RepoUpdate, &'static str>,
        new: Result<RepoUpdate, &'static str>,
        moved: Moved,
        action: &str,
    ) -> Result<Result<(), &'static str>, PayloadError> {
        let name = |repo: &RepoUpdate| format!("{}/{}", repo.owner, repo.name);
        match (old, new) {
            (Err(_), Err(reason)) => return Ok(Err(reason)),
            // Under its new name the map does not publish it.
            (Ok(old), Err(_)) => {
                self.changes.push(StateChange::RepoRemoved { github_id: old.github_id });
                self.events.push(repo_event("repo:removed", &old, action)?);
                self.repo = Some(old);
            }
            (Err(_), Ok(new)) => {
                self.events.push(repo_event("repo:added", &new, action)?);
                self.update(new);
            }
            (Ok(old), Ok(new)) if name(&old) == name(&new) => {
                self.events.push(repo_event("repo:updated", &new, action)?);
                self.update(new);
            }
            (Ok(old), Ok(new)) if old.owner == new.owner || moved == Moved::Account => {
                let (from, to) = (Some(name(&old)), Some(name(&new)));
                let data = to_json(&RepoData { from, to, ..RepoData::of(&new, action) })?;
                let former = Some(Former { owner: old.owner, repo: Some(old.name) });
                self.events.push(EventDraft { former, ..event("repo:renamed", &new, data) });
                self.update(new);
            }
            (Ok(old), Ok(new)) => {
                let to = RepoData { to: Some(name(&new)), ..RepoData::of(&old, action) };
                self.events.push(event("repo:removed", &old, to_json(&to)?));
                let from = RepoData { from: Some(name(&old)), ..RepoData::of(&new, action) };
                self.events.push(event("repo:added", &new, to_json(&from)?));
                self.update(new);
            }
        }
        Ok(Ok(()))
    }

    fn update(&mut self, repo: RepoUpdate) {
        self.changes.push(StateChange::RepoUpdated(repo.clone()));
        self.repo = Some(repo);
    }
}

/// What `new` was called before; what did not change is as in `new`.
fn former(changes: Changes, new: &RepoUpdate) -> Result<RepoUpdate, PayloadError> {
    let owner = changes.owner.and_then(|owner| owner.from.organization.or(owner.from.user));
    let name = changes.repository.and_then(|repository| repository.name);
    let owner = owner.map_or_else(|| new.owner.clone(), |owner| owner.login);
    let name = name.map_or_else(|| new.name.clone(), |name| name.from);
    if !is_owner(&owner) {
        return Err(PayloadError::new("changes.owner.from", "is not a GitHub account name"));
    }
    if !is_repo_name(&name) {
        return Err(PayloadError::new("changes.repository.name.from", "is not a GitHub repository name"));
    }
    Ok(RepoUpdate { owner, name, ..new.clone() })
}
