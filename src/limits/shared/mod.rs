//! Counters that all nodes share in Redis: the rates, and the connections of each user. Every node counts
//! for itself as well, and uses only its own counters while Redis is down or slow: no caller waits long for
//! a counter, and no counter has to survive.

mod rates;
mod redis_pool;
mod users;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::metrics::{Metrics, Source};
use redis_pool::Pool;
pub use users::{ClaimResult, UserCount};

/// Between two probes whether Redis answers and has kept its data.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a probe and of a write, for which no caller waits.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long Redis keeps what is not written again.
const KEY_TTL: Duration = Duration::from_secs(30 * 60);

/// A handle on the shared counters; cheap to clone.
#[derive(Clone, Default)]
pub struct SharedCounters(Option<Arc<Shared>>);

/// How long a caller waits for Redis before its node decides alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the check of a rate.
    pub rate: Duration,
    /// For the claim of a connection.
    pub connection: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { rate: Duration::from_millis(50), connection: Duration::from_millis(100) }
    }
}

struct Shared {
    pool: Pool,
    timeouts: Timeouts,
    /// The prefix of every key in Redis.
    prefix: String,
    node: String,
    status: watch::Sender<RedisStatus>,
    metrics: Arc<Metrics>,
}

/// The state of Redis as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RedisStatus {
    /// Whether it is used.
    pub up: bool,
    /// Grows whenever the data that this node wrote may be lost.
    pub losses: u64,
}

impl SharedCounters {
    /// No shared counters: this node counts for itself.
    pub fn none() -> Self {
        Self(None)
    }

    /// Counters shared with all nodes that use the same prefix, and the task that monitors Redis, to be
    /// spawned. Connections are opened on `runtime`.
    pub fn shared(
        client: &Client,
        prefix: String,
        node: Uuid,
        timeouts: Timeouts,
        metrics: Arc<Metrics>,
        runtime: &Handle,
    ) -> RedisResult<(Self, impl Future<Output = ()> + use<>)> {
        let shared = Arc::new(Shared {
            pool: Pool::new(client, runtime)?,
            timeouts,
            prefix,
            node: node.to_string(),
            status: watch::Sender::default(),
            metrics,
        });
        let counts = Self(Some(shared.clone()));
        Ok((counts, async move { shared.monitor().await }))
    }

    /// Whether there are shared counters.
    pub fn is_shared(&self) -> bool {
        self.0.is_some()
    }

    /// The state of Redis, with change notification.
    pub fn status(&self) -> watch::Receiver<RedisStatus> {
        match &self.0 {
            Some(shared) => shared.status.subscribe(),
            None => watch::channel(RedisStatus::default()).1,
        }
    }
}

impl Shared {
    fn name(&self, kind: &str, of: &str) -> String {
        format!("{}:{kind}:{of}", self.prefix)
    }

    /// Queries Redis. `None`: it is down or too slow, and is not used until a probe succeeds.
    async fn query<T>(
        &self,
        within: Duration,
        query: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Option<T> {
        if !self.status.borrow().up {
            return None;
        }
        let answer = self.try_query(within, query).await;
        if answer.is_none() {
            self.mark_down();
        }
        answer
    }

    async fn try_query<T>(
        &self,
        within: Duration,
        query: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Option<T> {
        let why = match timeout(within, self.pool.run(query)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        self.pool.discard_open();
        if self.status.borrow().up {
            tracing::warn!(why, "Redis cannot be used: this node uses its own counters until it can");
        }
        None
    }

    fn mark_down(&self) {
        self.metrics.limits_redis_up.set(0);
        self.status.send_if_modified(|status| std::mem::replace(&mut status.up, false));
    }

    /// Probes Redis periodically. A number that grows with each probe shows whether Redis has lost
    /// data: it was emptied, or is another server now.
    async fn monitor(&self) {
        let mut last = 0;
        loop {
            let name = self.name("node", &self.node);
            let probe = self.try_query(BACKGROUND_TIMEOUT, async |conn| {
                let mut probe = redis::pipe();
                probe.atomic().incr(&name, 1).pexpire(&name, KEY_TTL.as_millis() as i64).ignore();
                let (number,): (u64,) = probe.query_async(conn).await?;
                Ok(number)
            });
            match probe.await {
                Some(number) => {
                    let forgot = number <= std::mem::replace(&mut last, number);
                    self.status.send_if_modified(|status| {
                        let lost = forgot || !status.up;
                        *status = RedisStatus { up: true, losses: status.losses + u64::from(lost) };
                        lost
                    });
                    self.metrics.limits_redis_up.set(1);
                }
                None => self.mark_down(),
            }
            sleep(PROBE_INTERVAL).await;
        }
    }

    fn count(&self, reached: bool) {
        self.metrics.limit_checks.inc(if reached { Source::Redis } else { Source::Local });
    }
}
