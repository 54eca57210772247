//! Opening for the first time in a process: the lock on the data folder, a look at whether the
//! server keeps what it commits, and the migrations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::migration::{Migration, MigrationSource, MigrationVersion};
use diesel::pg::Pg;
use diesel::sql_types::{Array, Bool, Integer, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::backup;
use super::conn::Conn;
use super::error::StoreError;
use super::folder_lock::{FolderLock, LockError};
use super::generation;
use super::listen_notify::ListenConnector;
use super::postgres::{PgConnection, connect, connect_as};
use super::sqlite::{self, Side};
use super::{Location, Options, at_once, schema};
use crate::domain::position::Epoch;

const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Any number, as long as all versions of Campanile use the same.
const ADVISORY_LOCK: i64 = 0x0043_414d_5041_4e49;
const OLDEST_POSTGRES: i32 = 150_000;

/// Why the store cannot be used. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works on the same data.
    #[error("{0} is in use by another campanile: stop it first, or use its HTTP interface")]
    Locked(PathBuf),
    /// The folder or file cannot be opened or made.
    #[error("cannot use {path}: {source}. Check that the folder exists, has room and may be written")]
    File {
        /// What was tried.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Postgres does not let us in.
    #[error("cannot reach the database: {0}. Check DATABASE_URL and that the server runs")]
    Unreachable(String),
    /// The same by the address past the pooler.
    #[error("cannot reach the database directly: {0}. Check DATABASE_URL_DIRECT and that the server runs")]
    DirectlyUnreachable(String),
    /// SQLite cannot use its file.
    #[error(
        "cannot use the SQLite database {path}: {reason}. Check that it is one, has room and may be written"
    )]
    Sqlite {
        /// The file.
        path: PathBuf,
        reason: String,
    },
    /// The database cannot hold all that may come.
    #[error(
        "{setting} of the Postgres database is {value}, which cannot hold every delivery: make a database with \
         ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding {
        /// What says so.
        setting: &'static str,
        value: String,
    },
    /// The user may not do what it is for.
    #[error(
        "the user {user} may not read and write {tables} in Postgres: GRANT SELECT, INSERT, UPDATE, DELETE ON \
         these tables to it"
    )]
    Rights {
        /// Of the database.
        user: String,
        /// Separated by commas.
        tables: String,
    },
    /// The server would lose commits.
    #[error(
        "Postgres has {0} off and would lose events in a crash. Turn it on, or accept the loss with \
         store.allow_data_loss = true"
    )]
    Forgetful(&'static str),
    /// The server is too old.
    #[error("Postgres {0} is too old: Campanile needs 15 or newer")]
    TooOld(i32),
    /// A newer version of Campanile has changed the schema.
    #[error("the database needs Campanile {needed} or newer, this is {ours}: upgrade this node")]
    NewerSchema {
        /// The oldest version that may work on it.
        needed: String,
        ours: &'static str,
    },
    /// A migration failed; it was rolled back.
    #[error("the schema cannot be brought up to date: {0}")]
    Migration(String),
    /// The same on Postgres, where the user may not be allowed to.
    #[error(
        "the schema cannot be brought up to date: {reason}. Outstanding: {outstanding}. If this user may not \
         create tables, let one that may run `campanile migrate`"
    )]
    Outstanding {
        /// Names of migrations.
        outstanding: String,
        reason: String,
    },
}

impl OpenError {
    pub(super) fn sqlite(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Sqlite { path: path.to_owned(), reason: reason.to_string() }
    }

    fn query(error: diesel::result::Error) -> Self {
        Self::Unreachable(error.to_string())
    }

    pub(super) fn store(error: StoreError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// What opening leaves behind.
pub(super) struct First {
    pub(super) generation: Epoch,
    /// The lock on SQLite's folder; held as long as the file is open.
    pub(super) lock: Option<FolderLock>,
    pub(super) listen_connector: Option<ListenConnector>,
}

/// Locks, checks and migrates.
pub(super) async fn run(options: &Options) -> Result<First, OpenError> {
    match &options.location {
        Location::Sqlite { path } => {
            let path = path.clone();
            let private_folder = options.private_folder;
            blocking(move || run_sqlite(&path, private_folder)).await
        }
        Location::Postgres { url, direct_url } => {
            run_postgres(url, direct_url.as_ref().unwrap_or(url), options).await
        }
    }
}

/// Applies what is missing, and answers the names of all migrations with whether each was new.
pub async fn applied(options: &Options) -> Result<Vec<(String, bool)>, OpenError> {
    match &options.location {
        Location::Sqlite { path } => {
            let (path, private_folder) = (path.clone(), options.private_folder);
            blocking(move || {
                let _lock = lock_folder(&path, private_folder)?;
                let failed = |error| OpenError::sqlite(&path, error);
                let mut conn = sqlite::open(&path, Side::Write).map_err(failed)?;
                migrate(&mut conn, SQLITE)
            })
            .await
        }
        Location::Postgres { url, direct_url } => {
            let mut conn = connect_directly(direct_url.as_ref().unwrap_or(url)).await?;
            lock_schema(&mut conn).await?;
            blocking(move || migrate(&mut AsyncConnectionWrapper::<AsyncPgConnection>::from(conn), POSTGRES))
                .await
        }
    }
}

fn run_sqlite(path: &Path, private_folder: bool) -> Result<First, OpenError> {
    let lock = lock_folder(path, private_folder)?;
    let failed = |error: StoreError| OpenError::sqlite(path, error);
    let opened = sqlite::open(path, Side::Write);
    let mut conn = opened.map_err(|error| OpenError::sqlite(path, error))?;
    migrate(&mut conn, SQLITE)?;
    backup::settle_in(&mut conn).map_err(failed)?;
    let mut conn = Conn::sqlite(conn, Arc::default());
    let needed = at_once(Box::pin(generation::oldest_binary(&mut conn))).map_err(failed)?;
    check_version(needed)?;
    let probe = at_once(Box::pin(generation::probe(&mut conn))).map_err(failed)?;
    Ok(First { generation: probe.generation, lock: Some(lock), listen_connector: None })
}

/// Takes the lock of the file at `path` and of its folder, making both if need be, for their owner alone.
fn lock_folder(path: &Path, private_folder: bool) -> Result<FolderLock, OpenError> {
    FolderLock::take(path, private_folder).map_err(|error| match error {
        LockError::Taken(path) => OpenError::Locked(path),
        LockError::File { path, source } => OpenError::File { path, source },
    })
}

/// Commits go through `url`, so that is where durability is judged; the schema's lock belongs to a
/// session, so it is taken on `direct_url`, past any pooler.
async fn run_postgres(url: &str, direct_url: &str, options: &Options) -> Result<First, OpenError> {
    let statements = options.statements();
    let connected = async || connect(url, statements).await.map_err(OpenError::store);
    let mut conn = connected().await?;
    check_server(&mut conn, options.allow_data_loss).await?;
    let outstanding = outstanding(&mut conn).await?;
    if !outstanding.is_empty() {
        let mut direct = connect_directly(direct_url).await?;
        lock_schema(&mut direct).await?;
        // The connection holds the lock until it is closed.
        let migrate =
            move || migrate(&mut AsyncConnectionWrapper::<AsyncPgConnection>::from(direct), POSTGRES);
        blocking(migrate).await.map_err(|error| match error {
            OpenError::Migration(reason) => OpenError::Outstanding { outstanding, reason },
            error => error,
        })?;
    }
    check_rights(&mut conn).await?;
    let needed: String = diesel::select(sql::<Text>("(SELECT value FROM meta WHERE key = 'oldest_binary')"))
        .get_result(&mut conn)
        .await
        .map_err(OpenError::query)?;
    check_version(needed)?;
    let probe = generation::probe_postgres(&mut conn).await.map_err(OpenError::store)?;
    let id = generation::lasting_id(&mut conn).await.map_err(OpenError::store)?;
    Ok(First {
        generation: probe.generation,
        lock: None,
        listen_connector: Some(ListenConnector::new(direct_url, id)),
    })
}

/// The names of the migrations that are missing. Only reads: a user that may create nothing needs no more if
/// nothing is missing.
async fn outstanding(conn: &mut PgConnection) -> Result<String, OpenError> {
    let exists = diesel::select(sql::<Bool>("to_regclass('__diesel_schema_migrations') IS NOT NULL"));
    let mut applied = Vec::<String>::new();
    if exists.get_result(conn).await.map_err(OpenError::query)? {
        let all = "(SELECT coalesce(array_agg(version::text), '{}') FROM __diesel_schema_migrations)";
        applied = diesel::select(sql::<Array<Text>>(all)).get_result(conn).await.map_err(OpenError::query)?;
    }
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| OpenError::Migration(error.to_string());
    let all: Vec<Box<dyn Migration<Pg>>> = POSTGRES.migrations().map_err(failed)?;
    let missing = all.iter().filter(|one| !applied.contains(&one.name().version().to_string()));
    Ok(missing.map(|one| one.name().to_string()).collect::<Vec<_>>().join(", "))
}

/// Whether the user may do to each table what it will have to.
async fn check_rights(conn: &mut PgConnection) -> Result<(), OpenError> {
    let query = diesel::select(missing_rights());
    let (user, tables): (String, String) = query.get_result(conn).await.map_err(OpenError::query)?;
    if tables.is_empty() { Ok(()) } else { Err(OpenError::Rights { user, tables }) }
}

/// The user, and the tables that it may not use, separated by commas.
pub(super) fn missing_rights() -> SqlLiteral<(Text, Text)> {
    let names: Vec<String> = schema::TABLES.iter().map(|name| format!("'{name}'")).collect();
    sql(&format!(
        "current_user::text, (SELECT coalesce(string_agg(name, ', '), '') FROM unnest(ARRAY[{}]) AS name \
         WHERE NOT (has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT') \
         AND has_table_privilege(name, 'UPDATE') AND has_table_privilege(name, 'DELETE')))",
        names.join(", ")
    ))
}

/// Whether the server is new enough, can hold everything, and keeps what it commits.
async fn check_server(conn: &mut PgConnection, allow_data_loss: bool) -> Result<(), OpenError> {
    let query = diesel::select((
        sql::<Integer>("current_setting('server_version_num')::int"),
        sql::<Text>("current_setting('fsync')"),
        sql::<Text>("current_setting('synchronous_commit')"),
        sql::<Text>("current_setting('server_encoding')"),
        sql::<Text>("current_setting('client_encoding')"),
    ));
    let (version, fsync, synchronous, server, client): (i32, String, String, String, String) =
        query.get_result(conn).await.map_err(OpenError::query)?;
    if version < OLDEST_POSTGRES {
        return Err(OpenError::TooOld(version / 10_000));
    }
    for (setting, value) in [("server_encoding", server), ("client_encoding", client)] {
        if value != "UTF8" {
            return Err(OpenError::Encoding { setting, value });
        }
    }
    if fsync == "off" && !allow_data_loss {
        return Err(OpenError::Forgetful("fsync"));
    }
    if synchronous == "off" && !allow_data_loss {
        return Err(OpenError::Forgetful("synchronous_commit"));
    }
    Ok(())
}

async fn connect_directly(url: &str) -> Result<AsyncPgConnection, OpenError> {
    connect_as(url).await.map_err(|error| OpenError::DirectlyUnreachable(error.to_string()))
}

/// Nodes that start together migrate one after the other.
async fn lock_schema(conn: &mut AsyncPgConnection) -> Result<(), OpenError> {
    let statement = format!("SET client_min_messages = warning; SELECT pg_advisory_lock({ADVISORY_LOCK})");
    conn.batch_execute(&statement).await.map_err(|error| OpenError::DirectlyUnreachable(error.to_string()))
}

fn migrate<DB, C>(conn: &mut C, source: EmbeddedMigrations) -> Result<Vec<(String, bool)>, OpenError>
where
    DB: diesel::backend::Backend,
    C: MigrationHarness<DB>,
    EmbeddedMigrations: MigrationSource<DB>,
{
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| OpenError::Migration(error.to_string());
    let all: Vec<Box<dyn Migration<DB>>> = source.migrations().map_err(failed)?;
    let new: Vec<MigrationVersion<'_>> = conn.run_pending_migrations(source).map_err(failed)?;
    let new: Vec<String> = new.iter().map(ToString::to_string).collect();
    Ok(all
        .iter()
        .map(|migration| {
            (migration.name().to_string(), new.contains(&migration.name().version().to_string()))
        })
        .collect())
}

fn check_version(needed: String) -> Result<(), OpenError> {
    let ours = env!("CARGO_PKG_VERSION");
    if numbers(ours) < numbers(&needed) {
        return Err(OpenError::NewerSchema { needed, ours });
    }
    Ok(())
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-']).map_while(|part| part.parse().ok()).collect()
}

/// Diesel's migrations block, which must not happen on a worker of the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(OpenError::Migration(error.to_string())),
    }
}
