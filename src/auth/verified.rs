//! Tokens whose signature was found right, and whom they stand for: to find that out costs more than
//! to answer a poll. Owns the bound on them. Must hold: what other keys have verified is never
//! answered, and the times of a token are looked at whenever it is shown.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::claims::Life;
use crate::domain::principal::Principal;

/// Tokens that are remembered; with more all are forgotten, and those in use come back at once.
const MOST: usize = 4096;
/// A longer token is verified each time, so that all of them take some megabytes at most.
const LONGEST: usize = 2048;

/// See the module.
#[derive(Default)]
pub(super) struct Verified(Mutex<Tokens>);

#[derive(Default)]
struct Tokens {
    /// By their whole text, which is compared only where a keyed hash of it is the same: how long
    /// a look takes says nothing about the texts here.
    known: HashMap<Box<str>, (Arc<Principal>, Life)>,
    /// Counts the changes of the keys.
    changes: u64,
}

/// A moment before a token was verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Verified {
    /// Whom `token` stands for and when it counts, if it was verified by the keys of now.
    pub(super) fn get(&self, token: &str) -> Option<(Arc<Principal>, Life)> {
        self.tokens().known.get(token).cloned()
    }

    /// To be called before the keys are taken that verify a token.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.tokens().changes)
    }

    /// What was verified after `since`; kept unless the keys have changed meanwhile.
    pub(super) fn remember(&self, since: Moment, token: &str, principal: &Arc<Principal>, life: Life) {
        let mut tokens = self.tokens();
        if tokens.changes != since.0 || token.len() > LONGEST {
            return;
        }
        if tokens.known.len() >= MOST {
            tokens.known.clear();
        }
        tokens.known.insert(token.into(), (principal.clone(), life));
    }

    /// To be called when other keys are in their place.
    pub(super) fn forget(&self) {
        let mut tokens = self.tokens();
        tokens.changes += 1;
        tokens.known.clear();
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.lock().expect("nobody panics with the tokens in hand")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(tokens: &Verified, since: Moment, token: &str) {
        tokens.remember(since, token, &Arc::default(), Life::default());
    }

    #[test]
    fn what_was_verified_while_the_keys_changed_is_not_kept() {
        let tokens = Verified::default();
        let before = tokens.moment();
        tokens.forget();
        remember(&tokens, before, "a.b.c");
        assert!(tokens.get("a.b.c").is_none());
        remember(&tokens, tokens.moment(), "a.b.c");
        assert!(tokens.get("a.b.c").is_some());
        tokens.forget();
        assert!(tokens.get("a.b.c").is_none(), "other keys may refuse it");
    }

    #[test]
    fn there_are_never_too_many_and_none_is_too_long() {
        let tokens = Verified::default();
        for number in 0..=MOST {
            remember(&tokens, tokens.moment(), &format!("{number}"));
        }
        assert!(tokens.tokens().known.len() <= MOST);
        assert!(tokens.get(&format!("{MOST}")).is_some());
        let long = "x".repeat(LONGEST + 1);
        remember(&tokens, tokens.moment(), &long);
        assert!(tokens.get(&long).is_none());
    }
}
