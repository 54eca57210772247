//! Revoked tokens and blocked users. Read as a whole: every node holds the list in memory, so it
//! is bounded.

use diesel::prelude::*;
use diesel::upsert::excluded;

use super::conn::Conn;
use super::dialect::Prepared;
use super::error::Result;
use super::schema::revocations as table;
use super::types::Ts;
use crate::auth::revocations::{Revocation, Subject};

/// The most revocations that hold at once.
pub const MOST: i64 = 100_000;

fn parts(subject: &Subject) -> (&'static str, &str) {
    match subject {
        Subject::Token(jti) => ("token", jti),
        Subject::User(user) => ("user", user),
    }
}

/// Records `revocation`, in place of an earlier one of the same subject. `false` if there are
/// [`MOST`] others already.
pub async fn put(conn: &mut Conn, revocation: &Revocation, now: Ts) -> Result<bool> {
    let (kind, subject) = parts(&revocation.subject);
    let others = table::table.filter(table::kind.ne(kind).or(table::subject.ne(subject))).count();
    let others: i64 = conn.one(others).await?;
    if others >= MOST {
        return Ok(false);
    }
    let row = (
        table::kind.eq(kind),
        table::subject.eq(subject),
        table::expires_at.eq(revocation.until.map(Ts::from)),
        table::created_at.eq(now),
    );
    let upsert = diesel::insert_into(table::table)
        .values(row)
        .on_conflict((table::kind, table::subject))
        .do_update()
        .set((
            table::expires_at.eq(excluded(table::expires_at)),
            table::created_at.eq(excluded(table::created_at)),
        ));
    conn.execute(Prepared { query: upsert, keep: true }).await?;
    Ok(true)
}

/// Takes a revocation back.
pub async fn remove(conn: &mut Conn, subject: &Subject) -> Result<()> {
    let key = parts(subject);
    conn.execute(diesel::delete(table::table.find(key))).await?;
    Ok(())
}

/// All that hold at the time `now`.
pub async fn all(conn: &mut Conn, now: Ts) -> Result<Vec<Revocation>> {
    let query = table::table
        .filter(table::expires_at.is_null().or(table::expires_at.gt(now)))
        .select((table::kind, table::subject, table::expires_at))
        .limit(MOST);
    let rows: Vec<(String, String, Option<Ts>)> = conn.load(query).await?;
    let revocation = |(kind, subject, until): (String, String, Option<Ts>)| Revocation {
        subject: if kind == "user" { Subject::User(subject) } else { Subject::Token(subject) },
        until: until.map(Into::into),
    };
    Ok(rows.into_iter().map(revocation).collect())
}

/// Forgets those that are over.
pub async fn forget(conn: &mut Conn, now: Ts) -> Result<usize> {
    conn.execute(diesel::delete(table::table.filter(table::expires_at.le(now)))).await
}
