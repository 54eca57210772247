//! Postgres: a pool of connections. A connection that was in use when its work was abandoned
//! (deadline, caller gone, error in commit) is never lent again.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use diesel_async::pooled_connection::PoolableConnection as _;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::connect::connect;
use super::error::{Result, StoreError};

/// How long somebody waits for a connection before bb8 is asked anew whether one must be opened.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is done with each new connection before it is lent: session settings, and a look at the
/// store's generation.
pub(super) type OnConnect = Arc<
    dyn for<'c> Fn(&'c mut AsyncPgConnection) -> futures_util::future::BoxFuture<'c, Result<()>>
        + Send
        + Sync,
>;

/// A pooled connection with its own mark of health.
pub struct Link {
    conn: AsyncPgConnection,
    in_use: bool,
}

pub(super) struct Manager {
    url: String,
    settings: String,
    on_connect: OnConnect,
    runtime: Handle,
    /// Why the last connection could not be opened. bb8 leaves those who wait for it in the dark.
    failed: watch::Sender<String>,
}

impl bb8::ManageConnection for Manager {
    type Connection = Link;
    type Error = StoreError;

    /// Connections live on the runtime that opened them, so all are opened on the store's own,
    /// never on that of a worker thread that asked.
    async fn connect(&self) -> Result<Link> {
        let (url, settings, on_connect) = (self.url.clone(), self.settings.clone(), self.on_connect.clone());
        let task = self.runtime.spawn(async move {
            let mut conn = connect(&url).await?;
            conn.batch_execute(&settings).await?;
            on_connect(&mut conn).await?;
            Ok(Link { conn, in_use: false })
        });
        let opened = task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())));
        opened.inspect_err(|error| drop(self.failed.send_replace(error.to_string())))
    }

    /// Costs no round trip: asks only whether the server has closed the connection meanwhile.
    async fn is_valid(&self, link: &mut Link) -> Result<()> {
        if link.conn.is_broken() {
            return Err(StoreError::Unavailable("the connection was closed".into()));
        }
        Ok(())
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.in_use
    }
}

/// A bounded pool with a fair queue in front of it: bb8 hands a returned connection to whoever
/// asks first, which starves those who wait.
#[derive(Clone)]
pub(super) struct Pool {
    pool: bb8::Pool<Manager>,
    turns: Arc<Semaphore>,
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
        Ok(Self { pool, turns: Arc::new(Semaphore::new(size as usize)), failed })
    }

    /// Lends a connection; waits in order for one to be free.
    pub(super) async fn lend(&self) -> Result<Lease> {
        let closed = |_| StoreError::Unavailable("the store has stopped".into());
        let turn = self.turns.clone().acquire_owned().await.map_err(closed)?;
        // Who has a turn waits for a connection only where one must be opened.
        let mut failed = self.failed.clone();
        failed.mark_unchanged();
        let link = loop {
            tokio::select! {
                biased;
                link = self.pool.get_owned() => break link.map_err(|error| match error {
                    bb8::RunError::User(error) => error,
                    bb8::RunError::TimedOut => StoreError::Unavailable("no connection within the deadline".into()),
                })?,
                Ok(()) = failed.changed() => return Err(StoreError::Unavailable(failed.borrow().clone())),
                // It may have counted on an attempt that failed in the same moment: it looks again.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        };
        let mut lease = Lease { link, _turn: turn };
        lease.link.in_use = true;
        Ok(lease)
    }
}

/// A lent connection. Unless [`Lease::finish`] was called it is closed when given back.
pub struct Lease {
    // Fields drop in this order: the connection goes back before the turn is passed on.
    link: bb8::PooledConnection<'static, Manager>,
    _turn: OwnedSemaphorePermit,
}

impl Lease {
    /// The work is over and left nothing behind: the connection may be lent again.
    pub(super) fn finish(&mut self) {
        self.link.in_use = false;
    }
}

impl Deref for Lease {
    type Target = AsyncPgConnection;
    fn deref(&self) -> &AsyncPgConnection {
        &self.link.conn
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.link.conn
    }
}
