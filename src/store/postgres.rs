//! Postgres: a pool of connections. A connection that was in use when its work was abandoned
//! (deadline, caller gone, error in commit) is never reused.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use diesel_async::pooled_connection::PoolableConnection as _;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connect::connect;
use super::error::{Result, StoreError};

/// How long a caller waits for a connection before bb8 is asked again, which opens one if needed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs on each new connection before it is used: session settings, and a check of the store's
/// generation.
pub(super) type OnConnect = Arc<
    dyn for<'c> Fn(&'c mut AsyncPgConnection) -> futures_util::future::BoxFuture<'c, Result<()>>
        + Send
        + Sync,
>;

/// A connection as the pool keeps it, with a mark of whether it is in use.
pub struct ManagedConn {
    conn: AsyncPgConnection,
    in_use: bool,
}

pub(super) struct Manager {
    url: String,
    settings: String,
    on_connect: OnConnect,
    runtime: Handle,
    /// Why the last connection could not be opened. bb8 does not tell the callers that wait for it.
    failed: watch::Sender<String>,
}

impl bb8::ManageConnection for Manager {
    type Connection = ManagedConn;
    type Error = StoreError;

    /// Connections live on the runtime that opened them, so all are opened on the store's own,
    /// never on that of a worker thread that asked.
    async fn connect(&self) -> Result<ManagedConn> {
        let (url, settings, on_connect) = (self.url.clone(), self.settings.clone(), self.on_connect.clone());
        let task = self.runtime.spawn(async move {
            let mut conn = connect(&url).await?;
            conn.batch_execute(&settings).await?;
            on_connect(&mut conn).await?;
            Ok(ManagedConn { conn, in_use: false })
        });
        let opened = task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
        opened.inspect_err(|error| drop(self.failed.send_replace(error.to_string())))
    }

    /// Costs no round trip: asks only whether the server has closed the connection meanwhile.
    async fn is_valid(&self, managed: &mut ManagedConn) -> Result<()> {
        if managed.conn.is_broken() {
            return Err(StoreError::Unavailable("the connection was closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, managed: &mut ManagedConn) -> bool {
        managed.in_use
    }
}

/// A bounded pool with a fair queue in front of it: bb8 gives a returned connection to the next
/// caller, which starves callers that already wait.
#[derive(Clone)]
pub(super) struct Pool {
    pool: bb8::Pool<Manager>,
    permits: Arc<Semaphore>,
    failed: watch::Receiver<String>,
}

impl Pool {
    pub(super) async fn open(
        url: &str,
        size: u32,
        deadline: Duration,
        on_connect: OnConnect,
        runtime: Handle,
    ) -> Result<Self> {
        let ms = deadline.as_millis();
        // The server gives up when we do, so that nothing commits long after we answered.
        let settings = format!(
            "SET statement_timeout = {ms}; SET lock_timeout = {ms}; \
             SET idle_in_transaction_session_timeout = {}; SET client_min_messages = warning",
            2 * ms
        );
        let (sender, failed) = watch::channel(String::new());
        let manager = Manager { url: url.to_owned(), settings, on_connect, runtime, failed: sender };
        let pool = bb8::Pool::builder()
            .max_size(size)
            .test_on_check_out(true)
            .connection_timeout(deadline)
            .retry_connection(false)
            .build_unchecked(manager);
        Ok(Self { pool, permits: Arc::new(Semaphore::new(size as usize)), failed })
    }

    /// Takes a connection; callers wait in order for a free one.
    pub(super) async fn acquire(&self) -> Result<PooledConn> {
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
    pub(super) fn finish(&mut self) {
        self.managed.in_use = false;
    }
}

impl Deref for PooledConn {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &AsyncPgConnection {
        &self.managed.conn
    }
}

impl DerefMut for PooledConn {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.managed.conn
    }
}
