//! Plain SQL beside a gateway: on the file of its SQLite, or on its PostgreSQL. Knows nothing of the
//! gateway's own code.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel::sql_types::Text;

use crate::postgres;

/// Where the data is.
#[derive(Debug, Clone)]
pub enum Source {
    /// The file.
    Sqlite(PathBuf),
    /// The URL.
    Postgres(String),
}

/// A session beside the gateway's own.
pub enum Session {
    /// On the file.
    Sqlite(Box<SqliteConnection>),
    /// On the server.
    Postgres(tokio_postgres::Client),
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

impl Source {
    /// A session that only reads.
    pub async fn reader(&self) -> Result<Session> {
        self.open("ro").await
    }

    /// A session that also writes.
    pub async fn writer(&self) -> Result<Session> {
        self.open("rw").await
    }

    async fn open(&self, mode: &str) -> Result<Session> {
        Ok(match self {
            Self::Sqlite(file) => {
                let url = format!("file:{}?mode={mode}", file.display());
                let mut session = SqliteConnection::establish(&url)
                    .with_context(|| format!("cannot open {}", file.display()))?;
                session.batch_execute("PRAGMA busy_timeout = 5000")?;
                Session::Sqlite(Box::new(session))
            }
            Self::Postgres(url) => Session::Postgres(postgres::session(url).await?),
        })
    }
}

impl Session {
    /// Runs statements.
    pub async fn execute(&mut self, statements: &str) -> Result<()> {
        match self {
            Self::Sqlite(session) => Ok(session.batch_execute(statements)?),
            Self::Postgres(session) => Ok(session.batch_execute(statements).await?),
        }
    }

    /// The rows of a query with one column of text, called `line`.
    pub async fn lines(&mut self, query: &str) -> Result<Vec<String>> {
        Ok(match self {
            Self::Sqlite(session) => {
                let lines: Vec<Line> = diesel::sql_query(query).load(&mut **session)?;
                lines.into_iter().map(|line| line.line).collect()
            }
            Self::Postgres(session) => {
                let rows = session.query(query, &[]).await?;
                rows.iter().map(|row| row.get("line")).collect()
            }
        })
    }
}

/// The columns of a line that joins them by `|`; the last may have more of these.
pub fn columns<const N: usize>(line: &str) -> Result<[&str; N]> {
    let columns: Vec<&str> = line.splitn(N, '|').collect();
    columns.try_into().ok().context("a row without its columns")
}
