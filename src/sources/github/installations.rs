//! `installation` and `installation_repositories`: which repositories our App may see. Their
//! lists name repositories briefly (no owner object, no branch), and may be absent when an
//! installation is about all repositories of an account.

use serde_json::value::RawValue;

use super::interpretation::{Interpretation, Outcome, action, installation_id, repo_event, repo_update};
use super::payload::{self, Payload, PayloadError, Repository};
use super::repo_map::RepoMap;
use crate::domain::workflow::{RepoUpdate, StateChange};

/// What an action does to the repositories of a list.
#[derive(Clone, Copy)]
enum Effect {
    Add,
    Remove,
    Enable(bool),
    Nothing,
}

/// Interprets either kind.
pub fn interpret(
    event: &str,
    payload: &Payload,
    known: &[RepoUpdate],
    map: &RepoMap,
) -> Result<Interpretation, PayloadError> {
    let action = action(payload);
    let word = action.as_deref().ok_or_else(|| PayloadError::missing("action"))?;
    let id = installation_id(payload)?.ok_or_else(|| PayloadError::missing("installation"))?;
    let all = (payload.repositories, "repositories");
    let added = (payload.repositories_added, "repositories_added");
    let removed = (payload.repositories_removed, "repositories_removed");
    let lists = match (event, word) {
        ("installation", "created") => vec![(all, Effect::Add)],
        ("installation", "deleted") => vec![(all, Effect::Remove)],
        ("installation", "suspend") => vec![(all, Effect::Enable(false))],
        ("installation", "unsuspend") => vec![(all, Effect::Enable(true))],
        ("installation", "new_permissions_accepted") => vec![(all, Effect::Nothing)],
        // Either action has both lists, one of them usually empty.
        ("installation_repositories", "added" | "removed") => {
            vec![(removed, Effect::Remove), (added, Effect::Add)]
        }
        _ => return Ok(Interpretation::unknown_action(action)),
    };
    let mut interpretation =
        Interpretation { outcome: Outcome::Handled, ..Interpretation::ignored(None, "") };
    let (mut counting, mut passed_over) = (0, None);
    for ((raw, field), effect) in lists {
        // Without its list it is about all that came through it, which have their published names.
        let is_absent = field == "repositories" && raw.is_none();
        let repos: Vec<_> = if is_absent {
            known.iter().cloned().map(Ok).collect()
        } else {
            listed(raw, field, id)?.into_iter().map(|repo| map.apply(repo)).collect()
        };
        for repo in repos {
            match repo {
                Ok(repo) => {
                    interpretation.take(repo, effect, word)?;
                    counting += 1;
                }
                Err(reason) => passed_over = Some(reason),
            }
        }
    }
    match passed_over {
        Some(reason) if counting == 0 => Ok(Interpretation::ignored(action, reason)),
        _ => Ok(Interpretation { action, ..interpretation }),
    }
}

impl Interpretation {
    fn take(&mut self, repo: RepoUpdate, effect: Effect, action: &str) -> Result<(), PayloadError> {
        let github_id = repo.github_id;
        match effect {
            Effect::Add => {
                self.events.push(repo_event("repo:added", &repo, action)?);
                self.changes.push(StateChange::RepoUpdated(repo));
            }
            Effect::Remove => {
                self.events.push(repo_event("repo:removed", &repo, action)?);
                self.changes.push(StateChange::RepoRemoved { github_id });
            }
            // While it is suspended nothing comes, and who follows the repository should know why.
            Effect::Enable(enabled) => {
                self.events.push(repo_event("repo:updated", &repo, action)?);
                self.changes.push(StateChange::WebhookEnabled { github_id, enabled });
            }
            Effect::Nothing => {}
        }
        Ok(())
    }
}

fn listed(raw: Option<&RawValue>, field: &str, id: i64) -> Result<Vec<RepoUpdate>, PayloadError> {
    let list: Vec<Repository> = payload::list(raw, field)?;
    let update = |(at, repository)| repo_update(repository, Some(id), &format!("{field}[{at}]"));
    list.into_iter().enumerate().map(update).collect()
}
