//! A cache of tokens with a valid signature and their principals: to verify one costs more than to answer a
//! poll. Owns its own bounds. Must hold: a token that was verified by replaced keys is never returned, and
//! the times of a token are checked at every use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::claims::Validity;
use crate::domain::principal::Principal;

/// The most tokens in the cache. When it is full it is cleared, and tokens in use come back at once.
const MAX_TOKENS: usize = 4096;
/// A longer token is verified each time, so that the cache takes some megabytes at most.
const MAX_LENGTH: usize = 2048;

#[derive(Default)]
pub(super) struct TokenCache(Mutex<Tokens>);

#[derive(Default)]
struct Tokens {
    /// By their whole text, which is compared only if its keyed hash is equal: the time of a lookup says
    /// nothing about the tokens in the cache.
    by_text: HashMap<Box<str>, (Arc<Principal>, Validity)>,
    /// Counts the changes of the keys.
    version: u64,
}

/// The version of the keys before a token was verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version(u64);

impl TokenCache {
    /// The principal and validity of `token`, if it was verified by the current keys.
    pub(super) fn get(&self, token: &str) -> Option<(Arc<Principal>, Validity)> {
        self.tokens().by_text.get(token).cloned()
    }

    /// To be called before the keys that verify a token are loaded.
    pub(super) fn version(&self) -> Version {
        Version(self.tokens().version)
    }

    /// Stores a token that was verified after `since`, unless the keys have changed meanwhile.
    pub(super) fn insert(&self, since: Version, token: &str, principal: &Arc<Principal>, validity: Validity) {
        let mut tokens = self.tokens();
        if tokens.version != since.0 || token.len() > MAX_LENGTH {
            return;
        }
        if tokens.by_text.len() >= MAX_TOKENS {
            tokens.by_text.clear();
        }
        tokens.by_text.insert(token.into(), (principal.clone(), validity));
    }

    /// To be called when the keys have been replaced.
    pub(super) fn clear(&self) {
        let mut tokens = self.tokens();
        tokens.version += 1;
        tokens.by_text.clear();
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.lock().expect("the cache is not poisoned")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(tokens: &TokenCache, since: Version, token: &str) {
        tokens.insert(since, token, &Arc::default(), Validity::default());
    }

    #[test]
    fn what_was_verified_while_the_keys_changed_is_not_kept() {
        let tokens = TokenCache::default();
        let before = tokens.version();
        tokens.clear();
        insert(&tokens, before, "a.b.c");
        assert!(tokens.get("a.b.c").is_none());
        insert(&tokens, tokens.version(), "a.b.c");
        assert!(tokens.get("a.b.c").is_some());
        tokens.clear();
        assert!(tokens.get("a.b.c").is_none(), "other keys may refuse it");
    }

    #[test]
    fn there_are_never_too_many_and_none_is_too_long() {
        let tokens = TokenCache::default();
        for number in 0..=MAX_TOKENS {
            insert(&tokens, tokens.version(), &format!("{number}"));
        }
        assert!(tokens.tokens().by_text.len() <= MAX_TOKENS);
        assert!(tokens.get(&format!("{MAX_TOKENS}")).is_some());
        let long = "x".repeat(MAX_LENGTH + 1);
        insert(&tokens, tokens.version(), &long);
        assert!(tokens.get(&long).is_none());
    }
}
