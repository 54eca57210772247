//! A pool of connections to Redis. A connection whose query was abandoned is never reused, and
//! neither are those that were opened before: they are likely to fail as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bb8_redis::RedisConnectionManager;
use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult};
use tokio::runtime::Handle;

/// The most connections. Each is busy only for one round trip.
const MAX_CONNECTIONS: u32 = 8;
/// Connections that are kept open, so that a burst need not begin with handshakes.
const MIN_IDLE: u32 = 2;
/// Timeout of opening one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    pool: bb8::Pool<Manager>,
    failures: Arc<AtomicU64>,
}

pub(super) struct Manager {
    redis: RedisConnectionManager,
    runtime: Handle,
    failures: Arc<AtomicU64>,
}

pub(super) struct PooledConn {
    conn: MultiplexedConnection,
    /// Failures of the pool before it was opened.
    failures_before: u64,
    in_use: bool,
}

impl Pool {
    /// Connections live on `runtime`.
    pub(super) fn new(client: &Client, runtime: &Handle) -> RedisResult<Self> {
        let redis = RedisConnectionManager::new(client.get_connection_info().clone())?;
        let failures = Arc::<AtomicU64>::default();
        let manager = Manager { redis, runtime: runtime.clone(), failures: failures.clone() };
        let _on = runtime.enter();
        let pool = bb8::Pool::builder()
            .max_size(MAX_CONNECTIONS)
            .min_idle(MIN_IDLE)
            .retry_connection(false)
            .connection_timeout(CONNECT_TIMEOUT)
            .build_unchecked(manager);
        Ok(Self { pool, failures })
    }

    /// Runs a query on a connection of its own. Dropping the future closes the connection.
    pub(super) async fn run<T>(
        &self,
        query: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, String> {
        let mut pooled = self.pool.get().await.map_err(|error| match error {
            bb8::RunError::User(error) => reason(&error),
            bb8::RunError::TimedOut => "no connection in time".to_owned(),
        })?;
        pooled.in_use = true;
        let answer = query(&mut pooled.conn).await.map_err(|error| reason(&error))?;
        pooled.in_use = false;
        Ok(answer)
    }

    /// Something failed: no connection that is open now is reused.
    pub(super) fn discard_open(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl bb8::ManageConnection for Manager {
    type Connection = PooledConn;
    type Error = RedisError;

    /// On the runtime of the pool, never on that of a worker thread that asked.
    async fn connect(&self) -> Result<PooledConn, RedisError> {
        let (redis, failures_before) = (self.redis.clone(), self.failures.load(Ordering::Relaxed));
        let opening = self.runtime.spawn(async move { redis.connect().await });
        let stopped = |_| RedisError::from((ErrorKind::Io, "the runtime has stopped"));
        Ok(PooledConn { conn: opening.await.map_err(stopped)??, failures_before, in_use: false })
    }

    /// Costs no round trip.
    async fn is_valid(&self, pooled: &mut PooledConn) -> Result<(), RedisError> {
        if pooled.failures_before == self.failures.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err((ErrorKind::Io, "opened before a failure").into())
    }

    fn has_broken(&self, pooled: &mut PooledConn) -> bool {
        pooled.in_use
    }
}

/// An error without the address, which may hold a password.
fn reason(error: &RedisError) -> String {
    format!("{} {}", error.category(), error.detail().unwrap_or_default())
}
