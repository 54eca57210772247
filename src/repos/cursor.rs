//! Where a list of repositories goes on.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::Repo;
use crate::domain::channel::{is_owner, is_repo_name};

/// The last repository of a part of the list: owner, name and id. Its text means nothing to callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoCursor(pub(super) (String, String, Uuid));

impl RepoCursor {
    pub(super) fn after(repo: &Repo) -> Self {
        Self((repo.owner.clone(), repo.name.clone(), repo.id))
    }

    /// `None` if `text` is not one that a list returned.
    pub fn parse(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let mut parts = text.splitn(3, '/');
        let (owner, name, id) = (parts.next()?, parts.next()?, parts.next()?);
        let named = is_owner(owner) && is_repo_name(name);
        Some(Self((owner.to_owned(), name.to_owned(), Uuid::try_parse(id).ok()?))).filter(|_| named)
    }
}

impl fmt::Display for RepoCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, name, id) = &self.0;
        f.write_str(&URL_SAFE_NO_PAD.encode(format!("{owner}/{name}/{id}")))
    }
}
