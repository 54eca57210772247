//! The keys of a running node: those of the configuration, which a reload replaces, and those of a JWKS
//! endpoint, which `tasks::jwks` fetches. Decides when a token with an unknown key requests a fetch, and
//! which error it gets meanwhile. Fetches nothing and reads no clock.
//! Must hold: as long as the key may still be fetched, no error makes a client give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use super::awaited::Awaited;
use super::keys::VerifyError;
use super::token_cache::TokenCache;
use super::{KeySet, Keys, SubscriptionToken, TokenError};
use crate::domain::access::Principal;
use crate::domain::event::Time;

/// The state of the key set of the JWKS endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fetching {
    /// There is no endpoint: a token with an unknown key is invalid.
    Off,
    /// A token with an unknown key requests a fetch.
    Ready,
    /// It is being fetched: a token with an unknown key may be valid.
    UnderWay,
    /// It was fetched recently because of such a token, and is not fetched again yet: a token with an unknown
    /// key may be by a newer one, unless a set that was fetched later than the token was shown lacks it too.
    Cooldown,
    /// It could not be fetched and will be tried again soon: a token with an unknown key may be valid.
    Failed,
}

/// A handle on the keys; cheap to clone, and all clones show the same keys.
#[derive(Clone)]
pub struct KeyRing(Arc<State>);

struct State {
    configured: ArcSwap<Keys>,
    fetched: ArcSwapOption<KeySet>,
    fetching: AtomicU8,
    fetch_requested: Notify,
    token_cache: TokenCache,
    /// Tokens whose keys are unknown.
    awaited: Awaited,
}

impl From<Keys> for KeyRing {
    fn from(keys: Keys) -> Self {
        Self(Arc::new(State {
            configured: ArcSwap::from_pointee(keys),
            fetched: ArcSwapOption::empty(),
            fetching: AtomicU8::new(Fetching::Off as u8),
            fetch_requested: Notify::new(),
            token_cache: TokenCache::default(),
            awaited: Awaited::default(),
        }))
    }
}

impl KeyRing {
    /// The principal of this connection token at the time `now`.
    pub fn authenticate(&self, token: &str, now: Time) -> Result<Principal, TokenError> {
        let (keys, json) = self.verify(token)?;
        Ok(keys.connection(&json, Some(now))?.0)
    }

    /// As [`authenticate`](Self::authenticate), with a cache for clients that send one token again and again,
    /// as pollers do.
    pub fn authenticate_cached(&self, token: &str, now: Time) -> Result<Arc<Principal>, TokenError> {
        if let Some(cached) = self.cached(token, now) {
            return cached;
        }
        let cache = &self.0.token_cache;
        let version = cache.version();
        let (keys, json) = self.verify(token)?;
        let (principal, validity) = keys.connection(&json, Some(now))?;
        let principal = Arc::new(principal);
        cache.insert(version, token, &principal, validity);
        Ok(principal)
    }

    /// The cached result of a token that was verified before; `None` if it is not in the cache.
    pub fn cached(&self, token: &str, now: Time) -> Option<Result<Arc<Principal>, TokenError>> {
        let (principal, validity) = self.0.token_cache.get(token)?;
        Some(validity.check(now).map(|()| principal))
    }

    /// As [`authenticate`](Self::authenticate), but ignores times and never expires: only for
    /// `client.insecure`.
    pub fn authenticate_untimed(&self, token: &str) -> Result<Principal, TokenError> {
        let (keys, json) = self.verify(token)?;
        Ok(keys.connection(&json, None)?.0)
    }

    /// What this subscription token (protocol §10.2) grants, at the time `now`. Whether it is for
    /// this user, channel and client is the caller's to compare.
    pub fn subscription(&self, token: &str, now: Time) -> Result<SubscriptionToken, TokenError> {
        let (keys, json) = self.verify(token)?;
        keys.subscription(&json, now)
    }

    fn verify(&self, token: &str) -> Result<(Arc<Keys>, Vec<u8>), TokenError> {
        let keys = self.0.configured.load_full();
        let json = keys.payload(token, self.0.fetched.load().as_deref()).map_err(|error| match error {
            VerifyError::Final(error) => error,
            VerifyError::UnknownKey => self.unknown_key(token),
        })?;
        Ok((keys, json))
    }

    /// The error of a token with an unknown key; the first one requests a fetch.
    fn unknown_key(&self, token: &str) -> TokenError {
        let State { fetching, fetch_requested, awaited, .. } = &*self.0;
        let (ready, under_way) = (Fetching::Ready as u8, Fetching::UnderWay as u8);
        let order = Ordering::SeqCst;
        match fetching.compare_exchange(ready, under_way, order, order) {
            Ok(_) => fetch_requested.notify_one(),
            Err(now) if now == Fetching::Off as u8 => return TokenError::Invalid,
            Err(now) if now == Fetching::Cooldown as u8 && awaited.in_vain(token) => {
                return TokenError::Invalid;
            }
            Err(_) => {}
        }
        awaited.note(token);
        TokenError::KeyPending
    }

    /// Replaces the configured keys.
    pub fn replace(&self, keys: Keys) {
        self.0.configured.store(Arc::new(keys));
        self.0.token_cache.clear();
    }

    /// Waits until a token with an unknown key requests a fetch.
    pub async fn fetch_requested(&self) {
        self.0.fetch_requested.notified().await;
    }

    /// Replaces the fetched key set; `None` removes it.
    pub fn set_fetched(&self, set: Option<KeySet>) {
        if set.is_none() {
            self.0.awaited.clear();
        }
        self.0.fetched.store(set.map(Arc::new));
        self.0.token_cache.clear();
    }

    /// A fetched set counts against tokens that were shown before it. To be called for fetches that began at
    /// least the interval of requested fetches after one another.
    pub fn count_fetch(&self) {
        self.0.awaited.count_fetch();
    }

    /// Sets the state of the fetching.
    pub fn set_fetching(&self, fetching: Fetching) {
        self.0.fetching.store(fetching as u8, Ordering::SeqCst);
    }
}
