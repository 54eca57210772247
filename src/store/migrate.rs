//! Opening for the first time in a process: the lock on the data folder, a look at whether the
//! server keeps what it commits, and the migrations.

use std::fs::{OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diesel::dsl::sql;
use diesel::migration::{Migration, MigrationSource, MigrationVersion};
use diesel::sql_types::{Integer, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::backup;
use super::conn::Conn;
use super::error::StoreError;
use super::folder_lock::FolderLock;
use super::generation;
use super::listen_notify::ListenConnector;
use super::postgres::{PgConnection, connect, connect_as};
use super::sqlite::{self, Side};
use super::{Location, Options, at_once};
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
    /// The database does not let us in.
    #[error("cannot reach the database: {0}. Check DATABASE_URL and that the server runs")]
    Unreachable(String),
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
}

impl OpenError {
    pub(super) fn unreachable(error: diesel::ConnectionError) -> Self {
        Self::Unreachable(error.to_string())
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
            blocking(move || run_sqlite(&path)).await
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
            let path = path.clone();
            blocking(move || {
                let _lock = lock_folder(&path)?;
                let mut conn = sqlite::open(&path, Side::Write).map_err(OpenError::unreachable)?;
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

fn run_sqlite(path: &Path) -> Result<First, OpenError> {
    let lock = lock_folder(path)?;
    let mut conn = sqlite::open(path, Side::Write).map_err(OpenError::unreachable)?;
    migrate(&mut conn, SQLITE)?;
    backup::settle_in(&mut conn).map_err(OpenError::store)?;
    let mut conn = Conn::sqlite(conn, Arc::default());
    let needed = at_once(Box::pin(generation::oldest_binary(&mut conn))).map_err(OpenError::store)?;
    check_version(needed)?;
    let probe = at_once(Box::pin(generation::probe(&mut conn))).map_err(OpenError::store)?;
    Ok(First { generation: probe.generation, lock: Some(lock), listen_connector: None })
}

/// Takes the lock of the folder that `path` is in, making the folder if need be.
fn lock_folder(path: &Path) -> Result<FolderLock, OpenError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |source| OpenError::File { path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("campanile.lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(FolderLock(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(folder.to_path_buf())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Commits go through `url`, so that is where durability is judged; the schema's lock belongs to a
/// session, so it is taken on `direct_url`, past any pooler.
async fn run_postgres(url: &str, direct_url: &str, options: &Options) -> Result<First, OpenError> {
    let statements = options.statements();
    let connected = async || connect(url, statements).await.map_err(OpenError::store);
    check_server(&mut connected().await?, options.allow_data_loss).await?;
    let mut conn = connect_directly(direct_url).await?;
    lock_schema(&mut conn).await?;
    blocking(move || migrate(&mut AsyncConnectionWrapper::<AsyncPgConnection>::from(conn), POSTGRES)).await?;
    // A connection of its own: the one above held the lock until it was closed.
    let mut conn = connected().await?;
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

/// Whether the server is new enough and keeps what it commits.
async fn check_server(conn: &mut PgConnection, allow_data_loss: bool) -> Result<(), OpenError> {
    let query = diesel::select((
        sql::<Integer>("current_setting('server_version_num')::int"),
        sql::<Text>("current_setting('fsync')"),
        sql::<Text>("current_setting('synchronous_commit')"),
    ));
    let (version, fsync, synchronous): (i32, String, String) =
        query.get_result(conn).await.map_err(OpenError::query)?;
    if version < OLDEST_POSTGRES {
        return Err(OpenError::TooOld(version / 10_000));
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
    connect_as(url).await.map_err(|error| OpenError::Unreachable(error.to_string()))
}

/// Nodes that start together migrate one after the other.
async fn lock_schema(conn: &mut AsyncPgConnection) -> Result<(), OpenError> {
    let statement = format!("SET client_min_messages = warning; SELECT pg_advisory_lock({ADVISORY_LOCK})");
    conn.batch_execute(&statement).await.map_err(|error| OpenError::Unreachable(error.to_string()))
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
