//! The keys of a running node, which change while it runs: those of the configuration by a reload,
//! those of a key set on the network by whoever fetches it. Owns when a token whose key is unknown
//! is worth a fetch, and what its bearer is told meanwhile. Fetches nothing and reads no clock.
//! Must hold: as long as a key may turn up, no answer makes a client give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use super::keys::Flaw;
use super::verified::Verified;
use super::{KeySet, Keys, SubscriptionToken, TokenError};
use crate::domain::access::Principal;
use crate::domain::event::Time;

/// How it stands with the key set on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fetching {
    /// There is none: what is not known is invalid.
    Off,
    /// A token with an unknown key makes it be fetched.
    Ready,
    /// It is being fetched: nobody knows yet what is invalid.
    UnderWay,
    /// It was fetched because of such a token, and not long ago: what is not known is invalid.
    Rested,
    /// It could not be fetched, and will be again soon: nobody knows what is invalid.
    Failed,
}

/// A handle on the keys; cheap to clone, and all clones show the same keys.
#[derive(Clone)]
pub struct KeyRing(Arc<Ring>);

struct Ring {
    configured: ArcSwap<Keys>,
    fetched: ArcSwapOption<KeySet>,
    fetching: AtomicU8,
    asked: Notify,
    verified: Verified,
}

impl From<Keys> for KeyRing {
    fn from(keys: Keys) -> Self {
        Self(Arc::new(Ring {
            configured: ArcSwap::from_pointee(keys),
            fetched: ArcSwapOption::empty(),
            fetching: AtomicU8::new(Fetching::Off as u8),
            asked: Notify::new(),
            verified: Verified::default(),
        }))
    }
}

impl KeyRing {
    /// Who holds this connection token, at the time `now`.
    pub fn authenticate(&self, token: &str, now: Time) -> Result<Principal, TokenError> {
        let (keys, json) = self.verify(token)?;
        Ok(keys.connection(&json, Some(now))?.0)
    }

    /// The same for those who show one token again and again, as pollers do: a token that was
    /// verified by these keys is known when it comes back.
    pub fn recognise(&self, token: &str, now: Time) -> Result<Arc<Principal>, TokenError> {
        if let Some(known) = self.known(token, now) {
            return known;
        }
        let known = &self.0.verified;
        let moment = known.moment();
        let (keys, json) = self.verify(token)?;
        let (principal, life) = keys.connection(&json, Some(now))?;
        let principal = Arc::new(principal);
        known.remember(moment, token, &principal, life);
        Ok(principal)
    }

    /// The same, of a token that was shown before; `None` if it has to be verified.
    pub fn known(&self, token: &str, now: Time) -> Option<Result<Arc<Principal>, TokenError>> {
        let (principal, life) = self.0.verified.get(token)?;
        Some(life.check(now).map(|()| principal))
    }

    /// The same without looking at times, and with no expiry: only for `client.insecure`.
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
        let json = keys.payload(token, self.0.fetched.load().as_deref()).map_err(|flaw| match flaw {
            Flaw::Final(error) => error,
            Flaw::UnknownKey => self.unknown_key(),
        })?;
        Ok((keys, json))
    }

    /// What a token costs whose key is not known; the first one of its time asks for a fetch.
    fn unknown_key(&self) -> TokenError {
        let (ready, under_way) = (Fetching::Ready as u8, Fetching::UnderWay as u8);
        let order = Ordering::SeqCst;
        match self.0.fetching.compare_exchange(ready, under_way, order, order) {
            Ok(_) => {
                self.0.asked.notify_one();
                TokenError::NotNow
            }
            Err(now) if now == Fetching::Off as u8 || now == Fetching::Rested as u8 => TokenError::Invalid,
            Err(_) => TokenError::NotNow,
        }
    }

    /// Puts other configured keys in place of those before.
    pub fn replace(&self, keys: Keys) {
        self.0.configured.store(Arc::new(keys));
        self.0.verified.forget();
    }

    /// Waits until a token with an unknown key asks for a fetch.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// Takes a key set that was fetched, in place of the one before; `None` forgets it.
    pub fn set_fetched(&self, set: Option<KeySet>) {
        self.0.fetched.store(set.map(Arc::new));
        self.0.verified.forget();
    }

    /// Says how it stands with the fetching.
    pub fn set_fetching(&self, fetching: Fetching) {
        self.0.fetching.store(fetching as u8, Ordering::SeqCst);
    }
}
