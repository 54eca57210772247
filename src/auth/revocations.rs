//! Revocations: tokens, by their `jti`, and users that are refused although their tokens are valid. A
//! value that every endpoint consults; the list itself is the store's, and `tasks::revocations` keeps
//! this one like it.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use crate::domain::event::Time;
use crate::domain::principal::Principal;

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The token with this `jti`.
    Token(String),
    /// Every token of this user.
    User(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What it revokes.
    pub subject: Subject,
    /// Until when it holds; `None`: until it is taken back.
    pub until: Option<Time>,
}

/// Why a valid token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// The token was revoked. On the wire 3500, over HTTP 401.
    Token,
    /// The user is blocked. On the wire 3507, over HTTP 403.
    User,
}

/// All revocations that hold; cheap to clone, and all clones are one.
#[derive(Clone, Default)]
pub struct Revocations(Arc<RwLock<HashMap<Subject, Option<Time>>>>);

impl Revocations {
    /// Whether `principal` is refused at the time `now`.
    pub fn check(&self, principal: &Principal, now: Time) -> Result<(), Revoked> {
        let list = self.0.read().expect("the list is not poisoned");
        if list.is_empty() {
            return Ok(());
        }
        let holds =
            |subject: &Subject| list.get(subject).is_some_and(|until| until.is_none_or(|until| now < until));
        if principal.jti.as_deref().is_some_and(|jti| holds(&Subject::Token(jti.to_owned()))) {
            return Err(Revoked::Token);
        }
        if !principal.user.is_empty() && holds(&Subject::User(principal.user.clone())) {
            return Err(Revoked::User);
        }
        Ok(())
    }

    /// Makes the list this one, and answers what is new in it.
    pub fn replace(&self, all: Vec<Revocation>) -> Vec<Subject> {
        let all: HashMap<_, _> = all.into_iter().map(|one| (one.subject, one.until)).collect();
        let mut list = self.0.write().expect("the list is not poisoned");
        let new = all.keys().filter(|subject| !list.contains_key(subject)).cloned().collect();
        *list = all;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_users_are_refused_until_it_ends() {
        let at = |seconds| Time::from_timestamp(seconds, 0).unwrap();
        let principal = |user: &str, jti: &str| Principal {
            user: user.into(),
            jti: Some(jti.into()),
            ..Default::default()
        };
        let list = Revocations::default();
        assert_eq!(list.check(&principal("ann", "1"), at(5)), Ok(()));
        let all = vec![
            Revocation { subject: Subject::Token("1".into()), until: Some(at(10)) },
            Revocation { subject: Subject::User("bob".into()), until: None },
        ];
        assert_eq!(list.replace(all.clone()).len(), 2);
        assert_eq!(list.replace(all), [], "none of it is new");
        assert_eq!(list.check(&principal("ann", "1"), at(9)), Err(Revoked::Token));
        assert_eq!(list.check(&principal("ann", "1"), at(10)), Ok(()));
        assert_eq!(list.check(&principal("ann", "bob"), at(9)), Ok(()), "a name is no jti");
        assert_eq!(list.check(&principal("bob", "2"), at(1_000_000)), Err(Revoked::User));
        assert_eq!(list.check(&Principal::default(), at(9)), Ok(()));
        assert_eq!(list.replace(Vec::new()), []);
        assert_eq!(list.check(&principal("bob", "1"), at(9)), Ok(()));
    }
}
