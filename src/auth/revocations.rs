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

/// The longest name of a subject, in bytes. What cannot be named cannot be revoked, so tokens with a longer
/// `sub` or `jti` are invalid.
pub const MAX_SUBJECT: usize = 1_024;

/// Whether a token or a user of this name can be revoked. PostgreSQL cannot store NUL in text.
pub fn can_be_named(name: &str) -> bool {
    name.len() <= MAX_SUBJECT && !name.contains('\0')
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
        self.check_token(principal.jti.as_deref(), now)?;
        let blocked = !principal.user.is_empty() && self.holds(|| Subject::User(principal.user.clone()), now);
        if blocked { Err(Revoked::User) } else { Ok(()) }
    }

    /// Whether a token is refused whose user was checked already.
    pub fn check_token(&self, jti: Option<&str>, now: Time) -> Result<(), Revoked> {
        let revoked = jti.is_some_and(|jti| self.holds(|| Subject::Token(jti.to_owned()), now));
        if revoked { Err(Revoked::Token) } else { Ok(()) }
    }

    fn holds(&self, subject: impl FnOnce() -> Subject, now: Time) -> bool {
        let list = self.0.read().expect("the list is not poisoned");
        !list.is_empty() && list.get(&subject()).is_some_and(|until| until.is_none_or(|until| now < until))
    }

    /// Makes the list this one, and answers what is new in it or holds until another time: a user may have
    /// come back after an earlier block had run out.
    pub fn replace(&self, all: Vec<Revocation>) -> Vec<Subject> {
        let all: HashMap<_, _> = all.into_iter().map(|one| (one.subject, one.until)).collect();
        let mut list = self.0.write().expect("the list is not poisoned");
        let is_new = |(subject, until): &(&Subject, &Option<Time>)| list.get(subject) != Some(until);
        let new = all.iter().filter(is_new).map(|(subject, _)| subject.clone()).collect();
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
        assert_eq!(list.replace(all.clone()), [], "none of it is new");
        let [mut token, user] = <[Revocation; 2]>::try_from(all).unwrap();
        assert_eq!(list.check_token(Some("1"), at(9)), Err(Revoked::Token));
        assert_eq!(list.check_token(Some("bob"), at(9)), Ok(()));
        token.until = Some(at(20));
        assert_eq!(
            list.replace(vec![token.clone(), user.clone()]),
            [token.subject.clone()],
            "it holds again"
        );
        token.until = Some(at(10));
        list.replace(vec![token, user]);
        assert_eq!(list.check(&principal("ann", "1"), at(9)), Err(Revoked::Token));
        assert_eq!(list.check(&principal("ann", "1"), at(10)), Ok(()));
        assert_eq!(list.check(&principal("ann", "bob"), at(9)), Ok(()), "a name is no jti");
        assert_eq!(list.check(&principal("bob", "2"), at(1_000_000)), Err(Revoked::User));
        assert_eq!(list.check(&Principal::default(), at(9)), Ok(()));
        assert_eq!(list.replace(Vec::new()), []);
        assert_eq!(list.check(&principal("bob", "1"), at(9)), Ok(()));
    }
}
