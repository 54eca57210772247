//! Signing a browser in and out. A link lives for ten minutes and lets one browser in, which then has a
//! session: looking at a link changes nothing, only redeeming its secret uses it up.

mod open_sessions;
mod secret;

use std::time::Duration;

use crate::domain::event::Time;
use crate::domain::principal::{Principal, Scopes};
use crate::store::sessions::{self, Session};
use crate::store::{self, Store};

pub use crate::store::sessions::SecretHash;
pub use open_sessions::OpenSessions;
pub use secret::SignInSecret;

/// Who signs in by a link, and what that one may do.
const OPERATOR: &str = "operator";
pub const SCOPE: &str = "admin";
/// How long a link can be used.
pub const LINK_TTL: Duration = Duration::from_secs(600);
/// Links that wait to be used; one more ends the oldest.
pub const MAX_LINKS: u32 = 100;

/// Makes a link to the gateway at `base`, and says when its time is over.
pub async fn new_link(store: &Store, base: &str) -> store::Result<(String, Time)> {
    let secret = SignInSecret::generate();
    let (hash, now) = (secret.hash(), store.timestamp());
    let end = now.plus(LINK_TTL);
    store
        .write(move |conn| Box::pin(async move { sessions::add_link(conn, hash, now, end, MAX_LINKS).await }))
        .await?;
    Ok((format!("{base}/sign-in#{}", secret.expose()), end.into()))
}

/// Uses up the link with the secret `given`; returns the secret of a new session, one of `max_sessions`
/// that lasts for `ttl`. `None` if the link lets nobody in.
pub async fn redeem(
    store: &Store,
    given: &str,
    ttl: Duration,
    max_sessions: u32,
) -> store::Result<Option<SignInSecret>> {
    let Some(link) = SignInSecret::parse(given).map(|secret| secret.hash()) else { return Ok(None) };
    let now = store.timestamp();
    // Checked by a read first, so that guesses never occupy the writer.
    let open = store.read(move |conn| Box::pin(async move { sessions::is_open(conn, link, now).await }));
    if !open.await? {
        return Ok(None);
    }
    let secret = SignInSecret::generate();
    let (hash, end) = (secret.hash(), now.plus(ttl));
    let session = Session { subject: OPERATOR.into(), scope: SCOPE.into(), expires_at: end.into() };
    let redeemed = store
        .write(move |conn| {
            Box::pin(async move { sessions::redeem(conn, link, hash, session, now, max_sessions).await })
        })
        .await?;
    Ok(redeemed.then_some(secret))
}

/// The principal of the session `secret`; `None` if it is over.
pub async fn principal_of(store: &Store, secret: SecretHash) -> store::Result<Option<Principal>> {
    let session = find(store, secret).await?;
    Ok(session.map(|session| Principal {
        user: session.subject,
        scopes: session.scope.split(' ').collect::<Scopes>(),
        expires_at: Some(session.expires_at),
        ..Principal::default()
    }))
}

async fn find(store: &Store, secret: SecretHash) -> store::Result<Option<Session>> {
    let now = store.timestamp();
    store.read(move |conn| Box::pin(async move { sessions::get(conn, secret, now).await })).await
}
