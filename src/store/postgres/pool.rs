//! Postgres: a pool of connections. A connection that was in use when its work was abandoned
//! (deadline, caller gone, error in commit) is never reused.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::connect::connect;
use super::connection::{OnReadOnly, PgConnection, Statements};
use crate::store::error::{Result, StoreError};

/// How long a caller waits for a connection before bb8 is asked again, which opens one if needed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Between two times that all connections are replaced because one could not write.
const REPLACE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs on each new connection before it is used, and again where a shared session turns out to be one of
/// another server: a check of the store's generation.
pub(in crate::store) type OnConnect =
    Arc<dyn for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<()>> + Send + Sync>;

/// A connection as the pool keeps it, with a mark of whether it is in use.
pub struct ManagedConn {
    conn: PgConnection,
    in_use: bool,
    opened: Instant,
    /// Which server the last transaction was on, where that may change.
    server: Option<String>,
    on_connect: OnConnect,
}

pub(in crate::store) struct Manager {
    url: String,
    statements: Statements,
    on_connect: OnConnect,
    runtime: Handle,
    /// Sessions that were opened before are of no use: the server, or the database's default, was
    /// read-only then, and they would stay so.
    useless_before: Arc<Mutex<Option<Instant>>>,
    /// Why the last connection could not be opened. bb8 does not tell the callers that wait for it.
    failed: watch::Sender<String>,
}

impl bb8::ManageConnection for Manager {
    type Connection = ManagedConn;
    type Error = StoreError;

    /// Connections live on the runtime that opened them, so all are opened on the store's own,
    /// never on that of a worker thread that asked.
    async fn connect(&self) -> Result<ManagedConn> {
        let (url, statements, on_connect) = (self.url.clone(), self.statements, self.on_connect.clone());
        let on_read_only = self.on_read_only();
        let opened = Instant::now();
        let task = self.runtime.spawn(async move {
            let mut conn = connect(&url, statements).await?;
            conn.on_read_only(on_read_only);
            on_connect(&mut conn).await?;
            Ok(ManagedConn { conn, in_use: false, opened, server: None, on_connect })
        });
        let opened = task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
        // Whatever it was, there is no session.
        let opened = opened.map_err(|error| StoreError::Unavailable(error.to_string()));
        opened.inspect_err(|error| drop(self.failed.send_replace(error.to_string())))
    }

    /// Costs no round trip: asks only whether the server has closed the connection meanwhile.
    async fn is_valid(&self, managed: &mut ManagedConn) -> Result<()> {
        let useless = *self.useless_before.lock().unwrap_or_else(PoisonError::into_inner);
        if managed.conn.is_closed() || useless.is_some_and(|before| managed.opened < before) {
            return Err(StoreError::Unavailable("the connection was closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, managed: &mut ManagedConn) -> bool {
        managed.in_use
    }
}

impl Manager {
    fn on_read_only(&self) -> OnReadOnly {
        let useless_before = self.useless_before.clone();
        Arc::new(move || {
            let mut before = useless_before.lock().unwrap_or_else(PoisonError::into_inner);
            if before.is_none_or(|before| before.elapsed() > REPLACE_INTERVAL) {
                *before = Some(Instant::now());
            }
        })
    }
}

/// A bounded pool with a fair queue in front of it: bb8 gives a returned connection to the next
/// caller, which starves callers that already wait.
#[derive(Clone)]
pub(in crate::store) struct Pool {
    pool: bb8::Pool<Manager>,
    permits: Arc<Semaphore>,
    failed: watch::Receiver<String>,
}

impl Pool {
    pub(in crate::store) async fn open(
        url: &str,
        size: u32,
        statements: Statements,
        on_connect: OnConnect,
        runtime: Handle,
    ) -> Result<Self> {
        let (sender, failed) = watch::channel(String::new());
        let manager = Manager {
            url: url.to_owned(),
            statements,
            on_connect,
            runtime,
            useless_before: Arc::default(),
            failed: sender,
        };
        let pool = bb8::Pool::builder()
            .max_size(size)
            .test_on_check_out(true)
            .connection_timeout(statements.deadline)
            .retry_connection(false)
            .build_unchecked(manager);
        Ok(Self { pool, permits: Arc::new(Semaphore::new(size as usize)), failed })
    }

    /// Takes a connection; callers wait in order for a free one.
    pub(in crate::store) async fn acquire(&self) -> Result<PooledConn> {
        let closed = |_| StoreError::Unavailable("the store has stopped".into());
        let permit = self.permits.clone().acquire_owned().await.map_err(closed)?;
        // A caller with a permit waits for a connection only while one is being opened.
        let mut failed = self.failed.clone();
        failed.mark_unchanged();
        let managed = loop {
            tokio::select! {
                biased;
                managed = self.pool.get_owned() => break managed.map_err(|error| match error {
                    bb8::RunError::User(error) => error,
                    bb8::RunError::TimedOut => StoreError::Unavailable("no connection within the deadline".into()),
                })?,
                Ok(()) = failed.changed() => return Err(StoreError::Unavailable(failed.borrow().clone())),
                // It may wait for an attempt that failed at this very moment: it tries again.
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
            }
        };
        let mut pooled = PooledConn { managed, _turn: permit };
        pooled.managed.in_use = true;
        Ok(pooled)
    }
}

/// A connection taken from the pool. Unless [`PooledConn::finish`] was called it is closed on drop.
pub struct PooledConn {
    // Fields drop in this order: the connection is returned before the permit.
    managed: bb8::PooledConnection<'static, Manager>,
    _turn: OwnedSemaphorePermit,
}

impl PooledConn {
    /// The work has finished cleanly: the connection may be reused.
    pub(in crate::store) fn finish(&mut self) {
        self.managed.in_use = false;
    }

    /// Opens a transaction, on a server whose generation is known.
    pub(in crate::store) async fn begin(&mut self) -> Result<()> {
        let ManagedConn { conn, server, on_connect, .. } = &mut *self.managed;
        let now = conn.begin_transaction().await?;
        if now != *server {
            on_connect(conn).await?;
            *server = now;
        }
        Ok(())
    }
}

impl Deref for PooledConn {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.managed.conn
    }
}

impl DerefMut for PooledConn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.managed.conn
    }
}
