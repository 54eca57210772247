//! The operator's choice of repositories, and of the names they are published under. An empty map admits
//! all; otherwise a repository that is not in it is ignored. Names are looked up
//! without regard to case, as GitHub does; a repository that is kept keeps GitHub's spelling.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{GithubConfig, RepoConfig};
use crate::domain::channel::{is_owner, is_repo_name};
use crate::domain::workflow::RepoUpdate;

/// The reason for ignoring a repository that is not in the map.
pub const NOT_MAPPED: &str = "not in the repository map";
/// The reason for ignoring a repository that the map excludes.
pub const EXCLUDED: &str = "ignored by the repository map";

/// What the map says about one repository. In a config: `true` or null keeps it, `false`
/// ignores it, a text `"owner/name"` renames it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RepoMapEntry {
    /// Keep it (`true`) or ignore it (`false`).
    Keep(bool),
    /// Treat it as this one, `owner/name`.
    Rename(String),
    /// Keep it; JSON's null.
    Same,
}

/// Which repositories are accepted, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "BTreeMap<String, RepoMapEntry>")]
pub struct RepoMap(BTreeMap<String, Mapping>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mapping {
    Keep,
    Ignore,
    Rename { owner: String, name: String },
}

/// The map contradicts itself or names what cannot be a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRepoMap {
    /// Not `owner/name`.
    #[error("`{0}` in the repository map is not a repository: write `owner/name`")]
    NoRepository(String),
    /// Two entries for one repository, or two repositories under one name.
    #[error("`{0}` is in the repository map twice")]
    Twice(String),
}

impl TryFrom<&GithubConfig> for RepoMap {
    type Error = BadRepoMap;

    fn try_from(config: &GithubConfig) -> Result<Self, BadRepoMap> {
        Self::new(config.repos.iter().map(|(from, repo)| (from.as_str().to_owned(), repo.into())))
    }
}

impl From<&RepoConfig> for RepoMapEntry {
    fn from(config: &RepoConfig) -> Self {
        match &config.name {
            _ if config.ignore => Self::Keep(false),
            Some(name) => Self::Rename(name.as_str().to_owned()),
            None => Self::Keep(true),
        }
    }
}

impl RepoMap {
    /// Builds the map from the config's entries.
    pub fn new(entries: impl IntoIterator<Item = (String, RepoMapEntry)>) -> Result<Self, BadRepoMap> {
        let (mut map, mut names) = (BTreeMap::new(), BTreeSet::new());
        for (from, entry) in entries {
            split(&from)?;
            let (mapping, name) = match entry {
                RepoMapEntry::Keep(false) => (Mapping::Ignore, None),
                RepoMapEntry::Keep(true) | RepoMapEntry::Same => (Mapping::Keep, Some(from.to_lowercase())),
                RepoMapEntry::Rename(to) => {
                    let (owner, name) = split(&to)?;
                    let renamed = Mapping::Rename { owner: owner.to_owned(), name: name.to_owned() };
                    (renamed, Some(to.to_lowercase()))
                }
            };
            if let Some(name) = name.filter(|name| !names.insert(name.clone())) {
                return Err(BadRepoMap::Twice(name));
            }
            if map.insert(from.to_lowercase(), mapping).is_some() {
                return Err(BadRepoMap::Twice(from));
            }
        }
        Ok(Self(map))
    }

    /// Whether every repository is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The repository under its published name, or why it is ignored.
    pub fn apply(&self, repo: RepoUpdate) -> Result<RepoUpdate, &'static str> {
        if self.0.is_empty() {
            return Ok(repo);
        }
        match self.0.get(&format!("{}/{}", repo.owner, repo.name).to_lowercase()) {
            None => Err(NOT_MAPPED),
            Some(Mapping::Ignore) => Err(EXCLUDED),
            Some(Mapping::Keep) => Ok(repo),
            Some(Mapping::Rename { owner, name }) => {
                Ok(RepoUpdate { owner: owner.clone(), name: name.clone(), ..repo })
            }
        }
    }
}

impl TryFrom<BTreeMap<String, RepoMapEntry>> for RepoMap {
    type Error = BadRepoMap;
    fn try_from(entries: BTreeMap<String, RepoMapEntry>) -> Result<Self, BadRepoMap> {
        Self::new(entries)
    }
}

/// `owner/name` in its halves.
fn split(text: &str) -> Result<(&str, &str), BadRepoMap> {
    text.split_once('/')
        .filter(|(owner, name)| is_owner(owner) && is_repo_name(name))
        .ok_or_else(|| BadRepoMap::NoRepository(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(owner: &str, name: &str) -> RepoUpdate {
        let (owner, name) = (owner.to_owned(), name.to_owned());
        RepoUpdate { github_id: 1, owner, name, default_branch: None, private: None, installation_id: None }
    }

    fn map(json: &str) -> RepoMap {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_empty_map_admits_all() {
        assert_eq!(RepoMap::default().apply(repo("acme", "api")), Ok(repo("acme", "api")));
        assert!(map("{}").is_empty());
    }

    #[test]
    fn a_map_renames_keeps_ignores_and_restricts() {
        let map = map(r#"{"acme/api":"octo-demo/core","acme/web":true,"acme/docs":null,"acme/old":false}"#);
        assert_eq!(map.apply(repo("acme", "api")), Ok(repo("octo-demo", "core")));
        assert_eq!(map.apply(repo("Acme", "Web")), Ok(repo("Acme", "Web")));
        assert_eq!(map.apply(repo("acme", "docs")), Ok(repo("acme", "docs")));
        assert_eq!(map.apply(repo("acme", "old")), Err(EXCLUDED));
        assert_eq!(map.apply(repo("acme", "new")), Err(NOT_MAPPED));
    }

    #[test]
    fn a_map_that_cannot_be_meant_is_refused() {
        let keep = |name: &str| (name.to_owned(), RepoMapEntry::Keep(true));
        let rename = |from: &str, to: &str| (from.to_owned(), RepoMapEntry::Rename(to.to_owned()));
        for bad in ["acme", "acme/", "/api", "acme/a/b", "acme/..", ""] {
            assert_eq!(RepoMap::new([keep(bad)]), Err(BadRepoMap::NoRepository(bad.to_owned())));
            assert_eq!(RepoMap::new([rename("a/b", bad)]), Err(BadRepoMap::NoRepository(bad.to_owned())));
        }
        for twice in [
            [keep("acme/api"), keep("Acme/API")],
            [rename("acme/api", "acme/one"), rename("acme/web", "acme/One")],
            [keep("acme/api"), rename("acme/web", "acme/api")],
        ] {
            assert!(matches!(RepoMap::new(twice), Err(BadRepoMap::Twice(_))));
        }
        assert!(serde_json::from_str::<RepoMap>(r#"{"acme/api":3}"#).is_err());
    }
}
