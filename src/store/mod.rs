//! The store: SQLite or Postgres behind one set of queries. The only module that knows Diesel.
//!
//! Work is a function on a connection: [`Store::read`] runs it on the reading side,
//! [`Store::write`] in a transaction that commits if it succeeds, [`Store::write_log`] likewise where
//! the log is changed. Every call has a deadline; when
//! it passes, the connection is thrown away and a write may or may not have been committed.

pub mod backup;
pub mod builds;
mod conn;
pub mod deliveries;
mod dialect;
mod error;
mod file_id;
mod folder_lock;
pub mod generation;
mod heads;
pub mod history;
mod known_heads;
pub mod leases;
pub mod listen_notify;
mod locks;
pub mod log;
mod metrics;
mod migrate;
pub mod overview;
mod postgres;
pub mod rate_limits;
mod read;
mod readiness;
pub mod repos;
mod retry;
pub mod revocations;
pub mod runs;
pub mod schema;
pub mod sessions;
mod sqlite;
mod transaction;
mod types;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use conn::{Conn, Rows, Statement};
pub use error::{Result, StoreError};
pub use heads::Heads;
pub use listen_notify::{ListenEvent, MAX_LENGTH as MAX_NOTIFICATION_LENGTH};
pub use locks::{LockKey, Table};
pub use metrics::Metrics;
pub use migrate::{OpenError, applied as migrations_applied};
pub use read::ReadTx;
pub use retry::retry_conflicts;
pub use transaction::{Transaction, WriteBuffer};
pub use types::{Id, SqlId, SqlTs, Ts};

use crate::config::{self, Config};
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::position::{Epoch, Position};
use crate::supervision;
use generation::Probe;
use listen_notify::ListenConnector;
use log::LogTx;
use postgres::Statements;
use readiness::Readiness;
use sqlite::{Side, Threads};

/// Where the data is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A file; its folder is locked for this process.
    Sqlite {
        /// The database file.
        path: PathBuf,
    },
    Postgres {
        /// `postgres://…`; may lead through a pooler.
        url: String,
        /// The same server without a pooler, for locks and LISTEN.
        direct_url: Option<String>,
    },
}

/// How the store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the data is.
    pub location: Location,
    /// The folder of SQLite's file is ours alone, and so for nobody else.
    pub private_folder: bool,
    /// Reading connections of SQLite.
    pub readers: u32,
    /// Connections to Postgres.
    pub pool_size: u32,
    /// The longest that a call may take.
    pub deadline: Duration,
    /// Keep statements of Postgres prepared; unset, unless there is a `direct_url`.
    pub prepared_statements: Option<bool>,
    /// Accept a Postgres that forgets commits when it crashes.
    pub allow_data_loss: bool,
    /// Counts what is sent to the database.
    pub metrics: Arc<Metrics>,
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Self {
        let location = match config.backend() {
            config::Backend::Sqlite { path } => Location::Sqlite { path },
            config::Backend::Postgres { url, direct_url } => Location::Postgres {
                url: url.expose().to_owned(),
                direct_url: direct_url.map(|url| url.expose().to_owned()),
            },
        };
        let store = &config.store;
        Self {
            location,
            private_folder: store.url.is_none(),
            readers: store.readers,
            pool_size: store.pool_size,
            deadline: store.deadline.0,
            prepared_statements: store.prepared_statements,
            allow_data_loss: store.allow_data_loss,
            metrics: Arc::default(),
        }
    }
}

impl Options {
    /// How statements are sent to Postgres.
    fn statements(&self) -> Statements {
        let pooled = matches!(self.location, Location::Postgres { direct_url: Some(_), .. });
        let prepared = self.prepared_statements.unwrap_or(!pooled);
        Statements { pooled, prepared, deadline: self.deadline }
    }
}

#[derive(Clone)]
enum Backend {
    /// The folder is locked as long as its threads have the file open.
    Sqlite(Threads),
    Pg(postgres::Pool),
}

/// A handle on the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    deadline: Duration,
    state: Arc<State>,
}

/// What the store knows of itself, refreshed by every probe and every new connection.
struct State {
    generation: watch::Sender<Epoch>,
    /// The database's clock minus ours, in microseconds.
    clock_offset: AtomicI64,
    readiness: Readiness,
    /// Only if no other process writes.
    heads: Option<Heads>,
    /// Only if there may be other nodes.
    listen_connector: Option<ListenConnector>,
}

impl State {
    fn read_tx<'c>(&self, conn: &'c mut Conn) -> ReadTx<'c> {
        ReadTx { conn, generation: self.generation.borrow().clone(), now: self.now() }
    }

    fn now(&self) -> Ts {
        Ts(chrono::Utc::now().timestamp_micros() + self.clock_offset.load(Ordering::Relaxed))
    }

    fn learn(&self, probe: &Probe, sent: Ts) {
        if let Some(clock) = probe.clock {
            let received = Ts::from(chrono::Utc::now());
            let middle = sent.0 + (received.0 - sent.0) / 2;
            self.clock_offset.store(clock.0 - middle, Ordering::Relaxed);
        }
        self.generation.send_if_modified(|known| {
            let changed = *known != probe.generation;
            if changed {
                tracing::warn!(from = %known, to = %probe.generation, "the store has a new generation");
                known.clone_from(&probe.generation);
            }
            changed
        });
    }
}

impl Store {
    /// Opens the store and brings its schema up to date. Must be called on a runtime that lives as
    /// long as the store: connections belong to the runtime that opened them.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let first = migrate::run(options).await?;
        let state = Arc::new(State {
            generation: watch::Sender::new(first.generation.clone()),
            clock_offset: AtomicI64::new(0),
            readiness: Readiness::default(),
            heads: matches!(options.location, Location::Sqlite { .. }).then(Heads::default),
            listen_connector: first.listen_connector,
        });
        let backend = match &options.location {
            Location::Sqlite { path } => {
                let lock = first.lock.ok_or(OpenError::Locked(path.clone()))?;
                let threads = Threads::start(path, options.readers, lock, options.metrics.clone());
                Backend::Sqlite(threads.map_err(|error| OpenError::sqlite(path, error))?)
            }
            Location::Postgres { url, .. } => {
                let (learner, metrics) = (state.clone(), options.metrics.clone());
                let on_connect: postgres::OnConnect = Arc::new(move |conn| {
                    let state = learner.clone();
                    conn.count(metrics.clone());
                    Box::pin(async move {
                        let sent = Ts::from(chrono::Utc::now());
                        state.learn(&generation::probe_postgres(conn).await?, sent);
                        Ok(())
                    })
                });
                let runtime = tokio::runtime::Handle::current();
                let pool =
                    postgres::Pool::open(url, options.pool_size, options.statements(), on_connect, runtime);
                Backend::Pg(pool.await.map_err(OpenError::store)?)
            }
        };
        let store = Self { backend, deadline: options.deadline, state };
        store.look().await.map_err(|error| match &options.location {
            Location::Sqlite { path } => OpenError::sqlite(path, error),
            Location::Postgres { .. } => OpenError::store(error),
        })?;
        Ok(store)
    }

    /// Runs `work` on the reading side, outside a transaction.
    pub async fn read<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c, 't> FnOnce(&'c mut ReadTx<'t>) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        match &self.backend {
            Backend::Sqlite(threads) => {
                let state = self.state.clone();
                let read = move |conn: &mut Conn| at_once(work(&mut state.read_tx(conn)));
                self.within(threads.run(Side::Read, read)).await
            }
            Backend::Pg(pool) => {
                // On the heap: whoever awaits a read on SQLite would carry the memory for it as well.
                self.within(Box::pin(async {
                    let mut conn = Conn::Pg(pool.acquire().await?);
                    // A new connection may have found that the server is another one now.
                    let done = work(&mut self.state.read_tx(&mut conn)).await;
                    if !matches!(done, Err(StoreError::Unavailable(_))) {
                        finish(&mut conn);
                    }
                    done
                }))
                .await
            }
        }
    }

    /// Runs `work` in one transaction and commits it; any error rolls everything back. After
    /// [`StoreError::Unavailable`] it may have been committed all the same. It cannot change the log,
    /// so cached heads stay valid.
    pub async fn write<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.transact(work, |_, _| {}).await
    }

    /// Like [`Store::write`], for work that may change the log. All cached heads are forgotten.
    pub async fn write_log<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(LogTx<'c>) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        let state = self.state.clone();
        self.transact(
            move |conn| {
                Box::pin(async move {
                    let done = work(LogTx(state.read_tx(conn))).await;
                    conn.forget_heads();
                    done
                })
            },
            |heads, _| heads.forget(),
        )
        .await
    }

    /// Like [`Store::write_log`], for work that appends to the log and changes nothing else there:
    /// `moved` names the channels with their new heads.
    pub async fn append<T, W, M>(&self, work: W, moved: M) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(LogTx<'c>) -> BoxFuture<'c, Result<T>> + Send + 'static,
        M: FnOnce(&T) -> Vec<(ChannelName, Position)> + Send + 'static,
    {
        let on_done = move |heads: &Heads, done: &Result<T>| match done {
            Ok(done) => heads.moved(moved(done)),
            Err(_) => heads.forget(),
        };
        let state = self.state.clone();
        let done = self.transact(move |conn| work(LogTx(state.read_tx(conn))), on_done).await;
        if done.is_ok() {
            self.state.readiness.wrote();
        }
        done
    }

    /// `on_done` is called when the transaction has ended, before its caller learns of it, and also if
    /// the caller no longer waits.
    async fn transact<T, W, F>(&self, work: W, on_done: F) -> Result<T>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>> + Send + 'static,
        F: FnOnce(&Heads, &Result<T>) + Send + 'static,
    {
        match &self.backend {
            Backend::Sqlite(threads) => {
                let (state, file) = (self.state.clone(), threads.file());
                let job = move |conn: &mut Conn| {
                    let done = at_once(transaction(conn, work).boxed());
                    // What was committed into a file without a name is lost with this process.
                    let done = done.and_then(|done| file.check().map(|()| done));
                    if let Some(heads) = &state.heads {
                        on_done(heads, &done);
                    }
                    done
                };
                self.within(threads.run(Side::Write, job)).await
            }
            Backend::Pg(pool) => {
                self.within(Box::pin(async {
                    let mut conn = Conn::Pg(pool.acquire().await?);
                    transaction(&mut conn, work).await
                }))
                .await
            }
        }
    }

    /// The base of all epochs, as of the newest connection.
    pub fn generation(&self) -> Epoch {
        self.state.generation.borrow().clone()
    }

    /// The generation, with change notification.
    pub fn generations(&self) -> watch::Receiver<Epoch> {
        self.state.generation.subscribe()
    }

    /// Whether the store can keep something, as far as is known, with change notification.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.state.readiness.health()
    }

    /// The time by the database's clock, so that all nodes agree on ages.
    pub fn now(&self) -> Time {
        Time::from(self.timestamp())
    }

    /// [`Store::now`] as the store keeps it.
    pub fn timestamp(&self) -> Ts {
        self.state.now()
    }

    /// The cached heads of channels, if this process alone moves them.
    pub fn heads(&self) -> Option<&Heads> {
        self.state.heads.as_ref()
    }

    /// A name for this database that no other has and that it keeps, whatever becomes of its
    /// history: what nodes share elsewhere is theirs under this name. None on SQLite, which has one
    /// node.
    pub fn id(&self) -> Option<&str> {
        self.state.listen_connector.as_ref().map(ListenConnector::id)
    }

    /// The runtime on which tasks that mostly write run best, if that matters: that of SQLite's writer
    /// thread, where no other thread has to be woken between two transactions. While a transaction is
    /// being written everything there waits, deadlines as well.
    pub fn writing_thread(&self) -> Option<&Handle> {
        match &self.backend {
            Backend::Sqlite(threads) => threads.writing(),
            Backend::Pg(_) => None,
        }
    }

    /// Waits for work of others on the store, not longer than a call may take.
    pub async fn wait_for<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(self.deadline, work).await.map_err(|_| {
            self.state.readiness.failed();
            StoreError::Unavailable("no answer within the deadline".into())
        })
    }

    /// `sqlite` or `postgres`.
    pub fn backend_name(&self) -> &'static str {
        match self.backend {
            Backend::Sqlite(..) => "sqlite",
            Backend::Pg(_) => "postgres",
        }
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let done = self.wait_for(work).await.flatten();
        if matches!(done, Err(StoreError::Unavailable(_))) {
            self.state.readiness.failed();
        }
        done
    }
}

/// On SQLite nothing waits, so the first poll completes.
fn at_once<T>(work: BoxFuture<'_, Result<T>>) -> Result<T> {
    work.now_or_never().unwrap_or_else(|| Err(StoreError::Failed("work on SQLite must not wait".into())))
}

fn finish(conn: &mut Conn) {
    if let Conn::Pg(conn) = conn {
        conn.finish();
    }
}

async fn transaction<T, W>(conn: &mut Conn, work: W) -> Result<T>
where
    W: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, Result<T>>,
{
    conn.begin().await?;
    // Work that panics fails by itself: what it did is rolled back.
    let worked = AssertUnwindSafe(supervision::non_critical(work(conn))).catch_unwind().await;
    let worked = worked.unwrap_or_else(|_| Err(StoreError::Failed("the work panicked".into())));
    let done = match worked {
        Ok(value) => match conn.commit().await {
            Ok(()) => {
                finish(conn);
                return Ok(value);
            }
            // Whether the commit took place is not known, or it failed and must not linger.
            Err(StoreError::Contended) => Err(StoreError::Contended),
            Err(error) => Err(StoreError::Unavailable(format!("commit: {error}"))),
        },
        Err(error) => Err(error),
    };
    conn.forget_heads();
    // A session that failed so is closed, which rolls back; it may be of no use any more.
    if conn.is_postgres() && matches!(done, Err(StoreError::Unavailable(_))) {
        return done;
    }
    if conn.rollback().await {
        finish(conn);
        return done;
    }
    // The connection is gone, or SQLite has rolled back by itself, as it does when the disk is full;
    // what it answers then need not name the cause.
    done.map_err(|error| match error {
        StoreError::Unavailable(_) => error,
        error => StoreError::Unavailable(format!("the transaction was lost: {error}")),
    })
}
