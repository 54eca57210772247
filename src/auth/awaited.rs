//! Tokens by keys that the issuer's set does not have, by their hashes. A set says nothing about a key that
//! was made after it was fetched, so a token is refused for good only if its key is still missing from a set
//! that was fetched well after the token was first shown. Whoever fills the table only makes refusals later.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard};

/// The most tokens in the table. When it is full it is cleared.
const MAX_TOKENS: usize = 4096;
/// The first fetch may have been under way already when the token was shown; between it and the second one
/// lies the interval of fetches that tokens request.
const FETCHES: u64 = 2;

#[derive(Default)]
pub(super) struct Awaited {
    /// Keyed, so that nobody can make a token with the hash of another one.
    hasher: RandomState,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Tokens {
    /// How many fetches there had been when a token was first shown.
    first_shown: HashMap<u64, u64>,
    fetches: u64,
}

impl Awaited {
    /// The key of `token` is not known.
    pub(super) fn note(&self, token: &str) {
        let hash = self.hasher.hash_one(token);
        let mut tokens = self.tokens();
        let fetches = tokens.fetches;
        if tokens.first_shown.len() >= MAX_TOKENS && !tokens.first_shown.contains_key(&hash) {
            tokens.first_shown.clear();
        }
        tokens.first_shown.entry(hash).or_insert(fetches);
    }

    /// Whether `token` was shown long enough before the set was last fetched.
    pub(super) fn in_vain(&self, token: &str) -> bool {
        let hash = self.hasher.hash_one(token);
        let tokens = self.tokens();
        tokens.first_shown.get(&hash).is_some_and(|first| tokens.fetches >= first + FETCHES)
    }

    /// The set was fetched, at least the interval of such fetches after the last one that was counted.
    pub(super) fn count_fetch(&self) {
        self.tokens().fetches += 1;
    }

    /// There is another issuer, or none.
    pub(super) fn clear(&self) {
        self.tokens().first_shown.clear();
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().expect("no thread panics while holding this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_refused_once_a_later_set_does_not_have_its_key() {
        let awaited = Awaited::default();
        awaited.note("early");
        awaited.count_fetch();
        awaited.note("late");
        assert!(!awaited.in_vain("early") && !awaited.in_vain("late"));
        awaited.note("early");
        awaited.count_fetch();
        assert!(awaited.in_vain("early") && !awaited.in_vain("late"));
        assert!(!awaited.in_vain("never shown"));
        awaited.clear();
        assert!(!awaited.in_vain("early"));
    }

    #[test]
    fn there_are_never_too_many() {
        let awaited = Awaited::default();
        for number in 0..=MAX_TOKENS {
            awaited.note(&format!("{number}"));
        }
        assert!(awaited.tokens().first_shown.len() <= MAX_TOKENS);
    }
}
