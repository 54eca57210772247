//! Connections to Redis. One that was in use when its question was given up is never lent again,
//! and with it go all that were opened before: what it met, they are likely to meet as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bb8_redis::RedisConnectionManager;
use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult};
use tokio::runtime::Handle;

/// At once. Each is busy only for one round trip.
const SIZE: u32 = 8;
/// Kept open, so that a burst need not begin with handshakes.
const IDLE: u32 = 2;
/// To open one.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Pool {
    pool: bb8::Pool<Manager>,
    failures: Arc<AtomicU64>,
}

pub(super) struct Manager {
    redis: RedisConnectionManager,
    runtime: Handle,
    failures: Arc<AtomicU64>,
}

/// A pooled connection.
pub(super) struct Link {
    conn: MultiplexedConnection,
    /// Failures of any before it was opened.
    opened_after: u64,
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
            .max_size(SIZE)
            .min_idle(IDLE)
            .retry_connection(false)
            .connection_timeout(PATIENCE)
            .build_unchecked(manager);
        Ok(Self { pool, failures })
    }

    /// Asks over a connection of its own. Giving up on it closes the connection.
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, String> {
        let mut link = self.pool.get().await.map_err(|error| match error {
            bb8::RunError::User(error) => reason(&error),
            bb8::RunError::TimedOut => "no connection in time".to_owned(),
        })?;
        link.in_use = true;
        let answer = question(&mut link.conn).await.map_err(|error| reason(&error))?;
        link.in_use = false;
        Ok(answer)
    }

    /// Something went wrong: no connection that is open now is lent again.
    pub(super) fn renew(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl bb8::ManageConnection for Manager {
    type Connection = Link;
    type Error = RedisError;

    /// On the runtime of the pool, never on that of a worker thread that asked.
    async fn connect(&self) -> Result<Link, RedisError> {
        let (redis, opened_after) = (self.redis.clone(), self.failures.load(Ordering::Relaxed));
        let opening = self.runtime.spawn(async move { redis.connect().await });
        let stopped = |_| RedisError::from((ErrorKind::Io, "the runtime has stopped"));
        Ok(Link { conn: opening.await.map_err(stopped)??, opened_after, in_use: false })
    }

    /// Costs no round trip.
    async fn is_valid(&self, link: &mut Link) -> Result<(), RedisError> {
        if link.opened_after == self.failures.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err((ErrorKind::Io, "opened before a failure").into())
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.in_use
    }
}

/// An error without the address, which may hold a password.
fn reason(error: &RedisError) -> String {
    format!("{} {}", error.category(), error.detail().unwrap_or_default())
}
