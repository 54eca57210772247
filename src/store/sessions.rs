//! Sign-in links and the sessions that they make. Only hashes of secrets come here, so that
//! whoever reads the database can sign in nowhere.
//!
//! Must hold: a link makes one session, however many try at once. Both tables are bounded: what
//! is more than they may keep pushes the oldest out.

use std::collections::HashSet;

use diesel::prelude::*;

use super::conn::Conn;
use super::error::Result;
use super::schema::{sessions, sign_in_links as links};
use super::types::Ts;
use crate::domain::event::Time;

/// Rows that one statement removes or looks for at most.
const BATCH: i64 = 500;

/// The SHA-256 of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    fn to_column(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// A browser that is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Who it is.
    pub subject: String,
    /// What it may do, as the `scope` of a token says it.
    pub scope: String,
    /// When it ends by itself.
    pub expires_at: Time,
}

/// Keeps a new link until `expires_at`, and the newest `most` in all.
pub async fn add_link(conn: &mut Conn, link: SecretHash, now: Ts, expires_at: Ts, most: u32) -> Result<()> {
    let row = (
        links::secret_hash.eq(link.to_column()),
        links::created_at.eq(now),
        links::expires_at.eq(expires_at),
    );
    conn.execute(diesel::insert_into(links::table).values(row)).await?;
    let surplus = links::table
        .order((links::created_at.desc(), links::secret_hash.desc()))
        .offset(i64::from(most))
        .limit(BATCH)
        .select(links::secret_hash);
    let surplus: Vec<Vec<u8>> = conn.load(surplus).await?;
    if !surplus.is_empty() {
        conn.execute(diesel::delete(links::table.filter(links::secret_hash.eq_any(surplus)))).await?;
    }
    Ok(())
}

/// Whether this link would let somebody in.
pub async fn is_open(conn: &mut Conn, link: SecretHash, now: Ts) -> Result<bool> {
    let row = links::table.find(link.to_column()).filter(links::expires_at.gt(now));
    let found: Option<Vec<u8>> = conn.maybe(row.select(links::secret_hash)).await?;
    Ok(found.is_some())
}

/// Uses up a link for a new session, and keeps the newest `most` sessions; `false` when somebody
/// was faster or its time is over.
pub async fn redeem(
    conn: &mut Conn,
    link: SecretHash,
    secret: SecretHash,
    session: Session,
    now: Ts,
    most: u32,
) -> Result<bool> {
    let row = links::table.find(link.to_column()).filter(links::expires_at.gt(now));
    if conn.execute(diesel::delete(row)).await? == 0 {
        return Ok(false);
    }
    let row = (
        sessions::secret_hash.eq(secret.to_column()),
        sessions::subject.eq(session.subject),
        sessions::scope.eq(session.scope),
        sessions::created_at.eq(now),
        sessions::expires_at.eq(Ts::from(session.expires_at)),
    );
    conn.execute(diesel::insert_into(sessions::table).values(row)).await?;
    let surplus = sessions::table
        .order((sessions::created_at.desc(), sessions::secret_hash.desc()))
        .offset(i64::from(most))
        .limit(BATCH)
        .select(sessions::secret_hash);
    let surplus: Vec<Vec<u8>> = conn.load(surplus).await?;
    if !surplus.is_empty() {
        conn.execute(diesel::delete(sessions::table.filter(sessions::secret_hash.eq_any(surplus)))).await?;
    }
    Ok(true)
}

/// The session with this secret, if it is not over.
pub async fn get(conn: &mut Conn, secret: SecretHash, now: Ts) -> Result<Option<Session>> {
    let row = sessions::table.find(secret.to_column()).filter(sessions::expires_at.gt(now)).select((
        sessions::subject,
        sessions::scope,
        sessions::expires_at,
    ));
    let found: Option<(String, String, Ts)> = conn.maybe(row).await?;
    Ok(found.map(|(subject, scope, expires_at)| Session { subject, scope, expires_at: expires_at.into() }))
}

/// Those of `secrets` whose session is not over.
pub async fn open_among(conn: &mut Conn, secrets: Vec<SecretHash>, now: Ts) -> Result<HashSet<SecretHash>> {
    let mut open = HashSet::new();
    for secrets in secrets.chunks(BATCH as usize) {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.to_column()).collect();
        let rows = sessions::table
            .filter(sessions::secret_hash.eq_any(secrets).and(sessions::expires_at.gt(now)))
            .select(sessions::secret_hash);
        let found: Vec<Vec<u8>> = conn.load(rows).await?;
        open.extend(found.into_iter().filter_map(|hash| Some(SecretHash(hash.try_into().ok()?))));
    }
    Ok(open)
}

/// Ends a session; there need not be one.
pub async fn end(conn: &mut Conn, secret: SecretHash) -> Result<()> {
    conn.execute(diesel::delete(sessions::table.find(secret.to_column()))).await?;
    Ok(())
}

/// Forgets links and sessions whose time is over, and sessions that began before `cutoff`; says how many. All
/// are few.
pub async fn forget_expired(conn: &mut Conn, now: Ts, cutoff: Option<Ts>) -> Result<usize> {
    let mut gone = conn.execute(diesel::delete(links::table.filter(links::expires_at.le(now)))).await?;
    if let Some(cutoff) = cutoff {
        let old = sessions::table.filter(sessions::created_at.le(cutoff));
        gone += conn.execute(diesel::delete(old)).await?;
    }
    Ok(gone + conn.execute(diesel::delete(sessions::table.filter(sessions::expires_at.le(now)))).await?)
}
